"""Run time, fused and baked are one change; a wrong one is caught, in single layers and in whole denoisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lorahub as lh
from lorahub.algebra.lowrank import LowRank
from lorahub.algebra.recipe import Source
from lorahub.validate import numeric, numeric_layers
from lorahub.validate.finding import Severity
from tests.validate import pipes
from tests.validate.test_generating import adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
SHAPES = {"linear": (6, 5), "conv": (6, 5, 3, 3), "point": (6, 5, 1, 1), "video": (4, 3, 1, 2, 2)}


def vector(seed: int, scale: float = 1.0) -> lh.Adapter:
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for name, shape in SHAPES.items():
        inner = int(torch.tensor(shape[1:]).prod())
        up, down = torch.randn(shape[0], 2, generator=random), torch.randn(2, inner, generator=random)
        layers[f"unet.{name}"] = LowRank.of(up, down, scale=scale, shape=shape)
    return lh.Adapter("unlisted:dotted", layers, recipe=Source(f"vector{seed}"))


@pytest.mark.parametrize("dtype", numeric_layers.TOLERANCES)
def test_every_kind_of_layer_makes_the_requested_change(dtype: str) -> None:
    ticks: list[tuple[int, int]] = []
    found = numeric_layers.check_layers(
        [(0.8, vector(1, 0.5)), (-1.5, vector(2))], dtype=dtype, progress=lambda *each: ticks.append(each)
    )
    assert [finding.severity for finding in found] == [Severity.PASS]
    assert found[0].value is not None
    assert 0 < found[0].value < numeric_layers.TOLERANCES[dtype]
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_dense_is_the_matrix_of_the_combination() -> None:
    one, other = vector(1, 0.5), vector(2)
    up, down = one.layers["unet.conv"].factors(torch.float64)
    more, less = other.layers["unet.conv"].factors(torch.float64)
    wanted = (0.8 * up @ down - 1.5 * more @ less).reshape(6, 5, 3, 3)
    assert torch.allclose(numeric_layers.dense([(0.8, one), (-1.5, other)], "unet.conv"), wanted, rtol=1e-6)


def test_a_wrong_change_is_caught_in_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that reads a convolution's factors transposed, or loses a scale, would do this."""
    right = LowRank.factors

    def lossy(self: LowRank, *given: Any, **named: Any) -> Any:
        up, down = right(self, *given, **named)
        return (up, down / 2) if self.shape == SHAPES["conv"] else (up, down)

    monkeypatch.setattr(LowRank, "factors", lossy)
    found = numeric_layers.check_layers([(1.0, vector(1))])
    assert [(finding.severity, finding.layer) for finding in found] == [(Severity.FAIL, "unet.conv")]
    assert found[0].value == pytest.approx(0.5, abs=0.2)


def test_nothing_to_apply_is_inconclusive() -> None:
    assert numeric_layers.check_layers([(0.0, vector(1))])[0].severity is Severity.INCONCLUSIVE


def test_a_layer_that_changes_nothing_is_no_failure() -> None:
    """Published adapters have layers whose up factor never left zero."""
    idle = {name: LowRank.of(layer.up * 0, layer.down, shape=layer.shape) for name, layer in vector(1).layers.items()}
    nothing = lh.Adapter("unlisted:dotted", idle)
    assert numeric_layers.check_layers([(1.0, nothing)])[0].severity is Severity.INCONCLUSIVE
    some = lh.Adapter("unlisted:dotted", {**vector(1).layers, "unet.conv": idle["unet.conv"]})
    assert [finding.severity for finding in numeric_layers.check_layers([(1.0, some)])] == [Severity.PASS]


@pytest.mark.parametrize("kind", pipes.MAKERS)
def test_a_whole_denoiser_answers_alike_and_is_left_as_it_came(kind: str) -> None:
    pipe = pipes.MAKERS[kind]()
    _, denoiser = numeric.denoiser_of(pipe)
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    found = numeric.check_pipeline(pipe, [(1.0, adapter(pipe, 1)), (0.5, adapter(pipe, 2))], height=32, width=32)
    assert {finding.check: finding.severity for finding in found.findings} == {
        "numeric.fused": Severity.PASS,
        "numeric.baked": Severity.PASS,
    }
    after = denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    steps = found.steps
    assert set(steps) == {"base", "runtime", "fused"}
    assert all(step.seconds > 0 for step in steps.values())
    assert steps["fused"].parameters == steps["base"].parameters < steps["runtime"].parameters


def test_an_effect_below_rounding_is_inconclusive_and_an_overflow_fails() -> None:
    pipe = pipes.sd15()
    weak = numeric.check_pipeline(pipe, [(1e-9, adapter(pipe, 1))]).findings
    assert {finding.severity for finding in weak} == {Severity.INCONCLUSIVE}
    broken = numeric.check_pipeline(pipe, [(1.0, adapter(pipe, 1, size=1e30))]).findings
    assert {finding.severity for finding in broken} == {Severity.FAIL}
