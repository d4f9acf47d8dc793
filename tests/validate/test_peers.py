"""Files as other tools' merges write them, with their known faults: caught by what they claim, or by what they lost.

The merges are spelled out here as those tools compute them, so that the tests need none of them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import lorahub as lh
from lorahub.validate.finding import Severity
from tests.validate import files
from tests.validate.files import LAYERS, RANK

FACTORS = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parents a and b, in the current folder; no registry."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    files.sound(Path(), "a", 1)
    files.sound(Path(), "b", 2)


def both() -> list[tuple[str, FACTORS, FACTORS]]:
    one, other = files.pairs(1), files.pairs(2)
    return [(name, one[name], other[name]) for name in LAYERS]


def claimed(path: Path, claim: str) -> list[tuple[Severity, str, float]]:
    found = files.findings(files.opened(path, claims=claim))["claims"]
    return [(finding.severity, finding.message, finding.value or 0.0) for finding in found]


def test_the_sum_itself_is_what_it_claims(tmp_path: Path) -> None:
    exact = {n: (torch.cat([0.8 * u1, u2], 1), torch.cat([d1, d2])) for n, (u1, d1), (u2, d2) in both()}
    path = files.write(tmp_path / "exact.safetensors", files.kohya(exact, alpha=2 * RANK))
    ((severity, message, value),) = claimed(path, "0.8*a.safetensors + b.safetensors")
    assert severity is Severity.PASS
    assert message.startswith("it is 0.8*a.safetensors + b.safetensors: ΔW of 12 layers differs by at most ")
    assert 0 < value < 1e-3


def test_a_linear_merge_of_factors_has_cross_terms(tmp_path: Path) -> None:
    """peft's `linear`: sqrt(w) on each factor, summed factor by factor: (B1 + B2)(A1 + A2)."""
    mixed = {n: (u1 + u2, d1 + d2) for n, (u1, d1), (u2, d2) in both()}
    path = files.write(tmp_path / "linear.safetensors", files.dotted(mixed))
    alone = files.severities(files.findings(files.opened(path)))
    assert Severity.FAIL not in alone.values(), "the file alone shows nothing"
    summary, *layers = claimed(path, "a.safetensors + b.safetensors")
    assert summary[0] is Severity.FAIL
    assert "12 of 12 layers differ" in summary[1]
    assert all(0.8 < value < 1.2 for _, _, value in layers)  # the cross terms are as long as the sum


def test_a_concat_that_keeps_alpha_is_half_as_strong(tmp_path: Path) -> None:
    """sd-scripts' `--concat`: rank 8 from two of rank 4, and the first one's alpha of 4."""
    joined = {n: (torch.cat([u1, u2], 1), torch.cat([d1, d2])) for n, (u1, d1), (u2, d2) in both()}
    path = files.write(tmp_path / "concat.safetensors", files.kohya(joined, alpha=RANK))
    summary, *layers = claimed(path, "a.safetensors + b.safetensors")
    assert summary[0] is Severity.FAIL
    assert summary[1].endswith("everywhere it is 0.5 times that")
    assert all(value == pytest.approx(0.5, rel=1e-3) for _, _, value in layers)


def test_a_concat_with_ratios_on_both_factors(tmp_path: Path) -> None:
    """sd-scripts puts the ratio on both factors, so 0.8 and 0.4 become 0.64 and 0.16, beside the alpha kept."""
    joined = {
        n: (torch.cat([0.8 * u1, 0.4 * u2], 1), torch.cat([0.8 * d1, 0.4 * d2])) for n, (u1, d1), (u2, d2) in both()
    }
    path = files.write(tmp_path / "concat.safetensors", files.kohya(joined, alpha=RANK))
    summary, *layers = claimed(path, "0.8*a.safetensors + 0.4*b.safetensors")
    expected = math.hypot(0.8 - 0.32, 0.4 - 0.08) / math.hypot(0.8, 0.4)  # the two are nearly at right angles
    assert expected == pytest.approx(0.645, abs=1e-3)
    assert all(value == pytest.approx(expected, rel=0.1) for _, _, value in layers)
    assert "everywhere" not in summary[1]


