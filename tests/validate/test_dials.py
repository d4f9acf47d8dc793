"""What can be turned, and that the blocks of a term are the term."""

from __future__ import annotations

import re

import pytest
import torch

import lorahub as lh
from lorahub.algebra.adapter import Adapter
from lorahub.errors import UsageError
from lorahub.validate.dials import Dial, by_block, dials_of, pattern, spelled
from lorahub.validate.generating import Term
from lorahub.validate.searching import Range
from tests.algebra.making import dense


def adapter(seed: int = 0) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    names = ("down_blocks.0.attn2.to_q", "down_blocks.1.attn2.to_q", "mid_block.attn2.to_q", "up_blocks.1.attn2.to_q")
    tensors = {}
    for name in names:
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, 6, generator=random)
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(5, 2, generator=random)
    return lh.load(tensors)


def terms() -> list[Term]:
    return [Term("style", 0.8, adapter(1)), Term("my lcm", 1.0, adapter(2), accelerates=True)]


def test_accelerators_are_turned_when_nothing_is_said() -> None:
    (dial,) = dials_of(terms(), ())
    assert (dial.name, dial.start, dial.range) == ("my lcm", 1.0, Range(0.5, 1.5, 0.05))
    negative = dials_of([Term("lcm", -0.4, adapter(), accelerates=True)], ())[0].range
    assert (negative.low, negative.high) == (-0.6, -0.2)


def test_ranges_are_read() -> None:
    found = dials_of(terms(), ["my lcm=0.6:1.2:0.2", "style = -1:1"])
    assert [dial.range for dial in found] == [Range(0.6, 1.2, 0.2), Range(-1, 1, 0.1)]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["lcm=0:1"], "no term 'lcm' in the expression: it has style, my lcm"),
        (["style"], "expected TERM=FROM:TO"),
        (["style=0.5"], "expected TERM=FROM:TO"),
        (["style=0:1:0.1:2"], "expected TERM=FROM:TO"),
        (["style=a:1"], "'a' is no number"),
        (["style=1:0"], "cannot vary from 1 to 0"),
        (["style=0:inf"], "'inf' is no number"),
        (["style=nan:1"], "'nan' is no number"),
        (["style=0:1", "style=0:2"], "style is varied twice"),
    ],
)
def test_what_cannot_be_turned(vary: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        dials_of(terms(), vary)


def test_without_an_accelerator_someone_must_say() -> None:
    with pytest.raises(
        UsageError, match=r"no term is known to accelerate: say which to vary of style, such as style=0.5:1.5"
    ):
        dials_of(terms()[:1], ())


def test_the_blocks_of_a_term_add_up_to_it() -> None:
    given = terms()
    pieces, dials = by_block(given, dials_of(given, ()))
    assert [dial.name for dial in dials] == [
        "my lcm[unet.down_blocks]",
        "my lcm[unet.mid_block]",
        "my lcm[unet.up_blocks]",
    ]
    assert [piece.name for piece in pieces] == ["style", *(dial.name for dial in dials)]
    assert all(piece.accelerates for piece in pieces[1:])
    whole = sum((piece.adapter for piece in pieces[2:]), start=pieces[1].adapter)
    expected = given[1].adapter
    assert set(whole.layers) == set(expected.layers)
    for name, layer in expected.layers.items():
        torch.testing.assert_close(dense(whole.layers[name]), dense(layer))


def test_what_is_spelled_is_what_was_drawn() -> None:
    """The weights by block that `combine` takes give the sum of the pieces."""
    given = terms()
    pieces, dials = by_block(given, dials_of(given, ()))
    values = {dial.name: value for dial, value in zip(dials, (0.5, 0.75, 1.25), strict=True)}
    expression, weights = spelled({"style": 0.8, "my lcm": 1.0}, dials, values)
    assert expression == '0.8*style + 1*"my lcm"'
    from lorahub.algebra.adapter import weighted

    combined = 0.8 * given[0].adapter + weighted(given[1].adapter, {found: weight for _, found, weight in weights})
    drawn = sum((values[p.name] * p.adapter for p in pieces[1:]), start=0.8 * pieces[0].adapter)
    for name, layer in combined.layers.items():
        torch.testing.assert_close(dense(drawn.layers[name]), dense(layer))


def test_an_expression_without_blocks() -> None:
    dials = [Dial("my lcm", "", 1.0, Range(0.5, 1.5, 0.05))]
    assert spelled({"style": 0.8, "my lcm": 1.0}, dials, {"my lcm": 0.85}) == ('0.8*style + 0.85*"my lcm"', [])


def test_the_pattern_of_a_block_finds_no_other_block() -> None:
    assert re.search(pattern("unet.up_blocks"), "unet.up_blocks.1.to_q")
    assert re.search(pattern("unet.conv_in"), "unet.conv_in")
    assert not re.search(pattern("unet.conv_in"), "unet.conv_in_2")
    assert not re.search(pattern("unet.up_blocks"), "text.unet.up_blocks.1")
