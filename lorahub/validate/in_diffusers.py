"""What diffusers takes from a file: its own converters, run on tensors that have shapes but no memory.

What comes out of them is read as any file is read and compared with what the file holds: layers that are gone are lost,
and the scale is that which peft will look up in the patterns diffusers writes for it. The installed version is judged.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorahub import header
from lorahub.bases.model import Base
from lorahub.formats.peft_config import METADATA_KEY
from lorahub.validate.based import family
from lorahub.validate.finding import Finding, passed, unsure, warned
from lorahub.validate.opening import File

LOADERS: Mapping[str, str] = {
    **dict.fromkeys(("sd15", "sd2"), "StableDiffusionLoraLoaderMixin"),
    **dict.fromkeys(("sdxl", "ssd-1b"), "StableDiffusionXLLoraLoaderMixin"),
    **dict.fromkeys(("sd3", "sd35-medium", "sd35-large"), "SD3LoraLoaderMixin"),
    "flux1": "FluxLoraLoaderMixin",
    "qwen-image": "QwenImageLoraLoaderMixin",
    "z-image": "ZImageLoraLoaderMixin",
    **dict.fromkeys(("wan-14b", "wan-1.3b", "wan22-5b"), "WanLoraLoaderMixin"),
}
"""base -> the class in diffusers.loaders whose `lora_state_dict` reads files for it."""
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_KEPT_ALPHAS = ("sd15", "sd2", "sdxl", "ssd-1b")
"""Bases whose converters hand alphas on; those of the others multiply them into the weights."""


class _UNetConfig:
    """The one number that diffusers needs of SDXL's configuration to tell its blocks apart."""

    layers_per_block = 2


@dataclass
class Loaded:
    """canonical layer -> the scale that peft will give it; `refused` is what diffusers says when it raises."""

    scales: dict[str, float] = field(default_factory=dict)
    refused: str = ""


def diffusers(file: File) -> Iterator[Finding]:
    """diffusers loads every layer of the file as it is, at the scale that is meant."""
    if file.header is None or file.layout is None or not file.layout.modules:
        return
    base = file.base
    if base is None or family(base.name) not in LOADERS:
        yield unsure(f"which loader of diffusers reads it is not known: its base is {base.name if base else 'open'}")
        return
    if file.config is not None:
        yield warned("diffusers reads no PEFT folder as it is: `lorahub convert --to diffusers`")
        return
    if any(key.endswith("dora_scale") for key in file.header.tensors):
        yield warned("diffusers drops every dora_scale, so that a DoRA draws as another adapter: `lorahub bake` it")
        return
    expected = _expected(file, base)
    loaded = what_is_loaded(file, base)
    if loaded.refused:
        yield warned(f"diffusers refuses it: {loaded.refused} (`lorahub convert --to diffusers`)")
        return
    lost = [name for name in expected if name not in loaded.scales]
    if lost:
        yield warned(f"diffusers loses {len(lost)} of {len(expected)} layers, such as {lost[0]}", layer=lost[0])
    wrong = {
        name: loaded.scales[name] / scale
        for name, scale in expected.items()
        if scale and name in loaded.scales and abs(loaded.scales[name] / scale - 1) > 1e-3
    }
    if wrong and (family(base.name) in _KEPT_ALPHAS or METADATA_KEY in file.header.metadata):
        name, factor = max(wrong.items(), key=lambda item: abs(item[1] - 1))
        message = (
            f"diffusers gives {len(wrong)} of {len(expected)} layers another scale, {name} {factor:.3g} times its own"
        )
        yield warned(f"{message}: it keeps one alpha for all", layer=name, value=factor, limit=1.0)
    elif not lost:
        yield passed(f"diffusers {_version()} loads all {len(expected)} layers")


def _expected(file: File, base: Base) -> dict[str, float]:
    """canonical layer -> the scale that the file means."""
    assert file.layout is not None and file.header is not None  # noqa: PT018
    expected = {}
    for module in file.layout.modules:
        scale = module.scale
        if scale is None:
            scale = module.scale_with(header.read_scalar(file.path, file.header, module.parts["alpha"]))
        for span in base.find(module.prefix, module.name) or base.find("", module.name) or ():
            expected[span.layer] = scale
    return expected


