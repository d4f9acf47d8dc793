"""Teacher, student and target network on one U-Net in memory.

The rule: with a LoRA the three share the base's weights, and differ by whether the adapter is on and whose factors it
has; with a whole model the student is a copy. What the U-Net needs is read off its configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorahub.distill.conditioning import Conditioning
from lorahub.distill.consistency import guidance_embedding, update_ema
from lorahub.distill.settings import Settings
from lorahub.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ADAPTER = "lorahub_student"
"""Name of the adapter that is trained, on the pipeline's U-Net."""

_WIDTH = 256
"""Of the embedding of w, as in the models that the LCM paper published."""


def denoise(unet: Any, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> Tensor:
    """What the U-Net answers for x [B, C, h, w'] at timesteps t [B] under condition c, in float32.

    w [B]: guidance that the model is conditioned on; required where its configuration has `time_cond_proj_dim`.
    """
    dtype = unet.dtype
    added = None
    if c.pooled is not None and c.time_ids is not None:
        added = {"text_embeds": c.pooled.to(dtype), "time_ids": c.time_ids.to(dtype)}
    width = unet.config.time_cond_proj_dim
    embedded = None if width is None or w is None else guidance_embedding(w, width).to(dtype)
    answer: Tensor = unet(
        x.to(dtype),
        t,
        c.prompt_embeds.to(dtype),
        timestep_cond=embedded,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return answer.float()


class Denoiser(nn.Module):
    """A U-Net as a module whose forward is `denoise`, so that wrapping it for training leaves the U-Net as it is."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> Tensor:
        return denoise(self.unet, x, t, c, w)


class Networks:
    """The teacher φ, the student θ and the target θ⁻ of one run.

    student: the trainable module (wrap it for training). theta: its trainable parameters by name. theta_minus: their
    moving averages, or None where the target is the student itself. A context manager: at its end the pipeline's U-Net
    is as it was.
    """

    def __init__(self, pipeline: DiffusionPipeline, settings: Settings) -> None:
        """Raises ConflictError when the pipeline carries adapters, UsageError when no module matches `targets`."""
        unet = pipeline.unet
        if getattr(unet, "peft_config", None):
            raise ConflictError(
                f"the pipeline carries adapters ({', '.join(unet.peft_config)}): fuse or delete them first"
            )
        self.base = unet
        self.whole = settings.whole
        self._checkpointing = bool(unet.is_gradient_checkpointing)
        self._required = {name: parameter.requires_grad for name, parameter in unet.named_parameters()}
        unet.requires_grad_(False)
        with torch.random.fork_rng():  # the initial factors are a function of the seed, and nobody else's numbers move
            torch.manual_seed(settings.seed)
            try:
                trained = _copy(unet, settings) if self.whole else _adapted(unet, settings)
            except BaseException:
                self.__exit__()
                raise
        self.student = Denoiser(trained)
        self.theta = {name: value for name, value in self.student.named_parameters() if "lora_" in name or self.whole}
        if settings.gradient_checkpointing:
            trained.enable_gradient_checkpointing()
        self.theta_minus: dict[str, Tensor] | None = None
        if settings.target == "ema":
            self.theta_minus = {name: value.detach().clone() for name, value in self.theta.items()}

    def to(self, device: torch.device | str) -> None:
        """Move all three networks."""
        self.base.to(device)
        self.student.to(device)
        if self.theta_minus is not None:
            self.theta_minus = {name: value.to(device) for name, value in self.theta_minus.items()}

    @torch.no_grad()
    def teacher(self, x: Tensor, t: Tensor, c: Conditioning) -> Tensor:
        """φ: what the base answers; a LoRA is off meanwhile."""
        if self.whole:
            return denoise(self.base, x, t, c)
        self.base.disable_adapters()
        try:
            return denoise(self.base, x, t, c)
        finally:
            self.base.enable_adapters()

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, c: Conditioning, w: Tensor | None = None) -> Tensor:
        """θ⁻: the moving average, or the student without gradients."""
        if self.theta_minus is None:
            return self.student.forward(x, t, c, w)
        answer: Tensor = torch.func.functional_call(self.student, self.theta_minus, (x, t, c, w))
        return answer

    def update_target(self, mu: float) -> None:
        """θ⁻ <- μ θ⁻ + (1 - μ) θ; nothing where the target is the student."""
        if self.theta_minus is not None:
            update_ema(self.theta_minus, self.theta, mu)

    @contextmanager
    def showing(self, keep: str) -> Iterator[Any]:
        """The U-Net with the weights to `keep` (target or student) while the block runs; the student's come back after."""
        theta = {name: value.detach().clone() for name, value in self.theta.items()}
        try:
            yield self.settle(keep)
        finally:
            self.load(theta)

    def settle(self, keep: str) -> Any:
        """The trained U-Net, for good with the weights to `keep`."""
        if keep == "target" and self.theta_minus is not None:
            self.load(self.theta_minus)
        return self.student.unet

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Give the student these weights."""
        for name, parameter in self.theta.items():
            parameter.copy_(values[name])

    def __enter__(self) -> Networks:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.whole:
            _without_adapter(self.base)
            if not self._checkpointing:
                self.base.disable_gradient_checkpointing()
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self._required[name])


def _adapted(unet: Any, settings: Settings) -> Any:
    """The U-Net itself with a fresh LoRA (up = 0, so that the student begins as the teacher), in float32."""
    from peft.tuners.lora import LoraConfig

    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha or settings.rank, target_modules=list(settings.targets)
    )
    try:
        unet.add_adapter(config, ADAPTER)
    except ValueError as error:
        raise UsageError(f"targets: {str(error).splitlines()[0]}") from None
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return unet


def _copy(unet: Any, settings: Settings) -> Any:
    """A trainable float32 copy; where it is to be conditioned on w, with a projection that begins at zero."""
    student = copy.deepcopy(unet).float().requires_grad_(True)
    if (settings.embed_guidance or settings.mode == "guided") and unet.config.time_cond_proj_dim is None:
        embedding = student.time_embedding
        embedding.cond_proj = nn.Linear(_WIDTH, embedding.linear_1.in_features, bias=False)
        nn.init.zeros_(embedding.cond_proj.weight)
        student.register_to_config(time_cond_proj_dim=_WIDTH)
    return student


def _without_adapter(unet: Any) -> None:
    from diffusers.utils import recurse_remove_peft_layers
    from diffusers.utils.peft_utils import delete_adapter_layers

    if ADAPTER in getattr(unet, "peft_config", {}):
        delete_adapter_layers(unet, ADAPTER)
    recurse_remove_peft_layers(unet)
    unet._hf_peft_config_loaded = False
