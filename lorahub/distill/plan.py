"""What a run will train and hold in memory, worked out from the tables of the bases: no model is loaded, no torch needed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from lorahub.bases import library
from lorahub.bases.model import Component
from lorahub.distill.settings import Settings
from lorahub.errors import UsageError

_WITHOUT_BIAS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Target:
    """The layers that one entry of `targets` names, and the parameters that their factors have."""

    name: str
    layers: int
    parameters: int


@dataclass(frozen=True)
class Plan:
    """The parameters of a run, and the bytes it holds besides activations, which grow with batch size and resolution.

    parameters: trainable ones. base_parameters: of the U-Net. memory: what -> bytes. file_size: bytes of the vector's
    tensors, as saved.
    """

    base: str
    rank: int
    targets: tuple[Target, ...]
    layers: int
    parameters: int
    base_parameters: int
    memory: dict[str, int]
    file_size: int

    @property
    def total(self) -> int:
        """Bytes of all that is held."""
        return sum(self.memory.values())


def plan(base: str, settings: Settings) -> Plan:
    """What training on a listed base takes under these settings.

    A LoRA of rank r has r (in · kernel + out) parameters for each layer (arXiv 2311.05556, table 1, counts these).
    Raises NotFoundError when no base is called so, UsageError when it has no U-Net or none of the targets.
    """
    found = library.get(base)
    unet = found.components.get("unet")
    if unet is None:
        raise UsageError(f"base: {found.name} has no U-Net; SD 1.x, SD 2.x, SDXL and SSD-1B can be distilled")
    targets = _targets(unet, settings)
    missing = [target.name for target in targets if not target.layers]
    if len(missing) == len(targets):
        raise UsageError(f"targets: {found.name} has no layer called {' or '.join(missing)}")
    factors = sum(target.parameters for target in targets)
    whole = _parameters(unet)
    trainable = whole if settings.whole else factors
    size = {"no": 4, "fp16": 2, "bf16": 2}[settings.precision]
    moments = 2 if settings.optimizer == "adamw8bit" else 8
    memory = {
        "U-Net": whole * size,
        "trainable weights": trainable * 4,
        "gradients": trainable * 4,
        "optimiser": trainable * moments,
        "moving average": trainable * 4 if settings.target == "ema" else 0,
    }
    saved = {"fp32": 4, "fp16": 2, "bf16": 2}[settings.dtype]
    layers = sum(target.layers for target in targets)
    return Plan(found.name, settings.rank, targets, layers, trainable, whole, memory, factors * saved)


def _targets(unet: Component, settings: Settings) -> tuple[Target, ...]:
    """Layers are matched as peft does it, by the name or its end after a dot; each counts for the first that names it."""
    left = dict(unet.layers)
    found = []
    for name in settings.targets:
        shapes = [left.pop(layer) for layer in [*left] if layer == name or layer.endswith(f".{name}")]
        parameters = sum(settings.rank * (shape[0] + prod(shape[1:])) for shape in shapes)
        found.append(Target(name, len(shapes), parameters))
    return tuple(found)


def _parameters(unet: Component) -> int:
    """All parameters of a U-Net: every layer has a bias but the queries, keys and values; normalisations have two vectors."""
    weights = sum(prod(shape) for shape in unet.layers.values())
    biases = sum(shape[0] for name, shape in unet.layers.items() if not name.endswith(_WITHOUT_BIAS))
    return weights + biases + 2 * sum(unet.norms.values())
