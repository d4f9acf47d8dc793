"""Ordinary fine-tuning: its loss is the textbook's, its result a style vector that loads, its runs can be taken up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorahub as lh
from lorahub.distill.algorithm import Distillation, Draw
from lorahub.distill.conditioning import unconditional
from lorahub.distill.models import Networks, denoise
from lorahub.distill.settings import TARGETS
from lorahub.distill.solver import Schedule
from lorahub.distill.style import StyleSettings, register, train_style
from lorahub.distill.trainer import Report
from lorahub.errors import UsageError
from lorahub.workspace.core import Workspace
from tests.distill.tiny import Batches, sd, sdxl

QUICK = StyleSettings(rank=2, steps=4, learning_rate=1e-2, drop_prompts=0.5, dtype="fp32")


def textbook(pipeline: Any, settings: StyleSettings, number: int, *, same: bool = False) -> Tensor:
    """The loss of a batch by diffusers' own functions, and the weights of arXiv 2303.09556 in the form of its scripts."""
    scheduler, batch = pipeline.scheduler, Batches(pipeline, same=same).at(number)
    draw = Draw.of(batch.latents, settings, scheduler.config.num_train_timesteps, number)
    condition = unconditional(pipeline, batch.conditioning, "empty").where(draw.dropped, batch.conditioning)
    noisy = scheduler.add_noise(batch.latents, draw.epsilon, draw.t)
    predicted = denoise(pipeline.unet, noisy, draw.t, condition)
    snr = scheduler.alphas_cumprod[draw.t] / (1 - scheduler.alphas_cumprod[draw.t])
    if scheduler.config.prediction_type == "epsilon":
        target, divisor = draw.epsilon, snr
    else:
        target, divisor = scheduler.get_velocity(batch.latents, draw.epsilon, draw.t), snr + 1
    losses = (predicted - target).square().mean((1, 2, 3))
    return (losses * (snr.clamp(max=settings.min_snr) / divisor if settings.min_snr else 1)).mean()


