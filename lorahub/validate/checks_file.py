"""What a file tells of itself: can it be read, are its numbers sound, is it whole, is it spelled in one way.

Each check takes one file and yields what it finds; nothing, when the file cannot be judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from lorahub import header
from lorahub.formats import keys
from lorahub.formats.kinds import NOT_ADDITIVE
from lorahub.validate.finding import Finding, failed, passed, unsure, warned
from lorahub.validate.opening import File

SHOWN = 5
"""Layers named one by one; more are counted."""
HALF_MAX = 65504.0
"""The largest fp16 number."""
HALF_NORMAL, HALF_STEP = 2.0**-14, 2.0**-24
"""Below the first, fp16 numbers are multiples of the second."""
ROUNDING = 0.01
"""Share of a factor's norm that rounding may have taken: an estimate, see `_rounding`."""
_HALVES = {"down": "up", "up": "down", "embedding_a": "embedding_b", "embedding_b": "embedding_a"}
_FACTORS = ("F64", "F32", "F16", "BF16")


def readable(file: File) -> Iterator[Finding]:
    """The file is well-formed, and every tensor in it is understood."""
    if file.header is None:
        yield (unsure if "pickle" in file.refused else failed)(file.refused)
    elif file.layout is None:
        yield failed(file.refused)
    elif file.layout.unknown:
        unknown = file.layout.unknown
        yield failed(f"{len(unknown)} tensors are not understood, such as {unknown[0]!r}: they may be lost in use")
    elif not file.layout.modules:
        yield failed("holds no adapter layers")
    else:
        yield passed(f"{file.layout.format}: {len(file.layout.modules)} layers in {len(file.header.tensors)} tensors")


def vector(file: File) -> Iterator[Finding]:
    """The adapter is a vector: it does the same to every base, and can be added and scaled."""
    if file.layout is None:
        return
    strange = {module.kind for module in file.layout.modules} & NOT_ADDITIVE.keys()
    for kind in sorted(strange):
        yield unsure(f"{NOT_ADDITIVE[kind]}: what needs a vector cannot be judged")
    if not strange:
        yield passed("adds low-rank differences, whatever the base's weights are")


def orphans(file: File) -> Iterator[Finding]:
    """Every factor has its other half, and every alpha its factors."""
    if file.header is None:
        return
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for name in file.header.tensors:
        key = keys.read(name)
        if key is not None:
            groups.setdefault((key.place.prefix, key.place.name), {})[key.role] = name
    lonely = []
    for parts in groups.values():
        missing = {other for role, other in _HALVES.items() if role in parts and other not in parts}
        if missing:
            lonely.append(
                (next(parts[role] for role in _HALVES if role in parts), f"its {' and '.join(missing)} factor")
            )
        elif set(parts) == {"alpha"}:
            lonely.append((parts["alpha"], "the factors that it scales"))
    for name, lacks in lonely[:SHOWN]:
        yield failed(f"{name} is there without {lacks}{_more(lonely)}", layer=name)
    if not lonely:
        yield passed("no factor is without its other half")


def finite(file: File) -> Iterator[Finding]:
    """No weight and no alpha is NaN or infinite."""
    if file.header is None:
        return
    bad = [name for name, tensor in _tensors(file) if not torch.isfinite(tensor).all()]
    for name in bad[:SHOWN]:
        yield failed(f"{name} holds NaN or Inf{_more(bad)}", layer=name)
    if not bad:
        yield passed("all weights are finite numbers")


@dataclass
class _Range:
    """What is seen of a file's factors: how large they get, and what fp16's steps near zero have cost."""

    largest: tuple[float, str] = (0.0, "")
    tiny: int = 0
    count: int = 0
    worst: tuple[float, str] = (0.0, "")

    def add(self, name: str, tensor: Tensor) -> None:
        sizes = tensor.float().abs()
        sizes = sizes[torch.isfinite(sizes)]  # what is not is the business of another check
        if not sizes.numel():
            return
        self.largest = max(self.largest, (float(sizes.max()), name))
        if tensor.dtype == torch.float16:
            tiny = int(((sizes < HALF_NORMAL) & (sizes > 0)).sum())
            self.tiny, self.count = self.tiny + tiny, self.count + sizes.numel()
            self.worst = max(self.worst, (_rounding(tiny, float(sizes.norm())), name))


def _rounding(tiny: int, norm: float) -> float:
    """Expected norm of rounding `tiny` numbers to multiples of HALF_STEP, as a share: step / sqrt(12) each."""
    return HALF_STEP / math.sqrt(12) * math.sqrt(tiny) / norm if norm else 0.0


