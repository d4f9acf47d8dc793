"""What lorahub knows of a base model: the layers an adapter can touch, their shapes, and every name files give them.

A layer is named as diffusers names the module, with its pipeline component in front:
`unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`. That is the canonical name; other names
(`input_blocks.4.1...`, fused `double_blocks.0.img_attn.qkv`) are aliases that stand for rows of canonical layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lorahub.errors import UsageError


def flatten(module: str) -> str:
    """The form in which module names are compared: kohya files replace every dot by an underscore."""
    return module.replace(".", "_")


class Span(NamedTuple):
    """Rows `start` to `stop` of the weight of `layer`; a file layer is a stack of spans, top to bottom."""

    layer: str
    start: int
    stop: int


@dataclass(frozen=True)
class Component:
    """One part of the pipeline (`unet`, `transformer`, `text_encoder`, ...) as an adapter sees it."""

    name: str
    prefixes: tuple[str, ...]
    """How files introduce the component (`unet`, `lora_unet`, `diffusion_model`); the first starting with `lora_` is
    the one kohya files are written with."""
    layers: Mapping[str, tuple[int, ...]]
    """Weight shape of every linear (out, in) and convolution (out, in, *kernel) module, by module name."""
    norms: Mapping[str, int]
    """Length of the weight of every normalisation module."""
    embeddings: Mapping[str, tuple[int, ...]]
    """Weight shape (entries, dim) of every embedding module."""
    aliases: Mapping[str, Mapping[str, tuple[Span, ...]]]
    """dialect -> other module name -> the spans of this component's modules it stands for (module names, no prefix)."""
    kohya_dialect: str
    """The dialect whose names kohya files of this component are written with; "diffusers" is the canonical one."""

    @property
    def kohya_prefix(self) -> str:
        """What kohya files put before the modules of this component.

        Raises:
            UsageError: kohya files have no name for it (the second denoiser of Wan 2.2).
        """
        for prefix in self.prefixes:
            if prefix.startswith("lora_"):
                return prefix
        raise UsageError(f"kohya files cannot name the component {self.name}: write it as a file of its own")


@dataclass(frozen=True)
class Base:
    """A base model: a vector space that adapters live in."""

    name: str
    title: str
    hub_ids: tuple[str, ...]
    """Hub repositories of this architecture, the reference one first."""
    declared_as: tuple[str, ...]
    """Regular expressions (case-insensitive, full match) of what metadata calls it: `sdxl_base_v1-0`, ..."""
    components: Mapping[str, Component]

    def shape(self, layer: str) -> tuple[int, ...] | None:
        """Weight shape of a canonical layer (`unet.conv_in`), or None when the base has no such layer."""
        name, _, module = layer.partition(".")
        component = self.components.get(name)
        if component is None:
            return None
        return component.layers.get(module) or component.embeddings.get(module)

    def find(self, prefix: str, module: str) -> tuple[Span, ...] | None:
        """The canonical spans (layer with component in front) that a file's `module` under `prefix` stands for.

        `module` may be dotted or flattened. An empty prefix searches every component, denoiser first.
        Returns None when no component known by that prefix has such a module.
        """
        key = flatten(module)
        for component in self.components.values():
            if not prefix or prefix in component.prefixes:
                spans = self._index[component.name].get(key)
                if spans is not None:
                    return spans
        return None

    @cached_property
    def _index(self) -> dict[str, dict[str, tuple[Span, ...]]]:
        """component -> flattened module name in any dialect -> canonical spans."""
        index: dict[str, dict[str, tuple[Span, ...]]] = {}
        for component in self.components.values():
            names: dict[str, tuple[Span, ...]] = {}
            for dialect in component.aliases.values():
                for alias, spans in dialect.items():
                    names[flatten(alias)] = tuple(
                        Span(f"{component.name}.{span.layer}", span.start, span.stop) for span in spans
                    )
            rows = {module: shape[0] for module, shape in (component.layers | component.embeddings).items()}  # type: ignore[operator]
            rows |= dict(component.norms)
            for module, length in rows.items():
                names[flatten(module)] = (Span(f"{component.name}.{module}", 0, length),)
            index[component.name] = names
        return index
