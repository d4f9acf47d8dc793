"""Save an adapter: encoded, written under a temporary name, read back, compared with what was asked, then renamed.

The rule: success is reported only for a file that was read again by the ordinary reader and found to be right.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lorahub import bases, header
from lorahub.algebra.adapter import Adapter
from lorahub.algebra.machine import keep_freed_memory
from lorahub.algebra.ranks import RankRule, budget
from lorahub.bases.model import Base
from lorahub.errors import BaseMismatchError, UsageError, VerificationError
from lorahub.files import provenance
from lorahub.files.loading import load_path
from lorahub.files.probe import Distance, distance, identical
from lorahub.files.store import replacing, sync_folder, write_safetensors, write_text
from lorahub.formats.encode import (
    UNLISTED_DOTTED,
    UNLISTED_KOHYA,
    Encoded,
    Entry,
    encode_diffusers,
    encode_kohya,
    encode_peft,
    fused_rows,
    has_flat_clip,
)

FORMAT_NAMES = ("kohya", "diffusers", "peft")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative change of ΔW that rounding to the dtype may make before the file is refused."""


@dataclass(frozen=True)
class Saved:
    """A file that was written and checked.

    error: relative Frobenius distance between ΔW as read back and as asked for (rounding to the file's dtype).
    """

    path: Path
    format: str
    dtype: str
    size: int
    layers: int
    data_sha256: str
    error: float


@header.collector_paused()
def save(
    adapter: Adapter,
    path: str | Path,
    *,
    format: str | None = None,
    dtype: str = "fp16",
    force: bool = False,
    drop: Collection[str] = (),
    base: Base | None = None,
    max_size: int | None = None,
) -> Saved:
    """Write the adapter, read the file back and compare.

    format: kohya (the default where the base allows), diffusers, or peft (a folder). dtype: fp32, fp16 or bf16.
    force: overwrite. drop: parts to leave out when the format cannot hold them: "offsets", "embeddings".
    base: the base's description when it is not a listed one. max_size: bytes that the result must not exceed.
    Raises ConflictError when the file exists, BaseMismatchError when the format cannot spell the layers, UsageError when
    it cannot hold all parts, VerificationError when the values do not survive the dtype; then nothing is written.
    """
    keep_freed_memory()
    target = Path(path)
    if dtype not in DTYPES:
        raise UsageError(f"no such dtype: {dtype!r}; expected one of {', '.join(DTYPES)}")
    found = base or (None if adapter.base.startswith("unlisted") else bases.get(adapter.base))
    chosen = format or default_format(adapter.base, target)
    for part in drop:
        if part not in ("offsets", "embeddings"):
            raise UsageError(f"cannot drop {part!r}: expected offsets or embeddings")
        adapter = replace(adapter, offsets={}) if part == "offsets" else replace(adapter, embeddings={})
    adapter = replace(adapter, layers={name: layer for name, layer in adapter.layers.items() if layer.rank})
    if not (adapter.layers or adapter.offsets or adapter.embeddings):
        raise UsageError(f"{adapter.name} is zero: there is nothing to save")
    output = {"format": chosen, "dtype": dtype, "drop": sorted(drop)}
    files = _encode(adapter, chosen, DTYPES[dtype], found, provenance.metadata(adapter, output))
    with replacing(target, force=force) as temporary:
        hashes = _write(files, temporary)
        error = _check(adapter, temporary, DTYPES[dtype], base or (found.name if found else adapter.base))
        size = sum(file.stat().st_size for file in [temporary, *temporary.rglob("*")] if file.is_file())
        if max_size is not None and size > max_size:
            raise VerificationError(f"the result has {size} bytes, more than the {max_size} allowed")
    return Saved(target, chosen, dtype, size, len(adapter.layers), "+".join(hashes), error)


def default_format(base: str, target: Path) -> str:
    """kohya, which every tool reads; dotted spellings of unlisted bases stay dotted; a name without suffix is a folder."""
    if target.suffix == "":
        return "peft"
    return "diffusers" if base == UNLISTED_DOTTED else "kohya"


def file_budget(adapter: Adapter, size: int, *, format: str, dtype: str) -> RankRule:
    """The rank rule that makes the file as good as it can be with at most `size` bytes, header and metadata included.

    Where the format fuses layers (qkv), one unit of rank costs the rows of the whole fused layer.
    """
    components = {name.partition(".")[0] for name in adapter.layers}
    extra = sum(len(key) + len(json.dumps(value)) for key, value in provenance.metadata(adapter).items()) + 2048
    if format == "peft":
        extra *= len(components)
    if format == "kohya":
        extra += 12_000 * sum(name.startswith("text_encoder") for name in components)  # see encode._marker
    for held in (adapter.offsets, adapter.embeddings) if format == "kohya" else ():
        extra += sum(200 + tensor.nbytes for tensor in held.values())
    if size <= extra:
        raise UsageError(f"{size} bytes are less than the header alone needs ({extra})")
    rows: dict[str, int] = {}
    if format == "kohya" and not adapter.base.startswith("unlisted"):
        rows = fused_rows(bases.get(adapter.base))
    rule = budget(
        size - extra,
        bytes_per_element=DTYPES[dtype].itemsize,
        elements=lambda name, shape: rows.get(name, shape[0]) + shape[1],
    )
    return replace(rule, text=f"budget({size})")


