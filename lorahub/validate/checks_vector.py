"""What a vector is worth: does it fit its base, does it use its rank, does every layer do something of a sane strength.

The rule: layers and shapes are judged against the listed bases; strength without the base's weights only by what a file
says of itself, by the layers among themselves, and by a bound that no published adapter comes near.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator

from lorahub import header
from lorahub.bases.model import Base, Span
from lorahub.formats.layout import Module
from lorahub.formats.peft_config import METADATA_KEY
from lorahub.validate.based import known as known_base
from lorahub.validate.checks_file import SHOWN
from lorahub.validate.finding import Finding, failed, passed, unsure, warned
from lorahub.validate.opening import File, Subject
from lorahub.workspace import accelerators

NEARLY_ALL = 0.9
"""A file that fills this share of the layers of its kinds, but not all, probably lost the rest."""
WASTE = 0.5
"""Share of the stored rank that may be unused."""
OUTLIER = 30.0
"""How many times as strong as the typical layer a layer may be, entry by entry."""
STRONG = 0.05
"""Typical entry of ΔW that is taken for a lost alpha: the base's own are about 0.03, ordinary adapters' below 0.006."""
_PUBLISHED_WITH_ALPHA_8 = ("lcm", "sdxl-lightning")
"""Families whose rank-64 files have alpha 8; without it they are 8 times too strong."""


def base(file: File) -> Iterator[Finding]:
    """Every layer exists in the base model, with this shape."""
    found = file.detection
    if found is None or file.layout is None or not file.layout.modules:
        return
    if found.base is None:
        misfits = [line for line in found.evidence if "the nearest" in line and "has none" not in line]
        if found.candidates:
            yield unsure(f"the layers fit {', '.join(found.candidates)} alike: say which with --base")
        elif misfits:
            yield failed(misfits[0])
        else:
            yield unsure(f"the base is not listed, so its layers cannot be compared ({found.evidence[0]})")
        return
    known, bad = file.base, []
    if known is None:
        return
    for module in file.layout.modules:
        spans = known.find(module.prefix, module.name) or known.find("", module.name)
        if spans is None:
            bad.append((module.name, "it has no such layer"))
        elif module.out is not None and module.kind != "norm" and not _fits(module, spans, known):
            bad.append((module.name, f"the file's is {module.out} x {module.inn}"))
    for name, why in bad[:SHOWN]:
        yield failed(f"{name} does not fit {found.base}: {why}", layer=name)
    if found.declared not in (None, found.base):
        yield warned(f"the metadata says {found.declared}, but the layers are those of {found.base}")
    if not bad:
        yield passed(found.evidence[0], value=found.confidence)


def _fits(module: Module, spans: tuple[Span, ...], base: Base) -> bool:
    layer = spans[0].layer
    shape = base.shape(layer)
    if shape is None:
        return True
    rows, columns = sum(span.stop - span.start for span in spans), math.prod(shape[1:])
    wider = layer.endswith("conv_in") and (module.inn or 0) > columns  # inpainting and control variants
    return (module.out, module.inn) in ((rows, columns), (columns, rows)) or wider


def coverage(subject: Subject) -> Iterator[Finding]:
    """No layer is missing among its like: a file that has nearly all of them has lost some."""
    adapter = subject.adapter
    base = None if adapter is None else known_base(adapter.base)
    if adapter is None or base is None:
        return
    components = base.components.values()
    known = Counter(_like(f"{part.name}.{module}") for part in components for module in part.layers)
    touched = Counter(_like(name) for name in adapter.layers)
    few = {like: count for like, count in touched.items() if known[like] and NEARLY_ALL <= count / known[like] < 1}
    for like, count in sorted(few.items()):
        message = f"{known[like] - count} of the {known[like]} layers {like} are missing, while the others are there"
        yield warned(message, layer=like, value=count / known[like], limit=1.0)
    if not few:
        total = sum(known[like] for like in touched)
        yield passed(f"{len(adapter.layers)} of the {total} layers that are like them")


def _like(layer: str) -> str:
    """What the layer shares with those of other blocks: `unet ... attn2.to_k`."""
    component, *path = layer.split(".")
    return f"{component} ... {'.'.join([part for part in path if not part.isdigit()][-2:])}"


def rank(subject: Subject) -> Iterator[Finding]:
    """The stored rank is used: at least half of the columns add to ΔW."""
    measured = subject.measured[0]
    if measured is None or not measured.stored:
        return
    waste = 1 - measured.used / measured.stored
    text = f"{measured.used} of {measured.stored} stored ranks are used"
    if waste <= WASTE:
        yield passed(text, value=waste, limit=WASTE)
        return
    name, layer = max(measured.layers.items(), key=lambda item: item[1].stored - item[1].used)
    message = f"{text}, in {name} {layer.used} of {layer.stored}: `lorahub resize --relative 0.001` loses nothing"
    yield warned(message, layer=name, value=waste, limit=WASTE)


def zero(subject: Subject) -> Iterator[Finding]:
    """Every layer does something."""
    measured = subject.measured[0]
    if measured is None or not measured.layers:
        return
    empty = [name for name, layer in measured.layers.items() if layer.norm == 0]
    if len(empty) == len(measured.layers):
        yield failed(f"all {len(empty)} layers are zero: the adapter does nothing", value=1.0)
    elif empty:
        text = f"{len(empty)} of {len(measured.layers)} layers are zero, such as {empty[0]}"
        yield warned(text, layer=empty[0], value=len(empty) / len(measured.layers), limit=0.0)
    else:
        yield passed(f"none of {len(measured.layers)} layers is zero")


def strength(subject: Subject) -> Iterator[Finding]:
    """No layer is out of all proportion, and the whole is not as strong as the base itself."""
    measured = subject.measured[0]
    if measured is None or not measured.typical:
        return
    typical = measured.typical
    if typical > STRONG:
        yield failed(
            f"the typical entry of ΔW is {typical:.2g}, larger than a base's own weights (about 0.03): alpha was "
            "probably lost, or it is scaled beyond use",
            value=typical,
            limit=STRONG,
        )
    loud = {name: layer.rms / typical for name, layer in measured.layers.items() if layer.rms > OUTLIER * typical}
    for name, times in sorted(loud.items(), key=lambda item: -item[1])[:SHOWN]:
        yield warned(
            f"{name} is {times:.0f} times as strong as the typical layer", layer=name, value=times, limit=OUTLIER
        )
    if typical <= STRONG and not loud:
        yield passed(f"the typical entry of ΔW is {typical:.2g}, norm {measured.norm:.4g}", value=typical, limit=STRONG)


def alpha(file: File) -> Iterator[Finding]:
    """No alpha was lost: where the file or its metadata names one, every layer has it."""
    if file.layout is None or file.header is None:
        return
    modules = [module for module in file.layout.modules if module.rank and module.kind in ("lora", "tucker", "dora")]
    found = [*_partly_lost(file, modules), *_contradicted(file, modules), *_accelerator(file, modules)]
    yield from found
    if not found and modules:
        scales = sorted({round(_scale(file, module), 6) for module in modules})
        span = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
        yield passed(f"every layer has its scale (alpha / rank), {span}")


def _scale(file: File, module: Module) -> float:
    assert file.header is not None
    if module.scale is not None:
        return module.scale
    return module.scale_with(header.read_scalar(file.path, file.header, module.parts["alpha"]))


def _states_alpha(module: Module) -> bool:
    return "alpha" in module.parts or module.alpha is not None


def _partly_lost(file: File, modules: list[Module]) -> Iterator[Finding]:
    """Layers without alpha beside layers whose alpha says that it matters."""
    bare = [module for module in modules if not _states_alpha(module)]
    scales = Counter(round(_scale(file, module), 6) for module in modules if _states_alpha(module))
    if not bare or not scales:
        return
    usual = scales.most_common(1)[0][0]
    if usual != 1 and usual != 0:
        message = (
            f"{len(bare)} of {len(modules)} layers have no alpha and act at scale 1, the others at {usual:g}: "
            f"they are {1 / usual:g} times as strong as meant"
        )
        yield failed(message, layer=bare[0].name, value=1 / usual, limit=1.0)


def _contradicted(file: File, modules: list[Module]) -> Iterator[Finding]:
    """What sd-scripts writes into the metadata, against what the tensors hold."""
    assert file.header is not None
    stated, dim = (_number(file.header.metadata.get(f"ss_network_{what}")) for what in ("alpha", "dim"))
    if stated is None or not dim or stated == dim:
        return
    matching = [module for module in modules if module.rank == dim]
    bare = [module for module in matching if not _states_alpha(module)]
    if bare:
        times = dim / stated
        message = (
            f"the metadata says alpha {stated:g} at rank {dim:g}, {len(bare)} layers have none: "
            f"they are {times:g} times as strong as trained"
        )
        yield failed(message, layer=bare[0].name, value=times, limit=1.0)
    other = [
        module for module in matching if _states_alpha(module) and abs(_scale(file, module) * dim / stated - 1) > 0.01
    ]
    if other:
        factor = _scale(file, other[0]) * dim / stated
        yield warned(
            f"the metadata says alpha {stated:g} at rank {dim:g}, {len(other)} layers have {stated * factor:g}",
            layer=other[0].name,
            value=factor,
            limit=1.0,
        )


def _accelerator(file: File, modules: list[Module]) -> Iterator[Finding]:
    """A published accelerator of rank 64 whose scale of 1/8 is gone."""
    assert file.header is not None
    known = accelerators.recognise([file.path.stem, file.of], file.base.name if file.base else None)
    if known is None or known.family not in _PUBLISHED_WITH_ALPHA_8:
        return
    bare = [module for module in modules if module.rank == 64 and not _states_alpha(module)]
    if bare and METADATA_KEY not in file.header.metadata:
        yield warned(
            f"{known.evidence}, whose rank-64 files were published with alpha 8 as well as 64: this one stores none, and "
            "is 8 times too strong if it was 8",
            value=8.0,
            limit=1.0,
        )


def _number(text: str | None) -> float | None:
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return float(value) if isinstance(value, (int, float)) else None