def dtypes(file: File) -> Iterator[Finding]:
    """Weights fit their dtype: none near fp16's largest number, few below its smallest normal one; alphas are fractions."""
    if file.header is None or file.layout is None:
        return
    alphas = {module.parts["alpha"] for module in file.layout.modules if "alpha" in module.parts}
    found: list[Finding] = []
    whole = [name for name in alphas if file.header.tensors[name].dtype.startswith(("I", "U"))]
    if whole:
        kind = file.header.tensors[whole[0]].dtype
        message = f"{len(whole)} alphas are stored as {kind}, which cannot hold a fraction: 0.5 becomes 0"
        found.append(warned(message, layer=min(whole)))
    odd = Counter(info.dtype for name, info in file.header.tensors.items() if name not in alphas)
    low = {name: count for name, count in odd.items() if name not in _FACTORS and not name.startswith(("I", "U"))}
    for name, count in low.items():
        found.append(warned(f"{count} tensors are stored as {name}, which keeps one digit or two"))
    seen = _Range()
    for name, tensor in _tensors(file):
        if name not in alphas:
            seen.add(name, tensor)
    found += _out_of_range(seen)
    yield from found
    if not found:
        share = f", {seen.tiny / seen.count:.1%} of fp16 weights below its normal range" if seen.count else ""
        yield passed(f"the largest weight is {seen.largest[0]:.3g}{share}", value=seen.largest[0], limit=HALF_MAX)


def _out_of_range(seen: _Range) -> Iterator[Finding]:
    size, name = seen.largest
    if size >= HALF_MAX / 2:
        verb = "overflows" if size > HALF_MAX else "is within a factor of two of overflowing"
        yield warned(f"{name} reaches {size:.3g}, which {verb} in fp16", layer=name, value=size, limit=HALF_MAX)
    lost, name = seen.worst
    if lost > ROUNDING:
        message = (
            f"{name} has lost about {lost:.1%} of its norm to fp16, whose numbers below 6e-05 are coarse "
            f"({seen.tiny / seen.count:.0%} of the file's weights are that small): store it as fp32 or bf16"
        )
        yield warned(message, layer=name, value=lost, limit=ROUNDING)


def spellings(file: File) -> Iterator[Finding]:
    """All layers are spelled in one dialect: readers decide by the first key, and lose those of another."""
    if file.layout is None:
        return
    mixed = [note for note in file.layout.notes if note.startswith("spellings: ")]
    for note in mixed:
        yield warned(f"{note.removeprefix('spellings: ')} in one file: readers may know one and lose the other")
    sgm, named = _kohya_dialects(file)
    if sgm and named:
        yield warned(
            f"{sgm} layers have SGM names (input_blocks), {named} those of diffusers (down_blocks): "
            "diffusers keeps only the second kind"
        )
    if not mixed and not (sgm and named):
        yield passed(f"all {len(file.layout.modules)} layers are spelled as {file.layout.format}")


def _kohya_dialects(file: File) -> tuple[int, int]:
    """(layers of a kohya UNet named as SGM names them, as diffusers does)."""
    names = [module.name for module in file.layout.modules if module.prefix == "lora_unet"] if file.layout else []
    return (
        sum(name.startswith(("input_blocks_", "middle_block_", "output_blocks_")) for name in names),
        sum(name.startswith(("down_blocks_", "mid_block_", "up_blocks_")) for name in names),
    )


def hashes(file: File) -> Iterator[Finding]:
    """The weights have the hash that the file's metadata states."""
    if file.header is None:
        return
    claimed = file.header.metadata.get("sshs_model_hash", "").lower().removeprefix("0x")
    if not claimed:
        yield passed("the metadata states no hash")
        return
    came = header.data_sha256(file.path, file.header)
    if came == claimed:
        yield passed("the weights have the hash that the metadata states")
    else:
        yield warned(
            f"the metadata states sha256 {claimed[:12]}, the weights have {came[:12]}: they were changed, or the "
            "metadata copied from another file"
        )


def _tensors(file: File) -> Iterator[tuple[str, Tensor]]:
    """The tensors that hold numbers, one at a time."""
    with safe_open(file.path, framework="pt") as content:
        for name in content.keys():  # noqa: SIM118  it is no dictionary
            tensor = content.get_tensor(name)
            if tensor.is_floating_point():
                # fp8 knows few operations
                yield name, tensor if tensor.dtype.itemsize > 1 else tensor.float()


def _more(found: list[str] | list[tuple[str, str]]) -> str:
    return f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