def _encode(
    adapter: Adapter, format: str, dtype: torch.dtype, base: Base | None, extra: Mapping[str, str]
) -> dict[str, Encoded]:
    """Relative file path ("" is the target itself) -> what it will hold."""
    if format not in FORMAT_NAMES:
        raise UsageError(f"cannot write the format {format!r}: expected one of {', '.join(FORMAT_NAMES)}")
    spelled = {UNLISTED_KOHYA: ("kohya",), UNLISTED_DOTTED: ("diffusers", "peft")}.get(adapter.base)
    if spelled and format not in spelled:
        raise BaseMismatchError(
            f"{adapter.name} has a base that is not listed, so it cannot be respelled as {format}: "
            f"save it as {spelled[0]}, or name its base (listed are {', '.join(bases.names())})"
        )
    if format == "kohya":
        encoded = encode_kohya(adapter.layers, adapter.offsets, base, dtype)
        encoded = replace(encoded, entries=encoded.entries + _embedding_entries(adapter.embeddings))
    else:
        held = [part for part in ("offsets", "embeddings") if getattr(adapter, part)]
        if held:
            remedy = "drop them" if adapter.base == UNLISTED_DOTTED else "save as kohya, or drop them"
            raise UsageError(f"{format} files cannot hold the {' and '.join(held)} of {adapter.name}: {remedy}")
        if format == "peft":
            parts = encode_peft(adapter.layers, base, dtype, flat_clip=_clip_is_flat(adapter, base))
            return {name or "model": replace(file, metadata={**extra, **file.metadata}) for name, file in parts.items()}
        encoded = encode_diffusers(adapter.layers, base, dtype)
    return {"": replace(encoded, metadata={**extra, **encoded.metadata})}


def _clip_is_flat(adapter: Adapter, base: Base | None) -> bool:
    """Whether the adapter touches a CLIPTextModel and the installed transformers leaves out its level `text_model`."""
    touched = {name.partition(".")[0] for name in adapter.layers}
    if base is None or not any(has_flat_clip(base.components[name]) for name in touched & base.components.keys()):
        return False
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return not hasattr(CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)), "text_model")


def _embedding_entries(embeddings: Mapping[str, Tensor]) -> tuple[Entry, ...]:
    """Textual-inversion tokens as the bundles that A1111 and OneTrainer read."""
    entries = []
    for name, vectors in embeddings.items():
        token, _, encoder = name.partition("/")
        key = f"bundle_emb.{token}.{encoder or 'string_to_param.*'}"
        entries.append(Entry(((key, tuple(vectors.shape)),), vectors.dtype, partial(_alone, vectors)))
    return tuple(entries)


def _alone(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def _write(files: Mapping[str, Encoded], temporary: Path) -> list[str]:
    """Write what `_encode` planned at a temporary path; returns the data hashes."""
    if list(files) == [""]:
        return [write_safetensors(temporary, files[""])]
    hashes = []
    for part, encoded in sorted(files.items()):  # the order in which they are found again
        folder = temporary / part if len(files) > 1 else temporary
        folder.mkdir(parents=True)
        hashes.append(write_safetensors(folder / "adapter_model.safetensors", encoded))
        write_text(folder / "adapter_config.json", json.dumps(encoded.config, indent=2) + "\n")
        sync_folder(folder)
    return hashes


def _check(asked: Adapter, written: Path, dtype: torch.dtype, base: str | Base) -> float:
    """The relative distance between what was asked and what the ordinary reader finds in the file."""
    found = load_path(written, base=base, hashed=False)
    apart = Distance(0.0, 0.0, "") if identical(asked, found) else distance(asked, found)
    if not apart.relative <= _TOLERANCE[dtype]:  # also refuses NaN
        raise VerificationError(
            f"read back in {str(dtype).removeprefix('torch.')}, ΔW differs by {apart.relative:.2g} of its norm "
            f"(most in {apart.worst_layer}): choose a wider --dtype, or reduce the rank, which balances the factors"
        )
    kept = found.embeddings
    if asked.embeddings.keys() != kept.keys() or not all(
        torch.equal(vectors, kept[name]) for name, vectors in asked.embeddings.items()
    ):
        raise VerificationError("read back, the file lacks embeddings that were to be kept")
    return apart.relative