def test_a_merge_with_ratios_on_both_factors_and_cross_terms(tmp_path: Path) -> None:
    """sd-scripts' `merge_lora` without a base: each factor times its ratio, then factor by factor: (Σ r B)(Σ r A)."""
    mixed = {n: (0.5 * u1 + 0.5 * u2, 0.5 * d1 + 0.5 * d2) for n, (u1, d1), (u2, d2) in both()}
    path = files.write(tmp_path / "merged.safetensors", files.kohya(mixed))
    assert Severity.FAIL not in files.severities(files.findings(files.opened(path))).values()
    summary, *layers = claimed(path, "0.5*a.safetensors + 0.5*b.safetensors")
    assert summary[0] is Severity.FAIL
    # 0.25 (B1A1 + B2A2 + B1A2 + B2A1) against 0.5 (B1A1 + B2A2), all four of one length and nearly at right angles
    assert all(value == pytest.approx(math.sqrt(4 / 16) / math.sqrt(2 / 4), rel=0.1) for _, _, value in layers)
    alone = {n: (0.5 * u1, 0.5 * d1) for n, (u1, d1), _ in both()}
    path = files.write(tmp_path / "alone.safetensors", files.kohya(alone))
    assert claimed(path, "0.5*a.safetensors")[0][1].endswith("everywhere it is 0.5 times that")


def test_an_svd_merge_that_clamps_its_factors(tmp_path: Path) -> None:
    """sd-scripts' `svd_merge_lora` cuts UΣ and V at the 0.99 quantile of both, and so changes even what the rank holds."""
    clamped, plain = {}, {}
    for name, (u1, d1), (u2, d2) in both():
        (left, inner), (right, outer) = (
            torch.linalg.qr(each) for each in (torch.cat([u1, u2], 1), torch.cat([d1, d2]).T)
        )
        u, s, vh = torch.linalg.svd(inner @ outer.T)  # of the sum, which has rank 8
        up, down = left @ u * s, vh @ right.T
        most = torch.cat([up.flatten(), down.flatten()]).quantile(0.99)
        clamped[name] = (up.clamp(-most, most), down.clamp(-most, most))
        plain[name] = (up, down)
    path = files.write(tmp_path / "plain.safetensors", files.kohya(plain, alpha=2 * RANK))
    assert claimed(path, "a.safetensors + b.safetensors")[0][0] is Severity.PASS, (
        "rank 8 holds the sum of two of rank 4"
    )
    path = files.write(tmp_path / "svd.safetensors", files.kohya(clamped, alpha=2 * RANK))
    assert Severity.FAIL not in files.severities(files.findings(files.opened(path))).values()
    summary, *_ = claimed(path, "a.safetensors + b.safetensors")
    assert summary[0] is Severity.FAIL
    assert "12 of 12 layers differ" in summary[1]


def test_scaling_applied_twice(tmp_path: Path) -> None:
    """peft's `svd`: the weights are multiplied by alpha / rank, and so is ΔW."""
    half = files.write(tmp_path / "half.safetensors", files.kohya(files.pairs(3), alpha=RANK / 2))
    twice = files.write(tmp_path / "twice.safetensors", files.kohya(files.pairs(3), alpha=RANK / 4))
    assert claimed(twice, "half.safetensors")[0][1].endswith("everywhere it is 0.5 times that")
    assert claimed(half, "half.safetensors")[0][0] is Severity.PASS


def test_a_layer_dropped_and_one_that_came_from_nowhere(tmp_path: Path) -> None:
    lacking = files.pairs(1)
    del lacking[LAYERS[3]]
    found = claimed(files.write(tmp_path / "lacking.safetensors", files.kohya(lacking)), "a.safetensors")
    assert [message for _, message, _ in found[1:]] == [f"unet.{LAYERS[3]} is missing or zero"]
    found = claimed(tmp_path / "a.safetensors", "lacking.safetensors")
    assert [message for _, message, _ in found[1:]] == [f"unet.{LAYERS[3]} is not in what was claimed"]


