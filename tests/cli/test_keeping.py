"""add, scan, verify, duplicates, missing, repair, gc, db and doctor: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, script


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def loras(home: Path, folder: Path) -> Path:
    """A folder with style.safetensors and lcm.safetensors, written long ago."""
    (folder / "loras").mkdir()
    for name in ("style", "lcm"):
        path = folder / "loras" / f"{name}.safetensors"
        (folder / f"{name}.safetensors").rename(path)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return folder / "loras"


def result_of(run: Run, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["schema"] == 1
    return found


def test_add_prints_reference_and_id(run: Run, loras: Path) -> None:
    result = run("add", loras / "style.safetensors", "--tag", "mine", "--kind", "style")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("added style:1  sha256:")
    assert run("add", loras / "style.safetensors").stdout.startswith("known: style:1  sha256:")
    shown = result_of(run, "list", "--tag", "mine")
    assert [each["latest"]["reference"] for each in shown["adapters"]] == ["style:1"]


def test_add_of_several_does_what_it_can(run: Run, loras: Path) -> None:
    (loras / "bad.safetensors").write_bytes(b"1234")

    result = run("add", loras / "bad.safetensors", loras / "style.safetensors", "--no-weights")

    assert result.exit_code == 8
    added, failed = result.stdout.splitlines()
    assert added.startswith("added style:1")
    assert "bad.safetensors" in failed
    found = result_of(run, "add", loras / "bad.safetensors", loras / "lcm.safetensors", "--dry-run", code=8)
    assert (found["dry_run"], [each["reference"] for each in found["added"]]) == (True, ["lcm"])
    assert run("list", "-q").stdout.split() == ["style:1"]


def test_add_refuses(run: Run, loras: Path, refused: Any) -> None:
    run("add", loras / "lcm.safetensors", "--no-weights")
    assert "no such file" in refused(4, "add", "nothing.safetensors")
    (loras / "bad.safetensors").write_bytes(b"PK\x03\x04" + b"0" * 80)
    assert "ZIP" in refused(1, "add", loras / "bad.safetensors")
    assert "one name" in refused(2, "add", loras / "style.safetensors", loras / "lcm.safetensors", "--name", "x")


def test_scan_and_what_follows_from_it(run: Run, loras: Path) -> None:
    assert run("scan", loras).stdout == f"2 files in {loras}: 2 new, 2 hashed\n"
    assert run("scan").stdout == f"2 files in {loras}: 2 unchanged\n"
    assert run("missing").stdout == "nothing is missing\n"
    (loras / "lcm.safetensors").unlink()
    found = result_of(run, "scan")
    assert (found["missing"], found["skipped"]) == (1, [])
    assert run("missing", "-q").stdout == "lcm:1\n"
    assert result_of(run, "missing")["versions"][0]["last_seen"] == [str(loras / "lcm.safetensors")]
    loras.rename(loras.with_name("unplugged"))
    result = run("scan")
    assert result.exit_code == 8
    assert "nothing is deleted" in result.stdout


def test_scan_in_two_steps(run: Run, loras: Path) -> None:
    assert "2 files are still to be hashed" in run("scan", loras, "--no-hash").stdout
    assert result_of(run, "scan")["hashed"] == 2


def test_verify(run: Run, loras: Path, misused: Any) -> None:
    run("scan", loras)
    assert run("verify", "--all").stdout == "2 of 2 versions are as recorded\n"
    assert run("verify", "style", "--deep").exit_code == 0
    assert "--all" in misused("verify")
    assert "--all" in misused("verify", "style", "--all")
    (loras / "style.safetensors").unlink()
    assert result_of(run, "verify", "style", code=8)["checked"][0]["status"] == "missing"


def test_verify_and_repair_of_a_damaged_blob(run: Run, loras: Path, home: Path) -> None:
    run("add", loras / "style.safetensors", "--no-weights")
    run("scan", loras)
    [blob] = home.glob("store/sha256/*/*")
    blob.chmod(0o644)
    blob.write_bytes(b"\0" * blob.stat().st_size)

    assert result_of(run, "verify", "style", code=7)["checked"][0]["status"] == "damaged"
    assert "lorahub repair --apply" in run("repair").stdout
    assert result_of(run, "repair", "--apply")["steps"][0]["action"] == "restore"
    assert run("verify", "--all").exit_code == 0
    assert run("repair").stdout == "nothing to repair\n"


def test_duplicates(run: Run, loras: Path) -> None:
    shutil.copyfile(loras / "style.safetensors", loras / "again.safetensors")
    assert run("duplicates").stdout == "no duplicates\n"
    run("scan", loras)

    [group] = result_of(run, "duplicates")["groups"]

    assert (group["by"], [each["reference"] for each in group["copies"]]) == ("file", ["again:1", "style:1"])


def test_gc_lists_and_deletes_only_when_told(run: Run, loras: Path, home: Path, misused: Any) -> None:
    run("add", loras / "style.safetensors", "--no-weights")
    assert run("gc", "--grace", "0").stdout == "every stored file is in use\n"
    orphan = home / "store" / "sha256" / "ab" / ("cd" * 31)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"12345")
    os.utime(orphan, (1, 1))

    assert result_of(run, "gc")["blobs"] == [{"sha256": "ab" + "cd" * 31, "size": 5}]
    assert orphan.exists()
    assert "deleted abcdcdcdcdcd" in run("gc", "--apply").stdout
    assert not orphan.exists()
    assert "exclude" in misused("gc", "--apply", "--dry-run")


def test_db(run: Run, loras: Path, home: Path) -> None:
    assert run("db", "path").stdout == f"{home / 'registry.db'}\n"
    assert not home.exists()
    run("add", loras / "style.safetensors", "--no-weights")
    assert result_of(run, "db", "info")["adapters"] == 1
    assert run("db", "check").stdout == "the database is whole\n"
    assert run("db", "upgrade").stdout.startswith("revision ")
    assert Path(run("db", "backup").stdout.strip()).is_file()
    assert run("db", "rebuild").exit_code == 6


def test_a_zeroed_database_names_its_cure(run: Run, loras: Path, home: Path) -> None:
    run("add", loras / "style.safetensors", "--no-weights")
    (home / "registry.db").write_bytes(b"\0" * 9000)

    result = run("list")
    assert (result.exit_code, "lorahub db rebuild" in result.stderr) == (7, True)
    assert any("lorahub db rebuild" in each["what"] for each in result_of(run, "doctor", code=8)["problems"])
    assert "1 adapters" in run("db", "rebuild").stdout
    assert run("list", "-q").stdout == "style:1\n"


def test_doctor(run: Run, loras: Path) -> None:
    assert run("doctor").stdout.endswith("no problem found\n")
    run("scan", loras, "--no-hash")
    found = result_of(run, "doctor", code=8)
    assert [each["remedy"] for each in found["problems"]] == ["lorahub scan"]
    assert found["versions"]["sqlalchemy"]


def test_names_from_strangers_are_escaped(run: Run, loras: Path) -> None:
    (loras / "evil\x1b[31m\n.safetensors").write_bytes(b"1")

    result = run("scan", loras)

    assert result.exit_code == 8
    assert "\x1b" not in result.stdout
    assert all(line.isprintable() for line in result.stdout.splitlines())


def test_header_only_commands_import_no_torch(loras: Path) -> None:
    program = (
        "import sys; from lorahub.cli import main\n"
        "for words in (['scan', sys.argv[1]], ['verify', '--all'], ['repair'], ['gc'], ['doctor'], ['duplicates']):\n"
        "    main(words, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", program, loras], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_as_a_script(loras: Path) -> None:
    done = script("scan", loras)
    assert (done.returncode, done.stderr) == (0, b"")
