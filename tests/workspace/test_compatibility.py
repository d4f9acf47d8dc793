"""Whether adapters can and should be added: measures against dense twins, and each reason by itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import lorahub
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.errors import PartialError
from lorahub.workspace.adding import add
from lorahub.workspace.compatibility import compatible
from lorahub.workspace.core import Workspace
from lorahub.workspace.matching import partners
from lorahub.workspace.overlap import pair
from lorahub.workspace.similarity import refresh
from registry import RunSettings
from tests.workspace.conftest import write_adapter


def layer(generator: torch.Generator, out: int, inn: int, rank: int) -> LowRank:
    up = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    down = torch.randn(rank, inn, generator=generator, dtype=torch.float64)
    return LowRank.of(up.float(), down.float(), scale=0.5)


def dense_overlap(one: LowRank, other: LowRank) -> tuple[float, float, int]:
    bases = []
    for item in (one, other):
        u, sigma, vh = torch.linalg.svd(item.dense(torch.float64).flatten(1), full_matrices=False)
        kept = sigma > 1e-5 * sigma[0]
        bases.append((u[:, kept], vh[kept].T))
    out, inn = (float((mine.T @ theirs).square().sum()) for mine, theirs in zip(*bases, strict=True))
    return out, inn, min(bases[0][0].shape[1], bases[1][0].shape[1])


def test_measures_are_those_of_the_dense_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 30, 3, 5), (20, 60, 4, 2), (16, 16, 6, 8)]
    ones = {f"l{i}": layer(generator, out, inn, rank) for i, (out, inn, rank, _) in enumerate(shapes)}
    others = {f"l{i}": layer(generator, out, inn, rank) for i, (out, inn, _, rank) in enumerate(shapes)}
    others["l0"] = others["l0"] + 3 * ones["l0"]  # a shared space, and a rank that is more than it seems:
    ones["l1"] = ones["l1"] + LowRank.of(2 * ones["l1"].up, ones["l1"].down)
    ones["only here"] = layer(generator, 8, 8, 2)
    found = pair("a", "b", Adapter("unlisted:x", ones), Adapter("unlisted:x", others))
    shared = [(ones[name], others[name]) for name in others]
    dense = [dense_overlap(*both) for both in shared]
    count = sum(each[2] for each in dense)
    assert found.overlap_out == pytest.approx(sum(each[0] for each in dense) / count, rel=1e-4)
    assert found.overlap_in == pytest.approx(sum(each[1] for each in dense) / count, rel=1e-4)
    flat = [torch.cat([side.dense(torch.float64).flatten() for side in sides]) for sides in zip(*shared, strict=True)]
    assert found.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(*flat, dim=0)), abs=1e-6)
    whole = torch.cat([flat[0], ones["only here"].dense(torch.float64).flatten()])
    assert found.norms == pytest.approx((float(whole.norm()), float(flat[1].norm())), rel=1e-6)
    assert found.shared_layers == 3


def test_an_adapter_and_itself_overlap_wholly_and_zero_with_nothing() -> None:
    one = Adapter("unlisted:x", {"l": layer(torch.Generator().manual_seed(1), 20, 30, 4)})
    same = pair("a", "b", one, -2 * one)
    assert (same.overlap_out, same.overlap_in, same.cosine) == pytest.approx((1, 1, -1), abs=1e-5)
    nothing = pair("a", "b", one, 0 * one)
    assert (nothing.overlap_out, nothing.cosine, nothing.norms[1]) == (0, None, 0)
    assert pair("a", "b", one, Adapter("unlisted:x", {})).shared_layers == 0


def checks(found: object) -> dict[str, str]:
    return {finding.check: finding.severity for finding in found.findings}  # type: ignore[attr-defined]


def test_other_bases_cannot_be_added(tmp_path: Path) -> None:
    a = str(write_adapter(tmp_path / "a.safetensors"))
    b = str(write_adapter(tmp_path / "b.safetensors", base="sdxl"))
    found = compatible(None, [a, b])
    assert found.can is False
    assert found.should == "no"
    assert "different spaces" in found.findings[0].message
    assert found.pairs == ()


def test_strangers_go_together(tmp_path: Path) -> None:
    a, b = (str(write_adapter(tmp_path / f"{seed}.safetensors", seed=seed)) for seed in (1, 2))
    found = compatible(None, [a, b])
    assert (found.can, found.should, found.findings, found.bases) == (True, "yes", (), ("sd15",))
    assert found.pairs[0].overlap_out < 0.1
    assert found.pairs[0].chance < 0.1


def test_the_angle_and_the_length_are_reasons(tmp_path: Path) -> None:
    one, other = (
        lorahub.load(write_adapter(tmp_path / "a.safetensors", seed=1)),
        lorahub.load(write_adapter(tmp_path / "b.safetensors", seed=2)),
    )
    paths = {}
    for name, vector in {
        "twin": 1.01 * one,
        "part": one + other,
        "against": other - one,
        "faint": 0.01 * other,
    }.items():
        lorahub.save(vector, tmp_path / f"{name}.safetensors", dtype="fp32")
        paths[name] = str(tmp_path / f"{name}.safetensors")
    mine = str(tmp_path / "a.safetensors")
    assert checks(compatible(None, [mine, paths["twin"]])) == {"cosine": "warning"}
    assert checks(compatible(None, [mine, paths["part"]])) == {"cosine": "info"}
    assert checks(compatible(None, [mine, paths["against"]])) == {"cosine": "warning"}
    assert checks(compatible(None, [mine, paths["against"]], weights=[1, -1])) == {"cosine": "info"}
    assert checks(compatible(None, [mine, paths["faint"]])) == {"norm": "warning"}
    assert checks(compatible(None, [mine, paths["faint"]], weights=[0.05, 5])) == {}
    assert compatible(None, [mine, paths["twin"]]).should == "with care"


def test_one_space_to_different_ends(tmp_path: Path) -> None:
    one = lorahub.load(write_adapter(tmp_path / "a.safetensors", seed=1))
    turned = {
        name: LowRank.of(layer.up, torch.stack([layer.down[1], -layer.down[0]])) for name, layer in one.layers.items()
    }
    lorahub.save(Adapter(one.base, turned), tmp_path / "b.safetensors", dtype="fp32")
    found = compatible(None, [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")])
    assert checks(found) == {"overlap": "warning"}
    assert found.pairs[0].overlap_out == pytest.approx(1, abs=1e-3)


def test_schedulers_and_guidance_that_contradict(workspace: Workspace, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        add(workspace, [write_adapter(tmp_path / f"{name}.safetensors", seed=seed)])
    workspace.registry.edit("a", run=RunSettings(scheduler="LCMScheduler", guidance_min=1, guidance_max=2))
    workspace.registry.edit("b", run=RunSettings(scheduler="DDIMScheduler", guidance_min=5))
    found = compatible(workspace, ["a", "b"], read_weights=False)
    assert checks(found) == {"scheduler": "warning", "guidance": "warning"}
    assert "b 5 and more" in found.findings[1].message
    workspace.registry.edit("b", run=RunSettings(scheduler="LCMScheduler", guidance_max=1.5))
    assert compatible(workspace, ["a", "b"], read_weights=False).findings == ()


def test_a_base_that_stays_open_is_not_known(workspace: Workspace, tmp_path: Path) -> None:
    paths = [ambiguous(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    found = compatible(None, paths)
    assert found.can is None
    assert len(found.bases) > 1
    assert checks(found) == {"base": "warning"}
    decided = compatible(None, paths, base=found.bases[0])
    assert decided.can is True
    assert len(decided.pairs) == 1
    with pytest.raises(PartialError, match="say which with --base"):
        partners(workspace, paths[0])


def ambiguous(path: Path, seed: int) -> str:
    """Convolutions that SD 1.5 and SD 2 have alike."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    stem = "lora_unet_down_blocks_0_resnets_0_conv1"
    save_file(
        {
            f"{stem}.lora_up.weight": torch.randn(320, 2, 1, 1, generator=generator),
            f"{stem}.lora_down.weight": torch.randn(2, 320, 3, 3, generator=generator),
        },
        path,
    )
    return str(path)


def test_the_registry_ranks_what_goes_with_one(workspace: Workspace, tmp_path: Path) -> None:
    names = {"lcm-lora-sdv1-5": 1, "style": 2, "twin": 1, "Hyper-SD15-8steps-lora": 3}
    for name, seed in names.items():
        add(workspace, [write_adapter(tmp_path / f"{name}.safetensors", seed=seed, spelling="diffusers")])
    add(workspace, [write_adapter(tmp_path / "other.safetensors", base="sdxl")])
    workspace.registry.edit("twin", kind="style")
    refresh(workspace)
    found = partners(workspace, "lcm-lora-sdv1-5")
    assert [(item.reference, item.should) for item in found.partners] == [
        ("style:1", "yes"),
        ("twin:1", "with care"),
        ("Hyper-SD15-8steps-lora:1", "no"),
    ]
    assert found.partners[1].cosine == pytest.approx(1)
    assert found.partners[0].cosine == pytest.approx(0, abs=0.15)
    assert math.isclose(found.partners[1].norm or 0, lorahub.norm(lorahub.load("twin")), rel_tol=1e-5)
    assert found.unsketched == 0
    assert len(partners(workspace, "lcm-lora-sdv1-5", limit=1).partners) == 1
