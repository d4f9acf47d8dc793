"""Folding loses nothing and keeps the order."""

from __future__ import annotations

import pytest

from lorahub.bases.tables import fold, fold_aliases, unfold, unfold_aliases


def test_equal_blocks_are_written_once() -> None:
    table = {f"blocks.{i}.attn.{name}": (4, 4) for i in range(3) for name in ("to_q", "to_k")}
    folded = fold({"conv_in": (4, 3, 3, 3)} | table)
    assert folded == {"conv_in": (4, 3, 3, 3), "blocks.{0-2}": {"attn.to_q": (4, 4), "attn.to_k": (4, 4)}}


def test_one_layer_a_block_stays_on_one_line() -> None:
    assert fold({f"a.{i}.b.{j}.c": 1 for i in range(2) for j in range(3)}) == {"a.{0-1}.b.{0-2}.c": 1}


def test_unfold_gives_the_table_back_in_order() -> None:
    table = {
        "x": 1,
        "b.0.p": 2,
        "b.0.q": 3,
        "b.1.p": 2,
        "b.1.q": 3,
        "b.2.q": 3,
        "b.2.p": 2,
        "b.4.p": 2,
        "net.0.proj": 5,
        "net.2": 5,
    }
    assert list(unfold(fold(table)).__iter__()) == list(table.items())


def test_a_module_cannot_be_leaf_and_branch() -> None:
    with pytest.raises(ValueError, match="cannot be folded"):
        fold({"a": 1, "a.b": 2})


def test_aliases_share_the_index_of_their_layers() -> None:
    aliases = {f"double_blocks.{i}.qkv": [[f"blocks.{i}.q", 0, 4], [f"blocks.{i}.k", 0, 4]] for i in range(3)}
    folded = fold_aliases(aliases | {"img_in": "x_embedder"})
    assert folded == {
        "img_in": "x_embedder",
        "double_blocks.{0-2}.qkv": [["blocks.{}.q", 0, 4], ["blocks.{}.k", 0, 4]],
    }
    assert dict(unfold_aliases(folded)) == aliases | {"img_in": "x_embedder"}


def test_aliases_of_other_indices_and_broken_runs_are_kept() -> None:
    aliases = {"input_blocks.1.x": "down_blocks.0.x", "layers.0.a": "blocks.0.b", "layers.2.a": "blocks.2.b"}
    assert dict(unfold_aliases(fold_aliases(aliases))) == aliases
