"""peft's add_weighted_adapter in its *_svd modes as oracle: it forms ΔW too. And where it leaves the definitions."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from lorahub.algebra import LowRank, fixed
from lorahub.merge import merge
from tests.algebra.making import adapter, dense, random_layer

SHAPES = {"linear": (24, 20), "conv": (16, 8, 3, 3)}
RANK = 4


def ours(scale: float = 1.0) -> list[dict[str, LowRank]]:
    return [
        {name: random_layer(shape, RANK, seed=seed, scale=scale, dtype=torch.float32) for name, shape in SHAPES.items()}
        for seed in (1, 2)
    ]


def peft(mode: str, weights: list[float], *, alpha: int = RANK, **settings: object) -> dict[str, Tensor]:
    """ΔW of a real peft model's merged adapter, at full rank; the factors are those of `ours()`."""
    from peft import LoraConfig, get_peft_model

    net = torch.nn.ModuleDict({"linear": torch.nn.Linear(20, 24), "conv": torch.nn.Conv2d(8, 16, 3)})
    config = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=[*SHAPES])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(net, config, "one")
        model.add_adapter("two", config)
    for which, layers in zip(("one", "two"), ours(), strict=True):
        for name, layer in layers.items():
            module = model.base_model.model[name]
            module.lora_A[which].weight.data.copy_(layer.down.reshape(module.lora_A[which].weight.shape))
            module.lora_B[which].weight.data.copy_(layer.up.reshape(module.lora_B[which].weight.shape))
    model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=mode, svd_rank=16, **settings)
    return {name: model.base_model.model[name].get_delta_weight("both").flatten(1).double() for name in SHAPES}


def merged(method: str, weights: list[float], *, scale: float = 1.0, **settings: object) -> dict[str, Tensor]:
    both = [adapter(str(i), **layers) for i, layers in enumerate(ours(scale))]
    made = merge(both, weights, method, settings, fixed(16), dtype=torch.float64)
    return {name: dense(made.layers[f"unet.{name}"]) for name in SHAPES}


@pytest.mark.parametrize(("mode", "method"), [("ties_svd", "ties"), ("magnitude_prune_svd", "magnitude_prune")])
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_agrees_where_alpha_is_the_rank(mode: str, method: str, density: float) -> None:
    theirs, mine = peft(mode, [0.7, 0.7], density=density), merged(method, [0.7, 0.7], density=density)
    for name in SHAPES:
        torch.testing.assert_close(mine[name], theirs[name], atol=2e-4, rtol=0)


def test_agrees_on_counted_signs_and_unequal_weights() -> None:
    theirs = peft("ties_svd", [0.7, 0.7], density=0.5, majority_sign_method="frequency")
    mine = merged("ties", [0.7, 0.7], density=0.5, elect="count")
    pruned, pruned_here = peft("magnitude_prune_svd", [0.8, -0.5], density=0.5), merged("magnitude_prune", [0.8, -0.5])
    for name in SHAPES:
        torch.testing.assert_close(mine[name], theirs[name], atol=2e-4, rtol=0)
        torch.testing.assert_close(pruned_here[name], pruned[name], atol=2e-4, rtol=0)


def test_peft_elects_signs_without_the_weights() -> None:
    """TIES merges the vectors that are given, so 0.1 * a has a tenth of the votes (as in mergekit); in peft it has all."""
    theirs, mine = peft("ties_svd", [0.1, 1.0], density=0.5), merged("ties", [0.1, 1.0], density=0.5)
    assert float((theirs["linear"] - mine["linear"]).norm() / mine["linear"].norm()) > 0.05


def test_dare_agrees_in_the_mean_over_seeds() -> None:
    count = 30
    theirs, mine = torch.zeros(24, 20).double(), torch.zeros(24, 20).double()
    for seed in range(count):
        torch.manual_seed(seed)
        theirs += peft("dare_ties_svd", [1.0, 1.0], density=0.5)["linear"] / count
        mine += merged("dare_ties", [1.0, 1.0], density=0.5, seed=seed)["linear"] / count
    # Each mean is off by about its deviation over sqrt(count); the deviation of one draw is below its size.
    size = float(merged("dare_ties", [1.0, 1.0], density=0.5)["linear"].norm())
    assert float((theirs - mine).norm()) < 1.5 * size * math.sqrt(2 / count)
    assert float(mine.norm()) == pytest.approx(float(theirs.norm()), rel=0.05)


def test_where_alpha_is_not_the_rank() -> None:
    """peft counts alpha / rank once, as ΔW does, and writes an adapter whose own scale is one."""
    theirs = peft("ties_svd", [1.0, 1.0], alpha=2, density=0.5)
    mine = merged("ties", [1.0, 1.0], scale=2 / RANK, density=0.5)
    for name in SHAPES:
        ratio = float((theirs[name] * mine[name]).sum() / mine[name].square().sum())
        assert ratio == pytest.approx(1.0, abs=1e-3)
