"""lorahub export, import, backup, restore --backup: what they print and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.catalogue import filled as filled
from tests.cli.conftest import Run, script
from tests.cli.test_startup import imported


def test_out_of_one_registry_and_into_another(filled: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("export", "--all", "-o", "all.tar", "--dry-run").stdout.startswith("would have exported 4 versions")
    assert run("export", "--all", "-o", "all.tar").stdout == "exported 4 versions in 4 files (22 B) to all.tar\n"
    assert run("export", "lcm", "-o", "all.tar").exit_code == 6
    monkeypatch.setenv("LORAHUB_HOME", "other")
    assert run("import", "all.tar", "--dry-run").stdout.splitlines()[0] == "would have added evil:1"
    added = ["evil:1", "lcm:1", "style:1", "style:2"]
    assert run("import", "all.tar").stdout.splitlines() == [f"added {reference}" for reference in added]
    assert run("import", "all.tar").stdout == "4 versions were here already\n"
    run("alias", "style:2", "prod")
    kept = "style@prod points elsewhere here: kept (--overwrite takes the archive's)"
    assert run("import", "all.tar").stdout.splitlines()[0] == kept
    assert json.loads(run("import", "all.tar", "--overwrite", "--json").stdout)["merged"] == []
    assert run("show", "style@prod").stdout.startswith("style:1: ")


@pytest.mark.parametrize("arguments", [[], ["lcm", "--all"]])
def test_export_wants_references_or_all(filled: Path, run: Run, arguments: list[str]) -> None:
    result = run("export", *arguments, "-o", "x.tar")
    assert result.exit_code == 2
    assert "either REF... or --all" in result.stderr
    assert not Path("x.tar").exists()


def test_a_list_can_be_exported(filled: Path) -> None:
    names = script("list", "-q", "--kind", "style").stdout
    assert b"exported 1 versions" in script("export", "-", "-o", "x.tar", input=names).stdout


def test_a_damaged_archive_is_one_line_and_exit_code_7(filled: Path, run: Run) -> None:
    Path("bad.tar").write_bytes(b"x" * 2000)
    result = run("import", "bad.tar")
    assert (result.exit_code, result.stdout) == (7, "")
    assert len(result.stderr.splitlines()) == 1


def test_back_up_and_restore(filled: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("backup", "b.tar").stdout.startswith("backed up 4 versions and 0 files")
    assert run("backup", "b.tar").exit_code == 6
    assert run("backup", "b.tar", "--store", "--force").stdout.startswith("backed up 4 versions and 4 files")
    run("rename", "style", "later")
    lines = run("restore", "--backup", "b.tar").stdout.splitlines()
    assert lines[0] == "restored 4 versions and 4 files from b.tar"
    assert lines[1].startswith("the registry as it was is in ")
    assert run("show", "style:2").exit_code == 0
    run("backup", "without.tar")
    monkeypatch.setenv("LORAHUB_HOME", "other")
    result = run("restore", "--backup", "without.tar")
    assert result.exit_code == 8
    assert "4 versions have no file in the store: run `lorahub repair`" in result.stdout.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["search", "style"],
        ["show", "lcm"],
        ["edit", "lcm", "--note", "x"],
        ["tag", "lcm", "x"],
        ["export", "--all", "-o", "x.tar"],
        ["backup"],
        ["config", "show"],
        ["restore", "--list"],
    ],
)
def test_no_command_of_the_catalogue_imports_torch(filled: Path, tmp_path: Path, arguments: list[str]) -> None:
    code, names = imported(tmp_path, *arguments)
    assert code == 0
    assert not {"torch", "numpy", "safetensors", "alembic", "huggingface_hub"} & names
