"""Every class of pipeline from a folder on the disk: the adapter's file checked, put on in three ways, drawn and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lorahub as lh
from lorahub.validate.finding import Severity
from lorahub.validate.page import write_page
from lorahub.validate.picturing import Pictures
from lorahub.validate.running import validate
from tests.validate import pipes
from tests.validate.test_generating import adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
FAMILY = {"sd15": "lcm", "sdxl": "lcm", "sd3": "hyper-sd3", "flux": "hyper-flux"}
LIKE = {"sd15": "sd15-like-", "sdxl": "sdxl-like-", "sd3": "sd3-like-", "flux": "flux1-like-"}


@pytest.mark.parametrize("kind", pipes.MAKERS)
def test_a_combination_on_a_pipeline_of_every_class(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "no-registry"))
    monkeypatch.chdir(tmp_path)
    pipe: Any = pipes.MAKERS[kind]()
    pipe.save_pretrained("base")
    for seed, name in ((1, "style"), (2, "fast")):
        lh.save(adapter(pipe, seed), f"{name}.safetensors", format="diffusers")
    own = ("euler",) if kind in ("sd3", "flux") else ("ddim",)
    drawn = {"seeds": (0, 7), "steps": (2,), "reference_steps": 3, "samplers": own, "height": 32, "width": 32}
    wish = Pictures(("a cat",), folder=Path("pictures"), **drawn)  # type: ignore[arg-type]
    report = validate(
        "0.8*style.safetensors + fast.safetensors",
        base_model="base",
        accelerators=[f"fast.safetensors={FAMILY[kind]}"],
        pictures=wish,
        numeric=True,
        only=("readable", "finite", "base", "zero"),
        device="cpu",
    )
    assert report.base is not None
    assert report.base.startswith(LIKE[kind])
    found = {finding.check: finding.severity for finding in report.findings}
    judged = {name for name in found if name.startswith("pictures.")}
    assert "pictures.distance" in judged
    assert {name: severity for name, severity in found.items() if name not in judged} == dict.fromkeys(
        ("readable", "finite", "base", "zero", "numeric.layers", "numeric.fused", "numeric.baked"), Severity.PASS
    )
    assert report.generation is not None
    facts = report.generation.to_json()
    assert facts["pipeline"] == type(pipe).__name__
    assert [cell["steps"] for cell in facts["cells"] if cell["row"] == "combination"] == [2]
    assert all(Path(picture["path"]).is_file() for cell in facts["cells"] for picture in cell["pictures"])
    assert set(report.numbers["steps"]) == {"base", "runtime", "fused"}
    assert type(pipe).__name__ in write_page(report, "report.html").read_text(encoding="utf-8")
