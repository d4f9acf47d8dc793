"""Every static check has a file that passes, and files that fail it and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorahub.errors import NotFoundError, UsageError
from lorahub.validate import checks
from lorahub.validate.finding import Severity
from tests.validate import files
from tests.validate.files import LAYERS, RANK, Spoil, Tensors

PASS, WARNING, INCONCLUSIVE, FAIL = Severity.PASS, Severity.WARNING, Severity.INCONCLUSIVE, Severity.FAIL
UP, DOWN, ALPHA = (f"{files.stem(LAYERS[0])}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha"))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))


def each(tensors: Tensors, ending: str) -> list[str]:
    return [name for name in tensors if name.endswith(ending)]


def strange_key(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors["what.is.this"] = torch.zeros(3)


def only_half(tensors: Tensors, metadata: dict[str, str]) -> None:
    del tensors[UP]


def only_alpha(tensors: Tensors, metadata: dict[str, str]) -> None:
    del tensors[UP], tensors[DOWN]


def nan(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[UP][3, 1] = torch.nan


def infinite_alpha(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[ALPHA] = torch.tensor(torch.inf)


def whole_alphas(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in each(tensors, ".alpha"):
        tensors[name] = tensors[name].long()


def too_large_for_fp16(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[UP], tensors[DOWN] = tensors[UP].float() * 4e6, tensors[DOWN].float() / 4e6


def too_small_for_fp16(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in each(tensors, "lora_up.weight"):
        tensors[name] = (tensors[name].float() * 1e-5).half()


def eight_bits(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[DOWN] = tensors[DOWN].to(torch.float8_e4m3fn)


def two_spellings(tensors: Tensors, metadata: dict[str, str]) -> None:
    for part, peft in (("lora_up", "lora_B"), ("lora_down", "lora_A")):
        tensors[f"unet.{LAYERS[0]}.{peft}.weight"] = tensors.pop(f"{files.stem(LAYERS[0])}.{part}.weight")
    del tensors[ALPHA]


def anothers_hash(tensors: Tensors, metadata: dict[str, str]) -> None:
    metadata["sshs_model_hash"] = "0" * 64


def no_such_layer(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in (UP, DOWN, ALPHA):
        tensors[name.replace("to_q", "to_x")] = tensors.pop(name)


def another_shape(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[UP] = tensors[UP][:100].clone()


def another_base_claimed(tensors: Tensors, metadata: dict[str, str]) -> None:
    metadata["ss_base_model_version"] = "sdxl_base_v1-0"


def half_the_alphas(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in each(tensors, ".alpha"):
        tensors[name] = torch.tensor(RANK / 8)
    for name in each(tensors, ".alpha")[::2]:
        del tensors[name]


def alphas_in_the_metadata_only(tensors: Tensors, metadata: dict[str, str]) -> None:
    metadata |= {"ss_network_dim": str(RANK), "ss_network_alpha": "0.5"}
    for name in each(tensors, ".alpha"):
        del tensors[name]


def other_alphas_in_the_metadata(tensors: Tensors, metadata: dict[str, str]) -> None:
    metadata |= {"ss_network_dim": str(RANK), "ss_network_alpha": "0.5"}


def idle_rank(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in each(tensors, "lora_up.weight"):
        tensors[name][:, 1:] = 0


def idle_layer(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[UP].zero_()


def idle(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in each(tensors, ".alpha"):
        tensors[name] = torch.tensor(0.0)


def loud_layer(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[UP] *= 100


def loud(tensors: Tensors, metadata: dict[str, str]) -> None:
    for name in each(tensors, "lora_up.weight"):
        tensors[name] *= 64


def ranks_of_their_own(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[ALPHA] = torch.tensor(2.0)


def dora(tensors: Tensors, metadata: dict[str, str]) -> None:
    tensors[f"{files.stem(LAYERS[0])}.dora_scale"] = torch.ones(320, 1)


FAULTS: list[tuple[Spoil, str, Severity, str, set[str]]] = [
    (strange_key, "readable", FAIL, "'what.is.this'", {"diffusers"}),
    (only_half, "orphans", FAIL, "its up factor", {"readable"}),
    (only_alpha, "orphans", FAIL, "the factors that it scales", {"readable", "diffusers"}),
    (nan, "finite", FAIL, "NaN", set()),
    (infinite_alpha, "finite", FAIL, "NaN or Inf", {"diffusers", "alpha"}),
    (whole_alphas, "dtype", WARNING, "12 alphas are stored as I64", set()),
    (too_large_for_fp16, "dtype", WARNING, "overflows in fp16", set()),
    (too_small_for_fp16, "dtype", WARNING, "lost about", set()),
    (eight_bits, "dtype", WARNING, "F8_E4M3", set()),
    (two_spellings, "spellings", WARNING, "1 modules diffusers", {"diffusers", "comfyui"}),
    (anothers_hash, "hashes", WARNING, "were changed", set()),
    (no_such_layer, "base", FAIL, "11 of 12", {"diffusers", "comfyui", "coverage"}),
    (another_shape, "base", FAIL, "100 x 320", {"diffusers", "comfyui", "coverage"}),
    (another_base_claimed, "base", WARNING, "sdxl", set()),
    (half_the_alphas, "alpha", FAIL, "8 times as strong", {"diffusers"}),
    (alphas_in_the_metadata_only, "alpha", FAIL, "8 times as strong", set()),
    (other_alphas_in_the_metadata, "alpha", WARNING, "layers have 4", set()),
    (idle_rank, "rank", WARNING, "12 of 48 stored", set()),
    (idle_layer, "zero", WARNING, "1 of 12 layers are zero", set()),
    (idle, "zero", FAIL, "does nothing", {"rank", "strength"}),
    (loud_layer, "strength", WARNING, "times as strong as the typical layer", set()),
    (loud, "strength", FAIL, "alpha was probably lost", set()),
    (ranks_of_their_own, "diffusers", WARNING, "2 times its own", set()),
    (dora, "vector", INCONCLUSIVE, "DoRA", {"diffusers"}),
]


@pytest.mark.parametrize(
    ("spoil", "check", "severity", "words", "also"), FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_fault_is_found_and_no_other(
    spoil: Spoil, check: str, severity: Severity, words: str, also: set[str], tmp_path: Path
) -> None:
    tensors, metadata = files.kohya(files.pairs()), dict[str, str]()
    spoil(tensors, metadata)
    subject = files.opened(files.write(tmp_path / "spoilt.safetensors", tensors, metadata))
    found = files.findings(subject)
    assert files.severities(found)[check] is severity
    assert any(words in finding.message for finding in found[check]), found[check]
    judged = subject.adapter is not None and subject.measured[0] is not None
    expected = {PASS} if judged else {PASS, INCONCLUSIVE}
    rest = {name: worst for name, worst in files.severities(found).items() if name != check and worst not in expected}
    assert rest.keys() <= also, {name: found[name] for name in rest}


def test_a_sound_file_passes_every_check(tmp_path: Path) -> None:
    found = files.findings(files.opened(files.sound(tmp_path)))
    assert {name: worst for name, worst in files.severities(found).items() if worst is not PASS} == {}
    assert [*found] == [name for name in checks.CHECKS if name != "claims"]


def test_a_layer_that_is_missing_among_its_like(tmp_path: Path) -> None:
    layers = tuple(name for name in files.SHAPES if name.endswith("attn2.to_k"))
    assert len(layers) == 16
    whole = files.write(tmp_path / "whole.safetensors", files.kohya(files.pairs(layers=layers)))
    lacking = files.write(tmp_path / "lacking.safetensors", files.kohya(files.pairs(layers=layers[1:])))
    assert files.severities(files.findings(files.opened(whole)))["coverage"] is PASS
    (finding,) = files.findings(files.opened(lacking))["coverage"]
    assert finding.severity is WARNING
    assert finding.message == "1 of the 16 layers unet ... attn2.to_k are missing, while the others are there"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "too short for a header"), (b"<!DOCTYPE html><html>gone</html>", "HTML"), (b"\x80\x02}q\x00.", "pickle")],
)
def test_a_file_that_is_none_fails_without_an_exception(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(content)
    found = files.findings(files.opened(path))
    assert words in found["readable"][0].message
    assert found["readable"][0].severity in (FAIL, INCONCLUSIVE)
    rest = {worst for name, worst in files.severities(found).items() if name not in ("readable", "balance")}
    assert rest == {INCONCLUSIVE}


def test_a_pickle_is_not_judged(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.bin")
    found = files.findings(files.opened(tmp_path / "a.bin"))
    assert files.severities(found)["readable"] is INCONCLUSIVE


def test_what_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        files.opened(tmp_path / "nothing.safetensors")


def test_checks_are_chosen_by_name() -> None:
    assert checks.chosen(("zero", "finite"), claimed=False) == ("finite", "zero")
    assert "claims" not in checks.chosen((), claimed=False)
    with pytest.raises(UsageError, match="no check 'zeros'"):
        checks.chosen(("zeros",), claimed=False)
    with pytest.raises(UsageError, match="--against"):
        checks.chosen(("claims",), claimed=False)
    assert all(check.holds.endswith(".") and "\n" not in check.holds for check in checks.CHECKS.values())
