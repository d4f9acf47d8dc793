"""lorahub bases"""

from __future__ import annotations

import json

from lorahub import bases
from tests.cli.conftest import Run


def test_every_base_has_a_line(run: Run) -> None:
    result = run("bases")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in lines] == list(bases.names())
    assert lines[0] == f"{'sd15':14} {bases.get('sd15').title:44} layers: unet 282, text_encoder 72"


def test_json_counts_layers(run: Run) -> None:
    facts = json.loads(run("bases", "--json").stdout)
    sd15 = facts["bases"][0]
    assert sd15["name"] == "sd15"
    assert sd15["components"]["unet"] == len(bases.get("sd15").components["unet"].layers)
    assert any("stable-diffusion-v1-5" in hub_id for hub_id in sd15["hub_ids"])
