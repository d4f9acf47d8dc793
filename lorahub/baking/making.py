"""Bake: adapters and a checkpoint in, a checkpoint out, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.recipe import expression
from lorahub.baking import operands
from lorahub.baking.checking import Check, can_check, check_outputs
from lorahub.baking.planning import Plan, plan
from lorahub.baking.verifying import Rounding, verify
from lorahub.baking.writing import write_file, write_folder
from lorahub.bases.model import Base
from lorahub.checkpoints import Checkpoint, open_checkpoint
from lorahub.errors import UsageError
from lorahub.files.store import replacing

_COARSE = 0.1
"""A note is made when rounding changes ΔW by more than this share of it."""


@dataclass(frozen=True)
class Baked:
    """A checkpoint that was written, read back and compared.

    layers, vectors, dora_layers: how many weights, one-dimensional parameters, and weights by a DoRA changed.
    rounding: what the checkpoint's dtype changed, as a share of ‖ΔW‖, estimated from the rows that were compared.
    left_out: files of the folder that hold unbaked copies of the weights. check: of the outputs, if it was asked for.
    """

    path: Path
    base: str
    into: str
    expression: str
    dtypes: tuple[str, ...]
    layers: int
    vectors: int
    dora_layers: int
    files: int
    size: int
    rounding: float
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    check: Check | None


def bake(
    what: str | Adapter,
    into: str | Path,
    out: str | Path,
    *,
    base: str | Base | None = None,
    variant: str | None = None,
    drop: Collection[str] = (),
    check: bool = False,
    force: bool = False,
    device: str = "cpu",
    allow_pickle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Baked:
    """Write the checkpoint `into` to `out` with adapters added: W + Σ w ΔW + Σ λ (W' - W), in the checkpoint's dtype.

    what: an expression such as `0.8*style + 1.0*lcm`, whose operands may be DoRAs (W' = m (W + ΔW) / ‖W + ΔW‖, arXiv
    2402.09353; λ is their weight), or an adapter in memory. into: a .safetensors file, or a folder of a diffusers pipeline
    or of one model; `out` is of the same kind. variant: which set of weights of a folder (`fp16`) to bake into. drop: of
    `operands.DROPS`. check: also run the model with the adapter baked in and put on, and compare (see `checking`).
    Sums are made in float32 and rounded once; memory is two buffers and one layer's factors, adapters are mapped.

    Raises UsageError, NotFoundError, FileFormatError; BaseMismatchError for layers that the checkpoint lacks; ConflictError
    when `out` exists and `force` is off; VerificationError when a number does not fit the dtype, what is read back is not
    what was asked for, or the check fails; PartialError when the check cannot be made. Then nothing is written.
    """
    checkpoint = open_checkpoint(into, base=base, variant=variant)
    target = Path(out)
    _refuse_place(checkpoint, target)
    request = operands.read(what, checkpoint, base=base, drop=drop, allow_pickle=allow_pickle)
    planned = plan(checkpoint, request, device)
    if check:
        can_check(planned)

    def written_again(path: Path) -> bool:
        return (temporary / path.relative_to(target)).exists()

    with replacing(target, force=force, replaceable=written_again) as temporary:
        placed, left_out = _write(planned, temporary, device, progress)
        rounding = verify(planned, placed)
        checked = check_outputs(planned, temporary) if check else None
        size = sum(file.stat().st_size for file in (temporary, *temporary.rglob("*")) if file.is_file())
    return Baked(
        target,
        checkpoint.base,
        checkpoint.name,
        expression(request.adapter.recipe),
        planned.dtypes,
        len(request.layers),
        len(request.adapter.offsets),
        len(request.doras),
        len(planned.edits),
        size,
        rounding.relative,
        left_out,
        (*checkpoint.notes, *_notes(planned, rounding)),
        checked,
    )


def _write(
    planned: Plan, temporary: Path, device: str, progress: Callable[[int, int], None] | None
) -> tuple[dict[Path, Path], tuple[str, ...]]:
    """Where each file of the checkpoint was written, and what of its folder was left out."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, planned.tensors)

    checkpoint = planned.checkpoint
    if not checkpoint.path.is_dir():
        write_file(planned, checkpoint.path, temporary, device, advance)
        return {checkpoint.path: temporary}, ()
    left_out = write_folder(planned, temporary, device, advance)
    return {file: temporary / file.relative_to(checkpoint.path) for file in checkpoint.files}, left_out


def _refuse_place(checkpoint: Checkpoint, target: Path) -> None:
    """The output is of the same kind as the input, and neither is inside the other."""
    source, place = checkpoint.path.resolve(), target.resolve()
    if source == place or source in place.parents or place in source.parents:
        raise UsageError(f"{target} would lie in or over the base model {checkpoint.path}: choose another name")
    if checkpoint.path.is_dir() and target.suffix == ".safetensors":
        raise UsageError(f"{checkpoint.path} is a folder, so a folder is written: give a name without .safetensors")
    if not checkpoint.path.is_dir() and target.suffix != ".safetensors":
        raise UsageError(f"{target} should end in .safetensors, as what is written does")


def _notes(planned: Plan, rounding: Rounding) -> list[str]:
    if rounding.relative <= _COARSE:
        return []
    return [
        f"rounding to {', '.join(planned.dtypes)} changes ΔW by {rounding.relative:.0%} of its norm: "
        "bake into a checkpoint of a wider dtype if there is one"
    ]
