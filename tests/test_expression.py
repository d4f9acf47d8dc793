"""Expressions: what people write is understood, what is written can be read again, mistakes are pointed at."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from lorahub.errors import UsageError
from lorahub.expression import Term, parse, quote, render


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("style", [(1.0, "style")]),
        ("0.8*style", [(0.8, "style")]),
        ("0.8 * style", [(0.8, "style")]),
        ("  0.8*style\t", [(0.8, "style")]),
        ("0.8*style + 1.0*lcm - 0.5*blur", [(0.8, "style"), (1.0, "lcm"), (-0.5, "blur")]),
        ("sd2-popart", [(1.0, "sd2-popart")]),
        ("sd2-popart - sd2+disney", [(1.0, "sd2-popart"), (-1.0, "sd2+disney")]),
        ("-style", [(-1.0, "style")]),
        ("- style", [(-1.0, "style")]),
        ("+ style - lcm", [(1.0, "style"), (-1.0, "lcm")]),
        ("-0.5*style", [(-0.5, "style")]),
        ("- 0.5*style", [(-0.5, "style")]),
        ("a - -0.5*b", [(1.0, "a"), (0.5, "b")]),
        ("a - -b", [(1.0, "a"), (1.0, "b")]),
        (".5*a + 1.*b + 1e-3*c + 2E2*d", [(0.5, "a"), (1.0, "b"), (0.001, "c"), (200.0, "d")]),
        ("0*a", [(0.0, "a")]),
        ("'my style' + \"other style\"", [(1.0, "my style"), (1.0, "other style")]),
        ('0.5*"a - b"', [(0.5, "a - b")]),
        ('"-style"', [(1.0, "-style")]),
        ("\"it's\" - '\"x\"'", [(1.0, "it's"), (-1.0, '"x"')]),
        ("0.8*./papercut.safetensors + 1.0*./lcm-lora.safetensors", [
            (0.8, "./papercut.safetensors"), (1.0, "./lcm-lora.safetensors"),
        ]),
        ("user/repo@main:file.safetensors", [(1.0, "user/repo@main:file.safetensors")]),
        ("sha256:12ab", [(1.0, "sha256:12ab")]),
        ("2", [(1.0, "2")]),
        ("größe", [(1.0, "größe")]),
    ],
)  # fmt: skip
def test_what_people_write_is_understood(text: str, terms: list[tuple[float, str]]) -> None:
    assert parse(text) == tuple(Term(weight, reference) for weight, reference in terms)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", "at its end", "expected an adapter"),
        ("   ", "at its end", "expected an adapter"),
        ("style +", "at '+'", "expected + or -"),
        ("style + ", "at its end", "expected an adapter"),
        ("style + + lcm", "at '+ lcm'", "expected an adapter"),
        ("style lcm", "at 'lcm'", "expected + or - with spaces around it"),
        ("style +lcm", "at '+lcm'", "expected + or - with spaces around it"),
        ("style * 2", "at '* 2'", "expected + or -"),
        ("style*2", "at '*2'", "expected + or -"),
        ("0.8**style", "at '**style'", "expected + or -"),
        ("0.8*", "at '*'", "expected + or -"),
        ('"style', "at '\"style'", "expected an adapter"),
        ('""', "at '\"\"'", "expected an adapter"),
        ("1e999*style", "at '1e999*style'", "the weight 1e999 is too large"),
        ("-", "at '-'", "expected an adapter"),
        ("*style", "at '*style'", "expected an adapter"),
    ],
)
def test_mistakes_are_pointed_at(text: str, place: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert place in message
    assert expected in message
    assert message.startswith(f"cannot read the expression {text!r} ")
    assert "\n" not in message


NAMES = st.text(min_size=1, max_size=12).filter(lambda name: not ('"' in name and "'" in name))
WEIGHTS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(WEIGHTS, NAMES), min_size=1, max_size=5))
def test_what_is_rendered_can_be_parsed_again(weights: list[tuple[float, str]]) -> None:
    text = render([(weight, quote(name)) for weight, name in weights])
    assert [(term.weight, term.reference) for term in parse(text)] == weights


@given(NAMES)
def test_a_quoted_name_alone_is_that_adapter(name: str) -> None:
    assert parse(quote(name)) == (Term(1.0, name),)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        terms = parse(text)
    except UsageError:
        return
    assert terms
    assert all(term.reference and math.isfinite(term.weight) for term in terms)


def test_weights_are_written_as_short_as_they_can_be() -> None:
    assert render([(0.8, "a"), (-1.0, "b"), (1e-7, "c")]) == "0.8*a - 1*b + 1e-07*c"
    assert render([(-0.8, "a")]) == "-0.8*a"
    assert render([(0.1 + 0.2, "a")]) == "0.30000000000000004*a"
    assert render([]) == ""
