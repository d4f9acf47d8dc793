"""Adapters on a live diffusers pipeline: put one on without a file, take it off, read one that is there.

A vector is handed to peft with alpha = rank in every layer, so the weight of an attached adapter is exactly its scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.bases.model import Base
from lorahub.errors import BaseMismatchError, ConflictError, NotFoundError, UsageError, VerificationError
from lorahub.files.building import from_state_dict
from lorahub.files.reading import tensors_sha256
from lorahub.formats.encode import balance, lora_config
from lorahub.formats.peft_config import METADATA_KEY

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_BEFORE = "_lorahub_active_before"
"""Attribute of a model: adapter attached by lorahub -> the adapters that were active before it."""


def attach(pipe: DiffusionPipeline, adapter: Adapter, *, name: str = "lorahub", weight: float = 1.0) -> None:
    """Make the pipeline draw with `weight` times the adapter, as if its file had been loaded.

    It becomes the one active adapter; the pipeline's own verbs work on it afterwards (`set_adapters`, `fuse_lora`).
    Factors take each layer's dtype and device. Raises ConflictError when the name is in use, BaseMismatchError when the
    pipeline lacks one of the layers, VerificationError when a factor overflows a layer's dtype, UsageError for an
    adapter with offsets, which peft cannot hold, and for one that is zero.
    """
    if adapter.offsets:
        raise UsageError(f"{adapter.name} has offsets (biases or norms), which a live pipeline cannot hold")
    if name in _names(pipe):
        raise ConflictError(f"the pipeline carries an adapter {name!r} already: detach it, or choose another name")
    # All components are checked before the first is touched.
    planned = [_fit(pipe, component, layers) for component, layers in _by_component(adapter).items()]
    if not planned:
        raise UsageError(f"{adapter.name} is zero: there is nothing to attach")
    weights = [_weights(layers, model) for model, layers in planned]
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraConfig

    for _, model in _models(pipe):
        vars(model).setdefault(_BEFORE, {})[name] = _active(model)
    for (model, layers), tensors in zip(planned, weights, strict=True):
        fields = lora_config({module: layer.rank for module, layer in layers.items()})
        del fields["peft_type"]
        inject_adapter_in_model(LoraConfig(**fields), model, adapter_name=name, state_dict=tensors)
        set_peft_model_state_dict(model, tensors, adapter_name=name)
        model._hf_peft_config_loaded = True  # what diffusers and transformers look at before they touch adapters
    for _, model in _models(pipe):
        if hasattr(model, "peft_config"):
            _activate(model, name, weight)


def detach(pipe: DiffusionPipeline, name: str = "lorahub") -> None:
    """Take an adapter off the pipeline, which then draws as before.

    If it is active, the adapters that were active when it was attached (those still there) become so again, at their
    weights. A component without adapters gets its own modules back. Raises NotFoundError when there is none so named.
    """
    if name not in _names(pipe):
        raise NotFoundError(f"the pipeline carries no adapter {name!r}: it has {', '.join(_names(pipe)) or 'none'}")
    from diffusers.utils import recurse_remove_peft_layers
    from diffusers.utils.peft_utils import delete_adapter_layers

    for _, model in _models(pipe):
        before = vars(model).get(_BEFORE, {}).pop(name, [])
        if not hasattr(model, "peft_config"):
            continue
        active = _active(model)
        remaining = [other for other in (before if name in active else active) if other in model.peft_config]
        _select(model, [other for other in remaining if other != name])
        if name in model.peft_config:
            delete_adapter_layers(model, name)
        if not getattr(model, "peft_config", None):
            recurse_remove_peft_layers(model)


def read_adapter(pipe: DiffusionPipeline, name: str | None, *, base: str | Base | None = None) -> Adapter:
    """The adapter that a pipeline carries, as a vector; its runtime weight (`set_adapters`) is not part of it.

    Raises NotFoundError when there is none so named, UsageError when there are several and `name` is None.
    """
    present = _names(pipe)
    if name is None and len(present) > 1:
        raise UsageError(f"the pipeline carries several adapters ({', '.join(present)}): say which with adapter=")
    chosen = name if name is not None else next(iter(present), "")
    if chosen not in present:
        raise NotFoundError(f"the pipeline carries no adapter {chosen!r}: it has {', '.join(present) or 'none'}")
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = {}
    fields: dict[str, object] = {}
    for component, model in _models(pipe):
        config = getattr(model, "peft_config", {}).get(chosen)
        if config is None:
            continue
        state = get_peft_model_state_dict(model, adapter_name=chosen)
        tensors |= {f"{component}.{key}": value.detach().clone() for key, value in state.items()}
        fields |= {f"{component}.{key}": value for key, value in config.to_dict().items()}
    metadata = {METADATA_KEY: json.dumps(fields, default=_plain)}
    return from_state_dict(tensors, name=chosen, base=base, metadata=metadata, data_sha256=tensors_sha256(tensors))


def _plain(value: object) -> object:
    """What JSON lacks in a peft configuration: sets of module names, enumerations."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _models(pipe: DiffusionPipeline) -> Iterator[tuple[str, Any]]:
    for component in pipe._lora_loadable_modules:
        model = getattr(pipe, component, None)
        if model is not None:
            yield component, model