def test_text_encoder_alphas_stored_as_whole_numbers(tmp_path: Path) -> None:
    tensors = files.kohya(files.pairs(1))
    halved = {name: torch.tensor(0.5).long() if name.endswith("alpha") else value for name, value in tensors.items()}
    found = files.findings(files.opened(files.write(tmp_path / "int.safetensors", halved)))
    assert "cannot hold a fraction" in found["dtype"][0].message
    assert found["zero"][0].severity is Severity.FAIL  # 0.5 became 0


def test_the_lcm_script_that_mixes_keys_and_loses_alpha(tmp_path: Path) -> None:
    """Attention as `.lora.down`, the rest as `lora_A`: diffusers decides by the first key, and alpha is nowhere."""
    feedforward = tuple(name for name in files.SHAPES if name.endswith("ff.net.2"))[:4]
    tensors = files.dotted(files.pairs(1, rank=64, layers=(*LAYERS, *feedforward)))
    renamed = {
        name.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if ".attn" in name else name: value
        for name, value in tensors.items()
    }
    path = files.write(tmp_path / "lcm-lora-sdv1-5.safetensors", renamed)
    found = files.findings(files.opened(path))
    assert files.severities(found)["spellings"] is Severity.PASS  # one family of spellings
    assert found["alpha"][0].severity is Severity.WARNING
    assert "8 times too strong" in found["alpha"][0].message
    renamed["unet.conv_in.lora_A.weight"] = torch.randn(64, 4, 3, 3).half() * 0.02
    renamed["unet.conv_in.lora_B.weight"] = torch.randn(320, 64, 1, 1).half() * 0.02
    found = files.findings(files.opened(files.write(path, renamed)))  # its first key is one of peft's
    assert found["diffusers"][0].severity is Severity.WARNING
    assert found["diffusers"][0].message.startswith("diffusers loses 12 of 17 layers")


def test_peft_folders_and_prefixes_that_diffusers_does_not_read(tmp_path: Path) -> None:
    wrapped = files.dotted(files.pairs(1), "unet.base_model.model.")
    found = files.findings(files.opened(files.write(tmp_path / "wrapped.safetensors", wrapped)))
    assert found["diffusers"][0].severity is Severity.WARNING
    assert "12 of 12 layers" in found["diffusers"][0].message
    folder = files.write(
        tmp_path / "peft" / "adapter_model.safetensors", files.dotted(files.pairs(1), "base_model.model.")
    )
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "target_modules": ["to_q"]}
    (folder.parent / "adapter_config.json").write_text(json.dumps(config))
    found = files.findings(files.opened(folder.parent))
    assert "no PEFT folder" in found["diffusers"][0].message
    assert any("become 4 times as strong as meant" in finding.message for finding in found["comfyui"])


def test_what_lorahub_writes_is_taken_by_both(tmp_path: Path) -> None:
    both = 0.8 * lh.load("a.safetensors") + lh.load("b.safetensors")
    lh.save(lh.truncate(both, lh.energy(0.7)), "fast.safetensors")
    found = files.severities(
        files.findings(files.opened("fast.safetensors", parents=(Path("a.safetensors"), Path("b.safetensors"))))
    )
    assert {name: worst for name, worst in found.items() if worst is not Severity.PASS} == {}


def test_a_failure_where_it_is_meant_for(tmp_path: Path) -> None:
    path = files.write(tmp_path / "dotted.safetensors", files.dotted(files.pairs(1)))
    assert files.severities(files.findings(files.opened(path)))["comfyui"] is Severity.WARNING
    meant = files.severities(files.findings(files.opened(path, targets={"comfyui"})))
    assert meant["comfyui"] is Severity.FAIL
    assert meant["diffusers"] is Severity.PASS