@pytest.mark.parametrize("min_snr", [0.0, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_textbooks(kind: str, min_snr: float, tmp_path: Path) -> None:
    pipeline = sd(prediction_type=kind)
    schedule = Schedule.of(pipeline.scheduler)
    settings = replace(QUICK, min_snr=min_snr, solver_steps=len(schedule.alphas))
    with Networks(pipeline, settings) as networks:
        loop = Distillation(networks, networks.student, schedule, settings)
        for number in range(3):
            batch = Batches(pipeline).at(number)
            nothing = unconditional(pipeline, batch.conditioning, "empty")
            with torch.no_grad():
                loss = loop.loss(batch.latents, batch.conditioning, nothing, number)
                torch.testing.assert_close(loss, textbook(pipeline, settings, number), rtol=2e-4, atol=0)


def test_timesteps_are_drawn_evenly_from_all(tmp_path: Path) -> None:
    settings = replace(QUICK, solver_steps=1000)
    t = Draw.of(torch.zeros(20000, 1, 1, 1), settings, 1000, 0).t
    assert (int(t.min()), int(t.max())) == (0, 999)
    assert torch.histc(t.float(), 10).min() > 1800


def test_it_learns_the_pictures_it_is_shown(tmp_path: Path) -> None:
    """On the same pictures under the same noise, never seen in training, the loss is lower with the style than without."""
    pipeline = sd(prediction_type="v_prediction")
    settings = replace(QUICK, steps=30, rank=8, targets=TARGETS, solver_steps=1000)

    def loss() -> float:
        with torch.no_grad():
            return sum(float(textbook(pipeline, settings, number, same=True)) for number in range(1000, 1012))

    before = loss()
    made = train_style(pipeline, Batches(pipeline, same=True), settings)
    assert loss() == before
    assert made.adapter is not None
    lh.attach(pipeline, made.adapter)
    assert loss() < 0.96 * before


@pytest.mark.parametrize("make", [sd, sdxl])
def test_the_file_is_an_ordinary_lora_with_explicit_alpha(make: Any, tmp_path: Path) -> None:
    pipeline = make()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    output = tmp_path / "style.safetensors"
    settings = replace(QUICK, output=str(output), alpha=6.0, trigger_words=("halftone",))
    made = train_style(pipeline, Batches(pipeline), settings)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    assert made.saved is not None
    assert made.adapter is not None
    assert {name.split(".")[-1] for name in made.adapter.layers} == {"to_q", "to_k", "to_v", "0"}
    assert "lora_alpha" in lh.inspect(output)[0].metadata["lora_adapter_metadata"]
    x, t, c = torch.randn(2, 4, 8, 8), torch.tensor([20, 900]), Batches(pipeline).at(1).conditioning
    with torch.no_grad():
        plain = denoise(pipeline.unet, x, t, c)
        pipeline.load_lora_weights(tmp_path, weight_name=output.name, adapter_name="x")
        loaded = denoise(pipeline.unet, x, t, c)
        pipeline.unload_lora_weights()
        lh.attach(pipeline, made.adapter)
        torch.testing.assert_close(denoise(pipeline.unet, x, t, c), loaded, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, loaded, atol=1e-4)


def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path: Path) -> None:
    pipeline = sd()
    settings = replace(QUICK, checkpoint_every=2, ema_decay=0.5, decay="cosine", min_snr=5.0)
    whole = train_style(pipeline, Batches(pipeline), replace(settings, output=str(tmp_path / "a.safetensors")))
    stopped = replace(settings, output=str(tmp_path / "b.safetensors"))

    def stop(report: Report) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_style(pipeline, Batches(pipeline), stopped, progress=stop)
    torch.manual_seed(1234)
    resumed = train_style(pipeline, Batches(pipeline), stopped, resume=True)
    assert whole.saved is not None
    assert resumed.saved is not None
    assert len(resumed.losses) == 2
    assert resumed.losses == whole.losses[2:]
    assert resumed.saved.data_sha256 == whole.saved.data_sha256
    another = train_style(
        pipeline, Batches(pipeline), replace(settings, seed=1, output=str(tmp_path / "c.safetensors"))
    )
    assert another.saved is not None
    assert another.saved.data_sha256 != whole.saved.data_sha256


def test_the_average_is_kept_where_one_is_asked_for(tmp_path: Path) -> None:
    pipeline = sd()
    plain, lazy = (
        train_style(pipeline, Batches(pipeline), replace(QUICK, ema_decay=decay)).adapter for decay in (0.0, 0.999)
    )
    assert plain is not None
    assert lazy is not None
    assert lh.norm(lazy) < 0.05 * lh.norm(plain)  # it has hardly moved from zero


def test_it_is_registered_as_a_style_with_its_words(tmp_path: Path) -> None:
    pipeline = sd()
    settings = replace(
        QUICK, steps=1, name="halftone", trigger_words=("dots", "ink"), output=str(tmp_path / "h.safetensors")
    )
    made = train_style(pipeline, Batches(pipeline), settings)
    with Workspace.open(tmp_path / "home") as workspace:
        assert register(workspace, made, settings.name) == "halftone:1"
        record = workspace.get("halftone")
        assert (record.kind, record.trigger_words) == ("style", ("dots", "ink"))
        with pytest.raises(UsageError, match="the run wrote no file"):
            register(workspace, replace(made, saved=None), "x")


def test_settings_are_those_of_a_style() -> None:
    assert StyleSettings().targets == ("to_q", "to_k", "to_v", "to_out.0")
    assert StyleSettings.of({"targets": "all"}).targets == TARGETS
    assert len(TARGETS) == 14
    assert StyleSettings.of({"targets": "attention", "rank": 3}) == StyleSettings(rank=3)
    assert StyleSettings.of({"targets": ["conv1"]}).targets == ("conv1",)
    assert (StyleSettings().target, StyleSettings(ema_decay=0.9).target) == ("student", "ema")
    for table, message in (
        ({"targets": "everything"}, "targets: expected a list of modules, attention or all, got 'everything'"),
        ({"w_min": 3.0}, "w_min: no such setting"),
        ({"mode": "lora"}, "mode: no such setting"),
        ({"rnak": 3}, "rnak: no such setting; did you mean rank"),
        ({"drop_prompts": 1.5}, "drop_prompts: expected a number from 0 to 1"),
        ({"name": "x"}, "name: only a file can be registered"),
    ):
        with pytest.raises(UsageError, match=message):
            StyleSettings.of(table)
