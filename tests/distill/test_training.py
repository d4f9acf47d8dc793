"""Runs on tiny pipelines: every mode and base, what changes, and what must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorahub.distill import Settings, distill
from lorahub.distill.algorithm import Distillation
from lorahub.distill.conditioning import encode_prompts, unconditional
from lorahub.distill.models import Networks, denoise
from lorahub.distill.settings import MODES
from lorahub.distill.solver import Schedule
from lorahub.distill.trainer import Report
from lorahub.errors import ConflictError, UsageError, VerificationError
from lorahub.pipeline import attach
from tests.distill.tiny import SIDE, TARGETS, Batches, sd, sdxl

QUICK = Settings(rank=2, targets=TARGETS, steps=2, learning_rate=1e-2, solver_steps=10, w_max=5.0)


def state(unet: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in unet.state_dict().items()}


def answer(pipeline: Any, t: int = 499) -> torch.Tensor:
    batch = Batches(pipeline).at(7)
    with torch.no_grad():
        return denoise(pipeline.unet, batch.latents, torch.tensor([t, t]), batch.conditioning)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_and_leaves_the_pipeline_as_it_was(mode: str, tmp_path: Path) -> None:
    pipeline = sd()
    before, said, grads = state(pipeline.unet), answer(pipeline), {p.requires_grad for p in pipeline.unet.parameters()}
    made = distill(pipeline, Batches(pipeline), replace(QUICK, mode=mode))
    assert len(made.losses) == 2
    assert made.losses[0] > 0
    assert same(state(pipeline.unet), before), "the base keeps its weights and its modules"
    assert torch.equal(answer(pipeline), said)
    assert {p.requires_grad for p in pipeline.unet.parameters()} == grads
    assert (made.adapter is None) == (mode == "guided")
    assert (made.unet is not None) == (mode in ("full", "guided"))
    if made.adapter is not None:
        assert any(float(layer.up.abs().sum()) > 0 for layer in made.adapter.layers.values()), "something was learnt"


@pytest.mark.parametrize("target", ["ema", "student"])
def test_the_teacher_is_the_base_bit_for_bit_while_the_student_trains(target: str, tmp_path: Path) -> None:
    pipeline = sd()
    batch = Batches(pipeline).at(0)
    x, t, c = batch.latents, torch.tensor([300, 700]), batch.conditioning
    with torch.no_grad():
        base = denoise(pipeline.unet, x, t, c)
    with Networks(pipeline, replace(QUICK, target=target)) as networks:
        assert torch.equal(networks.target(x, t, c), base), "up = 0: the student begins as the teacher"
        for parameter in networks.theta.values():
            torch.nn.init.normal_(parameter, std=0.1)
        assert torch.equal(networks.teacher(x, t, c), base)
        with torch.no_grad():
            assert not torch.equal(networks.student(x, t, c), base)
        assert torch.equal(networks.target(x, t, c), base) == (target == "ema"), "an average has not moved yet"
        assert all(parameter.requires_grad for parameter in networks.theta.values())


def test_the_target_follows_as_a_moving_average(tmp_path: Path) -> None:
    with Networks(sd(), QUICK) as networks:
        assert networks.theta_minus is not None
        before = {name: value.clone() for name, value in networks.theta_minus.items()}
        for parameter in networks.theta.values():
            parameter.data.add_(1.0)
        networks.update_target(0.75)
        for name, value in networks.theta_minus.items():
            torch.testing.assert_close(value, before[name] + 0.25)


def test_the_loss_falls_where_there_is_one_picture_to_learn(tmp_path: Path) -> None:
    """On a grid of one timestep the target is the picture itself, whatever the noise."""
    pipeline = sd(prediction_type="v_prediction")
    settings = replace(QUICK, mode="lcf", train="model", loss="l2", solver_steps=1, target="student", steps=20)
    made = distill(pipeline, Batches(pipeline, size=1, same=True), settings)
    first, last = sum(made.losses[:5]), sum(made.losses[-5:])
    assert last < 0.85 * first, made.losses


@pytest.mark.parametrize(
    "more",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "use_linear_projection": True},
        {"transformer_layers_per_block": (1, 2), "time_cond_proj_dim": 8},
    ],
    ids=["v", "sd21", "conditioned on w"],
)
def test_other_bases_of_one_encoder(more: dict[str, Any], tmp_path: Path) -> None:
    pipeline = sd(**more)
    made = distill(pipeline, Batches(pipeline), replace(QUICK, output=str(tmp_path / "v.safetensors"), dtype="fp32"))
    assert made.saved is not None


@pytest.mark.parametrize("unconditional", ["auto", "empty"])
def test_sdxl_is_conditioned_on_pooled_embeddings_and_sizes(unconditional: str, tmp_path: Path) -> None:
    pipeline = sdxl()
    output = tmp_path / "xl.safetensors"
    made = distill(pipeline, Batches(pipeline), replace(QUICK, unconditional=unconditional, output=str(output)))
    assert made.saved is not None
    assert made.adapter is not None
    drawn = answer(pipeline)
    pipeline.load_lora_weights(str(output))
    loaded = answer(pipeline)
    assert not torch.equal(loaded, drawn)


def test_the_saved_file_is_what_load_lora_weights_makes_of_it(tmp_path: Path) -> None:
    pipeline, output = sd(), tmp_path / "lcm.safetensors"
    made = distill(pipeline, Batches(pipeline), replace(QUICK, output=str(output), alpha=1.0, dtype="fp32"))
    assert made.adapter is not None
    attach(pipeline, made.adapter)
    expected = answer(pipeline)
    fresh = sd()
    plain = answer(fresh)
    fresh.load_lora_weights(str(tmp_path), weight_name=output.name)
    torch.testing.assert_close(answer(fresh), expected, rtol=1e-5, atol=1e-5)
    assert float((expected - plain).abs().max()) > 1e-3
    config = next(iter(fresh.unet.peft_config.values()))
    assert config.lora_alpha == config.r == 2, "alpha is folded in, and stated"


def test_a_whole_model_becomes_a_vector_by_its_difference(tmp_path: Path) -> None:
    pipeline, output = sd(), tmp_path / "lcm.safetensors"
    settings = replace(QUICK, mode="full", rank=256, targets=("to_q", "conv1"), output=str(output), dtype="fp32")
    made = distill(pipeline, Batches(pipeline), settings)
    assert made.adapter is not None
    assert made.unet is not None
    base, full = dict(pipeline.unet.named_modules()), dict(made.unet.named_modules())
    for name, layer in made.adapter.layers.items():
        module = name.removeprefix("unet.")
        difference = full[module].weight - base[module].weight
        torch.testing.assert_close(layer.dense(), difference.detach(), atol=1e-5, rtol=1e-4)
    assert {name.rpartition(".")[2] for name in made.adapter.layers} == {"to_q", "conv1"}
    written = type(pipeline.unet).from_pretrained(tmp_path / "lcm-run" / "unet")
    assert same(state(written), state(made.unet))


def test_a_guided_student_knows_w(tmp_path: Path) -> None:
    pipeline = sd()
    made = distill(
        pipeline, Batches(pipeline), replace(QUICK, mode="guided", steps=3, output=str(tmp_path / "g.safetensors"))
    )
    unet: Any = type(pipeline.unet).from_pretrained(tmp_path / "g-run" / "unet")
    batch = Batches(pipeline).at(0)
    t = torch.tensor([499, 499])
    with torch.no_grad():
        weak, strong = (denoise(unet, batch.latents, t, batch.conditioning, torch.full((2,), w)) for w in (0.5, 4.0))
    assert not torch.equal(weak, strong)
    assert made.saved is None


def test_bfloat16_trains_in_mixed_precision(tmp_path: Path) -> None:
    pipeline = sd()
    pipeline.unet.to(torch.bfloat16)
    before = state(pipeline.unet)
    made = distill(
        pipeline, Batches(pipeline), replace(QUICK, precision="bf16", output=str(tmp_path / "b.safetensors"))
    )
    assert made.saved is not None
    assert made.adapter is not None
    assert next(iter(made.adapter.layers.values())).stored_dtype == torch.float32, "the factors are trained in full"
    assert same(state(pipeline.unet), before)


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    pipeline = sd()
    with pytest.raises(UsageError, match="fp16"):
        distill(pipeline, Batches(pipeline), replace(QUICK, precision="fp16"))


def test_checkpointing_activations_changes_nothing_else(tmp_path: Path) -> None:
    pipeline = sd()
    plain, recomputed = (
        distill(pipeline, Batches(pipeline), replace(QUICK, gradient_checkpointing=on)).adapter for on in (False, True)
    )
    assert plain is not None
    assert recomputed is not None
    for name, layer in plain.layers.items():
        torch.testing.assert_close(recomputed.layers[name].dense(), layer.dense(), atol=1e-6, rtol=1e-4)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in pipeline.unet.modules())


def test_accumulated_gradients_are_the_mean_over_their_batches(tmp_path: Path) -> None:
    pipeline = sd()
    settings = replace(QUICK, steps=1, loss="l2")
    made = distill(pipeline, Batches(pipeline), replace(settings, accumulation=2))
    number = distilled_loss(pipeline, settings, 0), distilled_loss(pipeline, settings, 1)
    assert made.losses == pytest.approx([sum(number) / 2], rel=1e-5)


def distilled_loss(pipeline: Any, settings: Settings, number: int, *, scale: float = 1.0) -> float:
    """The loss of one batch before any step, worked out without the loop."""
    batch = Batches(pipeline, scale=scale).at(number)
    with Networks(pipeline, settings) as networks:
        distillation = Distillation(networks, networks.student, Schedule.of(pipeline.scheduler), settings)
        nothing = unconditional(pipeline, batch.conditioning, "empty")
        return float(distillation.loss(batch.latents, batch.conditioning, nothing, number).detach())


def test_dropped_prompts_are_seen_as_none(tmp_path: Path) -> None:
    """With every prompt dropped the prompts cannot matter."""
    pipeline = sd()
    dropping = replace(QUICK, drop_prompts=1.0)
    assert distilled_loss(pipeline, dropping, 0, scale=1.0) == distilled_loss(pipeline, dropping, 0, scale=50.0)
    assert distilled_loss(pipeline, QUICK, 0, scale=1.0) != distilled_loss(pipeline, QUICK, 0, scale=50.0)


def test_reports_come_with_a_loss_and_the_time_to_go(tmp_path: Path) -> None:
    pipeline, reports = sd(), []
    distill(pipeline, Batches(pipeline), replace(QUICK, decay="linear"), progress=reports.append)
    last: Report = reports[-1]
    assert [report.step for report in reports] == [1, 2]
    assert last.remaining == 0
    assert reports[0].remaining > 0
    assert [report.learning_rate for report in reports] == [0.01, 0.005]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    pipeline, output = sd(), tmp_path / "out" / "lcm.safetensors"
    before = state(pipeline.unet)
    settings = replace(QUICK, steps=5, checkpoint_every=1, output=str(output))
    with pytest.raises(VerificationError, match=r"the loss is nan at step 3.*checkpoint-000002\.pt"):
        distill(pipeline, Batches(pipeline, poison=2), settings)
    assert [path.name for path in sorted((output.parent / "lcm-run").glob("*.pt"))] == [
        "checkpoint-000001.pt",
        "checkpoint-000002.pt",
    ]
    assert not output.exists()
    assert same(state(pipeline.unet), before), "also after an error"


def test_samples_and_logs_are_written_beside_the_output_and_change_nothing(tmp_path: Path) -> None:
    from PIL import Image

    pipeline, output = sd(), tmp_path / "lcm.safetensors"
    settings = replace(
        QUICK,
        output=str(output),
        sample_every=1,
        sample_prompts=("red star", "blue ring"),
        sample_steps=(1, 2, 4),
        log="tensorboard",
    )
    scheduler = pipeline.scheduler
    made = distill(pipeline, Batches(pipeline), settings)
    with Image.open(tmp_path / "lcm-run" / "samples" / "step-000002.png") as grid:
        assert grid.size == (3 * SIDE, 2 * SIDE)
    assert pipeline.scheduler is scheduler
    assert made.losses == distill(pipeline, Batches(pipeline), QUICK).losses
    assert list((tmp_path / "lcm-run" / "logs").rglob("events.*"))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    pipeline, output = sd(), tmp_path / "lcm.safetensors"
    output.write_bytes(b"")
    with pytest.raises(ConflictError, match="exists already"):
        distill(pipeline, Batches(pipeline), replace(QUICK, output=str(output)))
    with pytest.raises(UsageError, match=r"targets: .*nowhere"):
        distill(pipeline, Batches(pipeline), replace(QUICK, targets=("nowhere",)))
    with pytest.raises(UsageError, match="log: name an output"):
        distill(pipeline, Batches(pipeline), replace(QUICK, log="tensorboard"))
    with pytest.raises(UsageError, match="bitsandbytes"):
        distill(pipeline, Batches(pipeline), replace(QUICK, optimizer="adamw8bit"))
    made = distill(pipeline, Batches(pipeline), QUICK)
    assert made.adapter is not None
    attach(pipeline, made.adapter, name="style")
    with pytest.raises(ConflictError, match="carries adapters \\(style\\)"):
        distill(pipeline, Batches(pipeline), QUICK)


def test_prompts_are_encoded_as_the_pipeline_does(tmp_path: Path) -> None:
    pipeline = sdxl()
    made = encode_prompts(pipeline, ["red star", "blue ring"])
    embeds, _, pooled, _ = pipeline.encode_prompt("blue ring", do_classifier_free_guidance=False)
    torch.testing.assert_close(made.prompt_embeds[1:], embeds)
    assert made.pooled is not None
    assert made.time_ids is not None
    torch.testing.assert_close(made.pooled[1:], pooled)
    assert made.time_ids.tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2
    sized = encode_prompts(pipeline, ["red star"], sizes=[(32, 48, 1, 2, 16, 16)])
    assert sized.time_ids is not None
    assert sized.time_ids.tolist() == [[32, 48, 1, 2, 16, 16]]
