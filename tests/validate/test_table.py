"""Of every check in the table: one subject that passes it, and one that fails it and nothing that is not said here.

A check that is added to `checks.CHECKS` without a case here fails the first test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import lorahub as lh
from lorahub.validate import checks
from lorahub.validate.finding import Severity
from lorahub.validate.opening import Subject, open_subject
from tests.validate import files, test_checks as spoilt
from tests.validate.files import Spoil

LCM, TCD = "lcm-lora-sdv1-5.safetensors", "Hyper-SD15-8steps-lora.safetensors"
Make = Callable[[], Subject]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder: two styles and two accelerators; no registry."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("style", "other", LCM[:-12], TCD[:-12])):
        files.sound(Path(), name, seed)


def subject(text: str, **more: object) -> Make:
    return lambda: files.opened(text, **more)


def with_fault(spoil: Spoil) -> Make:
    """A file that is sound but for this."""

    def make() -> Subject:
        tensors, metadata = files.kohya(files.pairs()), dict[str, str]()
        spoil(tensors, metadata)
        return files.opened(files.write(Path("spoilt.safetensors"), tensors, metadata))

    return make


def attentions(count: int) -> Make:
    """The keys of all 16 cross attentions of SD 1.5, or all but a few."""

    def make() -> Subject:
        layers = tuple(name for name in files.SHAPES if name.endswith("attn2.to_k"))
        assert len(layers) == 16
        return files.opened(files.write(Path("keys.safetensors"), files.kohya(files.pairs(layers=layers[:count]))))

    return make


def dotted() -> Subject:
    return files.opened(files.write(Path("dotted.safetensors"), files.dotted(files.pairs())))


def merged(*, forged: bool) -> Make:
    """The sum of the styles as lorahub writes it, or with one factor doubled afterwards."""

    def make() -> Subject:
        lh.save(lh.load("style.safetensors") + lh.load("other.safetensors"), "sum.safetensors", force=True)
        if forged:
            with safe_open("sum.safetensors", "pt") as file:
                metadata = {key: value for key, value in file.metadata().items() if key != "sshs_model_hash"}
            tensors = load_file("sum.safetensors")
            tensors[next(name for name in tensors if name.endswith("lora_up.weight"))] *= 2
            files.write(Path("sum.safetensors"), tensors, metadata)
        return files.opened("sum.safetensors", parents=(Path("style.safetensors"), Path("other.safetensors")))

    return make


@dataclass(frozen=True)
class Case:
    """also: checks that cannot but object to the same fault."""

    passes: Make
    fails: Make
    also: tuple[str, ...] = ()


SOUND = subject("style.safetensors")
TWO = subject("style.safetensors + other.safetensors")
FAST = subject(f"style.safetensors + {LCM}")
BOTH = subject(f"{LCM} + {TCD}")


def drawn_as(*families: str) -> Make:
    """Style and accelerators that are declared by hand."""
    names = ["other.safetensors", TCD][: len(families)]

    def make() -> Subject:
        said = [f"{name}={family}" for name, family in zip(names, families, strict=True)]
        return open_subject(" + ".join(["style.safetensors", *names]), accelerators=said)

    return make


CASES: dict[str, Case] = {
    "readable": Case(SOUND, with_fault(spoilt.strange_key), ("diffusers",)),
    "vector": Case(SOUND, with_fault(spoilt.dora), ("diffusers",)),
    "orphans": Case(SOUND, with_fault(spoilt.only_half), ("readable",)),
    "finite": Case(SOUND, with_fault(spoilt.nan)),
    "dtype": Case(SOUND, with_fault(spoilt.too_small_for_fp16)),
    "spellings": Case(SOUND, with_fault(spoilt.two_spellings), ("diffusers", "comfyui")),
    "hashes": Case(SOUND, with_fault(spoilt.anothers_hash)),
    "base": Case(SOUND, with_fault(spoilt.another_base_claimed)),
    "alpha": Case(SOUND, with_fault(spoilt.alphas_in_the_metadata_only)),
    "coverage": Case(attentions(16), attentions(15)),
    "rank": Case(SOUND, with_fault(spoilt.idle_rank)),
    "zero": Case(SOUND, with_fault(spoilt.idle_layer)),
    "strength": Case(SOUND, with_fault(spoilt.loud)),
    "accelerators": Case(FAST, drawn_as("lcm", "lcm")),
    "schedulers": Case(FAST, BOTH, ("accelerators", "guidance")),
    "guidance": Case(FAST, BOTH, ("accelerators", "schedulers")),
    "balance": Case(TWO, subject("50*style.safetensors + other.safetensors"), ("strength",)),
    "diffusers": Case(SOUND, with_fault(spoilt.ranks_of_their_own)),
    "comfyui": Case(SOUND, dotted),
    "provenance": Case(merged(forged=False), merged(forged=True)),
    "claims": Case(
        subject("style.safetensors", claims="style.safetensors"),
        subject("style.safetensors", claims="0.5*style.safetensors"),
    ),
}


def objections(made: Subject) -> dict[str, Severity]:
    """Checks that fail or warn; what the fault keeps from being judged is none."""
    broken = made.adapter is None or made.measured[0] is None
    fine = {Severity.PASS, Severity.INCONCLUSIVE} if broken else {Severity.PASS}
    return {name: worst for name, worst in files.severities(files.findings(made)).items() if worst not in fine}


def test_every_check_has_its_case() -> None:
    assert CASES.keys() == checks.CHECKS.keys()


@pytest.mark.parametrize("check", CASES)
def test_one_passes_and_one_fails_for_that_reason_alone(check: str) -> None:
    case = CASES[check]
    good = case.passes()
    assert files.severities(files.findings(good))[check] is Severity.PASS
    assert objections(good) == {}
    bad = case.fails()
    found = files.severities(files.findings(bad))[check]
    assert found in ({Severity.INCONCLUSIVE} if check == "vector" else {Severity.WARNING, Severity.FAIL})
    assert objections(bad).keys() - {check} <= {*case.also}