def what_is_loaded(file: File, base: Base) -> Loaded:
    """The layers that the loader of this base hands to peft, with the scales that peft gives them."""
    loaded = Loaded()
    with _quiet():
        import diffusers.loaders

        loader = getattr(diffusers.loaders, LOADERS[family(base.name)])
        more = {"unet_config": _UNetConfig()} if "XL" in loader.__name__ else {}
        try:
            state, alphas = _converted(loader.lora_state_dict(_shaped(file), **more))
            if not all("lora" in key for key in state):
                raise ValueError(f"the key {next(key for key in state if 'lora' not in key)!r} does not say lora")
            for component in base.components:
                loaded.scales |= _component(component, state, alphas, file, base)
        except Exception as error:  # whatever a converter stumbles over is its answer
            loaded.refused = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return loaded


def _converted(answer: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(tensors, alphas): some loaders give both, some the tensors alone."""
    state, alphas = answer if isinstance(answer, tuple) else (answer, None)
    return state, alphas or {}


def _shaped(file: File) -> dict[str, Tensor]:
    """The file's tensors: shapes on the meta device, and the alphas themselves, which the converters look at."""
    assert file.header is not None and file.layout is not None  # noqa: PT018
    alphas = {module.parts["alpha"] for module in file.layout.modules if "alpha" in module.parts}
    tensors = {}
    for name, info in file.header.tensors.items():
        dtype = _DTYPES.get(info.dtype, torch.float32)
        if name in alphas:
            value = header.read_scalar(file.path, file.header, name)
            tensors[name] = torch.full(info.shape, value, dtype=dtype)
        else:
            tensors[name] = torch.empty(info.shape, dtype=dtype, device="meta")
    return tensors


def _component(
    component: str, state: Mapping[str, Tensor], alphas: Mapping[str, float], file: File, base: Base
) -> dict[str, float]:
    """What `load_lora_adapter` (denoisers) or `_load_lora_into_text_encoder` would make of one component's tensors."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
        get_peft_kwargs,
    )

    inside = {
        key.removeprefix(f"{component}."): value for key, value in state.items() if key.startswith(f"{component}.")
    }
    if not inside:
        return {}
    encoder = component.startswith("text_encoder")
    if encoder:
        inside = convert_state_dict_to_peft(convert_state_dict_to_diffusers(inside))
    elif "lora_A" not in next(iter(inside)):  # the first key decides for all
        inside = convert_unet_state_dict_to_peft(inside)
    ranks = {
        key if encoder else f"^{key}": value.shape[1]
        for key, value in inside.items()
        if "lora_B" in key and value.ndim > 1
    }
    own = {key.removeprefix(f"{component}."): value for key, value in alphas.items() if key.startswith(f"{component}.")}
    config = _metadata(file, component) or get_peft_kwargs(ranks, own or None, inside, is_unet=not encoder)
    return _scales(component, inside, config, base)


def _scales(component: str, inside: Mapping[str, Tensor], config: Mapping[str, Any], base: Base) -> dict[str, float]:
    from peft.utils.other import get_pattern_key

    patterns: tuple[dict[str, Any], ...] = tuple(config.get(f"{kind}_pattern") or {} for kind in ("rank", "alpha"))
    ranks, alphas = patterns
    found: dict[str, float] = {}
    for key in inside:
        module, is_up, _ = key.partition(".lora_B.")
        spans = base.find(component, module) if is_up else None
        if not spans or f"{module}.lora_A.weight" not in inside:
            continue
        rank = ranks.get(get_pattern_key(ranks, module), config["r"])
        alpha = alphas.get(get_pattern_key(alphas, module), config["lora_alpha"])
        scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
        found |= {span.layer: scale for span in spans}
    return found


def _metadata(file: File, component: str) -> dict[str, Any]:
    """The PEFT configuration of a component that diffusers wrote into the file, if it did."""
    assert file.header is not None
    try:
        fields = json.loads(file.header.metadata.get(METADATA_KEY, "{}"))
    except ValueError:
        return {}
    return {
        key.removeprefix(f"{component}."): value for key, value in fields.items() if key.startswith(f"{component}.")
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers warns of its own deprecations, and of what is judged here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)
        try:
            yield
        finally:
            logging.set_verbosity(before)


def _version() -> str:
    from importlib.metadata import version

    return version("diffusers")
