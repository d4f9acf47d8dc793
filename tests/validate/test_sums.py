"""Combinations: what their parts do to one another, and whether a merged file's story of its making holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lorahub as lh
from lorahub.validate.finding import Severity
from tests.validate import files
from tests.workspace.conftest import write_adapter

LCM, HYPER = "lcm-lora-sdv1-5.safetensors", "Hyper-SD15-8steps-lora.safetensors"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("style", LCM[:-12], HYPER[:-12], "other")):
        files.sound(Path(), name, seed)


def test_a_style_and_an_accelerator_go_together() -> None:
    found = files.findings(files.opened(f"0.8*style.safetensors + 1.0*{LCM}"))
    assert {name: worst for name, worst in files.severities(found).items() if worst is not Severity.PASS} == {}
    assert {finding.of for finding in found["finite"]} == {"style.safetensors", LCM}
    assert [finding.of for finding in found["rank"]] == [None]


def test_two_accelerators_contradict_one_another() -> None:
    found = files.findings(files.opened(f"{LCM} + {HYPER}"))
    doubts = {name: each[0].message for name, each in found.items() if each[0].severity is Severity.WARNING}
    assert doubts.keys() == {"accelerators", "schedulers", "guidance"}
    assert doubts["accelerators"].startswith(
        f"{LCM} and {HYPER} are two acceleration vectors (lcm, hyper-sd), together at 2"
    )
    assert doubts["schedulers"] == f"{LCM} wants LCMScheduler, {HYPER} DDIMScheduler"
    assert doubts["guidance"].startswith("no guidance suits both: ")
    assert (
        Severity.WARNING not in files.severities(files.findings(files.opened(f"style.safetensors + {HYPER}"))).values()
    )


def test_two_accelerators_in_a_file_that_was_merged_before() -> None:
    lh.save(lh.load(LCM) + lh.load(HYPER), "both.safetensors")
    found = files.findings(files.opened("both.safetensors", parents=(Path(LCM), Path(HYPER))))
    assert files.severities(found)["accelerators"] is Severity.WARNING
    assert "lcm-lora-sdv1-5" in found["accelerators"][0].message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("style.safetensors - copy.safetensors", "cancels it"),
        ("style.safetensors + copy.safetensors", "doubles its effect"),
        ("50*style.safetensors + other.safetensors", "will drown it"),
    ],
)
def test_operands_out_of_balance(text: str, words: str, tmp_path: Path) -> None:
    files.write(Path("copy.safetensors"), files.kohya(files.pairs(0), alpha=3.98))
    found = files.findings(files.opened(text))["balance"]
    assert [finding.severity for finding in found] == [Severity.WARNING]
    assert words in found[0].message


def test_an_operand_that_is_no_vector_leaves_the_sum_unjudged() -> None:
    tensors = files.kohya(files.pairs(5))
    tensors[f"{files.stem(files.LAYERS[0])}.dora_scale"] = torch.ones(320, 1)
    files.write(Path("dora.safetensors"), tensors)
    found = files.findings(files.opened("style.safetensors + dora.safetensors"))
    assert files.severities(found)["rank"] is Severity.INCONCLUSIVE
    assert "DoRA" in found["rank"][0].message
    assert files.severities(found)["balance"] is Severity.FAIL
    assert {finding.of: finding.severity for finding in found["vector"]} == {
        "style.safetensors": Severity.PASS,
        "dora.safetensors": Severity.INCONCLUSIVE,
    }


def test_bases_that_do_not_mix(tmp_path: Path) -> None:
    write_adapter(tmp_path / "two.safetensors", base="sd2")
    found = files.findings(files.opened("style.safetensors + two.safetensors"))
    assert found["balance"][0].severity is Severity.FAIL
    assert "they cannot be added: " in found["balance"][0].message
    assert "different spaces" in found["balance"][0].message


def test_the_story_of_a_merged_file() -> None:
    lh.save(
        lh.truncate(0.8 * lh.load("style.safetensors") + lh.load("other.safetensors"), lh.fixed(4)), "sum.safetensors"
    )
    parents = (Path("style.safetensors"), Path("other.safetensors"))
    (told,) = files.findings(files.opened("sum.safetensors", parents=parents))["provenance"]
    assert told.severity is Severity.PASS
    assert told.message.startswith("truncate(0.8*style + 1*other, rule=fixed(4)) replayed")
    (alone,) = files.findings(files.opened("sum.safetensors"))["provenance"]
    assert alone.severity is Severity.INCONCLUSIVE
    assert "'style'" in alone.message
    with safe_open("sum.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file("sum.safetensors")
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[name] *= 2
    files.write(Path("forged.safetensors"), tensors, metadata)
    found = files.findings(files.opened("forged.safetensors", parents=parents))
    assert found["provenance"][0].severity is Severity.FAIL
    assert found["hashes"][0].severity is Severity.WARNING


def test_a_combination_that_should_have_been_held_against_its_file() -> None:
    lh.save(lh.load("style.safetensors") + lh.load("other.safetensors"), "sum.safetensors")
    (same,) = files.findings(files.opened("style.safetensors + other.safetensors", claims="sum.safetensors"))["claims"]
    assert same.severity is Severity.PASS
    (lost,) = files.findings(files.opened("sum.safetensors", claims="nowhere.safetensors"))["claims"]
    assert lost.severity is Severity.INCONCLUSIVE
