"""lorahub formats"""

from __future__ import annotations

import json

from tests.cli.conftest import Run


def test_every_readable_format_has_a_line(run: Run) -> None:
    result = run("formats")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert rows["kohya"].startswith("kohya          read, write  sd-scripts: lora_unet_")
    assert rows["cloneofsimo"].startswith("cloneofsimo    read         cloneofsimo/lora")
    assert "unknown" not in rows


def test_writable_formats_are_those_that_convert_offers(run: Run) -> None:
    facts = json.loads(run("formats", "--json").stdout)
    writable = {row["name"] for row in facts["formats"] if row["writable"]}
    offered = run("convert", "--help").stdout
    assert writable == {"kohya", "diffusers", "peft"}
    assert "[kohya|diffusers|peft]" in offered
