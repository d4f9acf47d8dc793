"""Components of a checkpoint as models in memory, in float32, and what each answers to a fixed input.

The rule: nothing is fetched. A folder says itself how its models are built; for a single file the published
configuration of its base does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorahub.bases.configs import RECIPES, Part
from lorahub.checkpoints import Checkpoint, open_checkpoint
from lorahub.errors import PartialError
from lorahub.quiet import quiet


def loadable(checkpoint: Checkpoint, component: str) -> str:
    """Why the component cannot be built or run; empty when it can."""
    if checkpoint.path.is_dir() and (_folder(checkpoint, component, checkpoint.path) / "config.json").is_file():
        kind = _class_name(_folder(checkpoint, component, checkpoint.path))
    elif (part := _part(checkpoint, component)) is not None:
        kind = part.model.partition(":")[2]
    else:
        return f"{checkpoint.name} does not say how its {component} is built, and its base is not listed"
    if kind not in _INPUTS:
        return f"no input is known for a {kind or 'model without a class'} ({component})"
    return ""


def loaded(checkpoint: Checkpoint, component: str, path: Path) -> nn.Module:
    """The component from `path`: the checkpoint's own, or where it was written again."""
    with _silent():
        folder = _folder(checkpoint, component, path)
        if path.is_dir() and (folder / "config.json").is_file():
            return _from_folder(checkpoint, component, folder)
        part = _part(checkpoint, component)
        assert part is not None, "asked for before"
        return built(open_checkpoint(path, base=checkpoint.described), part)


def answer(model: nn.Module) -> Tensor:
    """What the model answers to a seeded input, float32."""
    with torch.no_grad():
        kind = next(name.__name__ for name in type(model).__mro__ if name.__name__ in _INPUTS)
        return _INPUTS[kind](model, torch.Generator().manual_seed(0)).float()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Neither progress bars of the libraries nor their own deprecations."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _folder(checkpoint: Checkpoint, component: str, path: Path) -> Path:
    return path / component if (checkpoint.path / component).is_dir() else path


def _class_name(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config.get("_class_name") or next(iter(config.get("architectures") or [""])))
    except (ValueError, AttributeError):
        return ""


def _part(checkpoint: Checkpoint, component: str) -> Part | None:
    recipe = next((recipe for recipe in RECIPES if recipe.name == checkpoint.base), None)
    return next((part for part in recipe.parts if part.name == component), None) if recipe else None


def _from_folder(checkpoint: Checkpoint, component: str, folder: Path) -> nn.Module:
    import diffusers
    import transformers

    name = _class_name(folder)
    kind: Any = getattr(diffusers, name, None) or getattr(transformers, name)
    settings: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    settings["torch_dtype" if hasattr(diffusers, name) else "dtype"] = torch.float32
    variant = _variant(checkpoint, component)
    model: nn.Module = kind.from_pretrained(folder, **settings, **({"variant": variant} if variant else {}))
    return model.eval()


def _variant(checkpoint: Checkpoint, component: str) -> str:
    """The `fp16` of `model.fp16.safetensors`, as it was taken for this component."""
    folder = _folder(checkpoint, component, checkpoint.path)
    name = next(file.name for file in checkpoint.files if file.parent == folder)
    match = re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", name)
    return match[1] if match else ""


def built(checkpoint: Checkpoint, part: Part) -> nn.Module:
    """The model with the published configuration, and every parameter by its canonical name."""
    from accelerate import init_empty_weights

    library, _, name = part.model.partition(":")
    kind = getattr(importlib.import_module(library), name)
    with init_empty_weights():
        model: nn.Module = kind(kind.config_class(**part.config)) if library == "transformers" else kind(**part.config)
    state = {}
    for key in model.state_dict():
        names = [f"{part.name}.{key}", f"{part.name}.text_model.{key}"]
        names += [name.removesuffix(".weight") for name in names]
        found = next((name for name in names if name in checkpoint.layers or name in checkpoint.vectors), None)
        if found is not None:
            state[key] = checkpoint.read(found).float()
    lacking = model.state_dict().keys() - state.keys()
    if lacking:
        raise PartialError(f"--check is inconclusive: {checkpoint.name} lacks {min(lacking)} of {name}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def _unet(model: Any, random: torch.Generator) -> Tensor:
    config = model.config
    side = 2 ** len(config.block_out_channels) * 2
    sample = torch.randn(1, config.in_channels, side, side, generator=random)
    width = config.cross_attention_dim
    context = torch.randn(1, 7, width if isinstance(width, int) else width[0], generator=random)
    extra: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        embeds = torch.randn(1, pooled, generator=random)
        extra["added_cond_kwargs"] = {"text_embeds": embeds, "time_ids": torch.full((1, 6), float(side * 8))}
    if config.time_cond_proj_dim:
        extra["timestep_cond"] = torch.randn(1, config.time_cond_proj_dim, generator=random)
    output: Tensor = model(sample, 500, context, return_dict=False, **extra)[0]
    return output


def _text(model: Any, random: torch.Generator) -> Tensor:
    config = model.config
    tokens = torch.randint(0, config.vocab_size, (1, 16), generator=random)
    if getattr(config, "eos_token_id", None) is not None:
        tokens[0, -1] = config.eos_token_id
    output = model(tokens)
    hidden: Tensor = output.last_hidden_state.flatten()
    pooled = getattr(output, "text_embeds", None)
    return hidden if pooled is None else torch.cat([hidden, pooled.flatten()])


_INPUTS: Mapping[str, Callable[[Any, torch.Generator], Tensor]] = {
    "UNet2DConditionModel": _unet,
    "CLIPTextModel": _text,
    "CLIPTextModelWithProjection": _text,
    "T5EncoderModel": _text,
}
"""Class of a model -> what runs it on a seeded input."""