def _names(pipe: DiffusionPipeline) -> list[str]:
    return list(dict.fromkeys(name for _, model in _models(pipe) for name in getattr(model, "peft_config", {})))


def _by_component(adapter: Adapter) -> dict[str, dict[str, LowRank]]:
    result: dict[str, dict[str, LowRank]] = {}
    for layer_name, layer in adapter.layers.items():
        component, _, module = layer_name.partition(".")
        if layer.rank:
            result.setdefault(component, {})[module] = layer
    return result


def _fit(pipe: DiffusionPipeline, component: str, layers: dict[str, LowRank]) -> tuple[Any, dict[str, LowRank]]:
    """The component's model, and its layers under the model's own module names, checked against its weights."""
    model = dict(_models(pipe)).get(component)
    if model is None:
        raise BaseMismatchError(f"the pipeline has no {component}, which the adapter touches")
    modules = dict(model.named_modules())
    # Newer transformers dropped the level `text_model` that adapter files go on naming.
    flattened = "text_model" not in modules
    fitted = {module.removeprefix("text_model.") if flattened else module: layer for module, layer in layers.items()}
    for module, layer in fitted.items():
        weight = getattr(modules.get(module), "weight", None)
        if weight is None or tuple(weight.shape) != layer.shape:
            came = "absent" if weight is None else str(list(weight.shape))
            raise BaseMismatchError(
                f"{component}.{module}: the adapter needs {list(layer.shape)}, the pipeline's is {came}"
            )
        if weight.is_meta:
            raise UsageError(f"the weights of {component} are offloaded: attach before enable_sequential_cpu_offload")
    return model, fitted


def _weights(layers: dict[str, LowRank], model: Any) -> dict[str, Tensor]:
    """The factors as peft keeps them, in each module's dtype and on its device."""
    modules = dict(model.named_modules())
    weights: dict[str, Tensor] = {}
    for module, layer in layers.items():
        like = modules[module].weight
        up, down = layer.factors()
        if like.dtype == torch.float16:
            up, down = balance(up, down)
        up, down = up.to(like.device, like.dtype), down.to(like.device, like.dtype)
        if not bool(up.isfinite().all() and down.isfinite().all()):
            raise VerificationError(f"{module}: the adapter's factors do not fit {like.dtype}")
        if isinstance(getattr(modules[module], "base_layer", modules[module]), torch.nn.Embedding):
            weights[f"{module}.lora_embedding_A"], weights[f"{module}.lora_embedding_B"] = up.T, down.T
            continue
        weights[f"{module}.lora_A.weight"] = down.reshape(layer.rank, *layer.shape[1:])
        weights[f"{module}.lora_B.weight"] = up.reshape(*up.shape, *(1 for _ in layer.shape[2:]))
    return weights


def _active(model: Any) -> list[str]:
    """The adapters that the model's layers use, also when they have been switched off as a whole."""
    return list(dict.fromkeys(name for layer in _tuned(model) for name in layer.active_adapters))


def _tuned(model: Any) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _select(model: Any, names: list[str]) -> None:
    """Make these the active adapters, at the weights they have."""
    for layer in _tuned(model):
        layer.set_adapter(names)


def _activate(model: Any, name: str, weight: float) -> None:
    _select(model, [name])
    for layer in _tuned(model):
        layer.set_scale(name, weight)
