"""lorahub.open(): the verbs as methods, frozen records out of them, and no weight of imports before it is called."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lorahub as lh
from lorahub.errors import NotFoundError
from lorahub.workspace.adding import add


def test_the_verbs(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    with lh.open(tmp_path / "home") as catalogue:
        catalogue.add([make_adapter(tmp_path / "style.safetensors")])
        assert [adapter.name for adapter in catalogue.list(base="sd15")] == ["style"]
        [record] = catalogue.edit("style", base="sdxl", notes="paper")
        assert record.base == "sdxl"
        assert catalogue.search("pap")[0].latest == record
        catalogue.tag(["style:1"], "a", "b")
        catalogue.untag("style", "a")
        catalogue.alias("style:1", "prod")
        shown = catalogue.show("style@prod")
        assert (shown.record.tags, dict(shown.aliases)) == (("b",), {"prod": 1})
        assert catalogue.lineage("style").root == record.file_sha256
        assert catalogue.duplicates() == ()
        catalogue.unalias("style", "prod")
        assert [move.number for move in catalogue.alias_history("style")] == [1, None]
        assert catalogue.rename("style", "look").name == "look"
        catalogue.export("look", tmp_path / "look.tar")
        catalogue.remove("look")
        assert [record.reference for record in catalogue.trash()] == ["look:1"]
        catalogue.restore("look")
        assert catalogue.backup().versions == 1
        assert catalogue.import_(tmp_path / "look.tar").unchanged == ("look:1",)
        with pytest.raises(NotFoundError):
            catalogue.show("nobody")


def test_records_are_frozen(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    with lh.open(tmp_path / "home") as catalogue:
        add(catalogue, [make_adapter(tmp_path / "style.safetensors")])
        shown = catalogue.show("style")
    with pytest.raises(dataclasses.FrozenInstanceError):
        shown.record.base = "sdxl"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        shown.path = None  # type: ignore[misc]


def test_importing_lorahub_stays_light_and_opening_needs_no_torch(tmp_path: Path) -> None:
    program = f"""
import sys, lorahub
assert not {{"sqlalchemy", "torch", "numpy", "registry"}} & set(sys.modules), "import lorahub"
with lorahub.open({str(tmp_path)!r}) as catalogue:
    assert catalogue.list() == ()
assert not {{"torch", "numpy", "safetensors"}} & set(sys.modules), "lorahub.open"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
