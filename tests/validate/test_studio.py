"""The whole way on the tiny studio, as it is typed: its vectors are drawn, scored and judged, and the verdicts are the
expected ones. What is asserted are verdicts and which of two cells is nearer, never a figure.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import lorahub as lh
from lorahub import header
from lorahub.cli import main
from lorahub.studio import scenes, shipped
from lorahub.validate.cells import COMBINATION, STYLE
from tests.validate import studio

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
PROMPTS = tuple(dict.fromkeys(scenes(8, 11).prompts))
FAST = ("--accelerator", "lcm.safetensors=lcm")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words, prog_name="lorahub")


def absorbed() -> float:
    """The guidance scale that the LCM vector has learnt to do without, 1 + w: the many-step pictures are drawn with it."""
    told = json.loads(header.read(shipped.path("lcm")).metadata["ss_lorahub_training"])
    return 1 + (float(told["w_min"]) + float(told["w_max"])) / 2


@dataclass(frozen=True)
class Answer:
    """What the command said: its exit code, severities by check, and its cells."""

    code: int
    severities: dict[str, str]
    cells: list[dict[str, Any]]

    def away(self, row: str, steps: int) -> float:
        """Mean difference in the scorer's features from the many-step pictures."""
        (cell,) = (cell for cell in self.cells if (cell["row"], cell["steps"]) == (row, steps))
        return float(cell["scores"]["features"]["value"])


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The current folder: a style, the LCM vector, the same with its alpha lost, and the network that scores."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LORAHUB_HOME", str(folder / "no-registry"))
        studio.vectors(folder, "shadow", "lcm")
        # 8 is what the published LCM-LoRAs become when their alpha of 8 at rank 64 is lost.
        lh.save(8 * lh.load("lcm.safetensors"), "lost.safetensors", format="diffusers")
        studio.features(folder / "scorer.pt2")
        yield


@pytest.fixture(scope="module")
def validated() -> Callable[..., Answer]:
    """Runs the command; one folder for all, so that what two runs share is drawn once."""
    drawn = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    drawn += ["--seeds", "0,1,2", "--reference-steps", "25", "--sampler", "ddim", "--guidance", str(absorbed())]
    drawn += ["--base-model", str(studio.PIPELINE), "--feature-model", "scorer.pt2", "--pictures", "pictures"]

    def call(expression: str, steps: str, *more: str) -> Answer:
        result = run("validate", expression, "--steps", steps, *drawn, *more, "--device", "cpu", "--json")
        assert result.stdout, result.output
        report = json.loads(result.stdout)
        worst: dict[str, str] = {}
        for finding in report["findings"]:
            order = ("pass", "warning", "inconclusive", "fail")
            worst[finding["check"]] = max(worst.get(finding["check"], "pass"), finding["severity"], key=order.index)
        return Answer(result.exit_code, worst, report["generation"]["cells"])

    return call


@pytest.fixture(scope="module")
def right(validated: Callable[..., Answer]) -> Answer:
    return validated("shadow.safetensors + lcm.safetensors", "4", *FAST)


def test_style_and_lcm_at_four_steps_pass(right: Answer) -> None:
    assert right.severities["pictures.distance"] == "pass"
    assert "fail" not in right.severities.values()
    assert right.code != 7


def test_lcm_with_its_alpha_lost_fails(right: Answer, validated: Callable[..., Answer]) -> None:
    lost = validated("shadow.safetensors + lost.safetensors", "4", "--accelerator", "lost.safetensors=lcm")
    assert lost.severities["pictures.distance"] == "fail"
    assert lost.code == 7
    assert lost.away(COMBINATION, 4) > right.away(COMBINATION, 4)


def test_a_style_alone_at_two_steps_fails_on_distance(right: Answer, validated: Callable[..., Answer]) -> None:
    alone = validated("shadow.safetensors", "2")
    assert alone.severities["pictures.distance"] == "fail"
    assert alone.code == 7
    assert alone.away(COMBINATION, 2) > right.away(STYLE, 4), "two steps are farther from the many than four"


def test_two_accelerators_warn() -> None:
    studio.vectors(Path(), "lcm")
    Path("lcm.safetensors").rename("another.safetensors")
    studio.vectors(Path(), "lcm")
    names = ("lcm.safetensors=lcm", "another.safetensors=tcd")
    both = [word for name in names for word in ("--accelerator", name)]
    result = run("validate", "shadow.safetensors + lcm.safetensors + another.safetensors", "--only", "accelerators",
                 "--only", "schedulers", *both)  # fmt: skip
    assert result.exit_code == 0, result.output
    first, *doubts, _ = result.stdout.splitlines()
    assert first.split(": ")[1].startswith("warning")
    assert doubts[0].startswith("  warning: accelerators: lcm.safetensors and another.safetensors are two acceleration")
    assert doubts[1] == "  warning: schedulers: lcm.safetensors wants LCMScheduler, another.safetensors TCDScheduler"


@pytest.mark.parametrize("blocks", [False, True])
def test_tune_prints_what_combine_takes(blocks: bool) -> None:
    words = ["--prompt", PROMPTS[0], "--seeds", "0,1", "--reference-steps", "8", "--sampler", "ddim", "--device", "cpu"]
    words += ["--guidance", str(absorbed()), "--steps", "2", "--base-model", str(studio.PIPELINE), *FAST]
    words += ["--score", "features", "--feature-model", "scorer.pt2", "--budget", "12", "--pictures", "tuned"]
    words += ["--per-block"] if blocks else []
    told = run("tune", "0.8*shadow.safetensors + 1*lcm.safetensors", *words, "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["generation"]["plan"]["acceleration"]["scheduler"] == "LCMScheduler"
    assert found["drawn"] == 12
    assert len(found["trials"]) == 4, "12 pictures: with and without the style at many steps, four candidates"
    values = [trial["value"] for trial in found["trials"]]
    assert found["best"] == values.index(min(values))
    shown = run("tune", "0.8*shadow.safetensors + 1*lcm.safetensors", *words)
    command = shlex.split(shown.stdout.splitlines()[-1])
    assert command[:2] == ["lorahub", "combine"]
    name = f"tuned{blocks}.safetensors"
    made = run(*command[1:-1], name)
    assert made.exit_code == 0, made.output
    style, lcm = lh.load("shadow.safetensors"), lh.load("lcm.safetensors")
    chosen = found["trials"][found["best"]]["coefficients"]
    wanted = 0.8 * style
    for block, weight in chosen.items():
        part = block.partition("[")[2].rstrip("]")
        layers = {n: layer for n, layer in lcm.layers.items() if not part or n.startswith(f"{part}.")}
        wanted = wanted + weight * lh.Adapter(lcm.base, layers, recipe=lcm.recipe)
    assert (len(chosen) > 1) is blocks
    assert lh.norm(lh.load(name) - wanted) < 2e-3 * lh.norm(wanted)
