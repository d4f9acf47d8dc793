"""Adapters on a live diffusers pipeline: put one on without a file, take it off, read one that is there.

A vector is handed to peft with alpha = rank in every layer, so the weight of an attached adapter is exactly its scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lorahub.algebra.adapter import Adapter
from lorahub.algebra.lowrank import LowRank
from lorahub.bases.model import Base
from lorahub.errors import BaseMismatchError, ConflictError, NotFoundError, UsageError
from lorahub.files.building import from_state_dict
from lorahub.files.reading import tensors_sha256
from lorahub.formats.encode import lora_config

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ADAPTER_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")


def attach(pipe: DiffusionPipeline, adapter: Adapter, *, name: str = "lorahub", weight: float = 1.0) -> None:
    """Make the pipeline draw with `weight` times the adapter, as if its file had been loaded.

    It becomes the active adapter; the pipeline's own verbs work on it afterwards (`set_adapters`, `fuse_lora`). Factors
    take the component's dtype and device. Raises ConflictError when the name is in use, BaseMismatchError when the
    pipeline lacks one of the layers, UsageError for an adapter with offsets, which peft cannot hold.
    """
    if adapter.offsets:
        raise UsageError(f"{adapter.name} has offsets (biases or norms), which a live pipeline cannot hold")
    # All components are checked before the first is touched.
    planned = [_fit(pipe, component, layers, name) for component, layers in _by_component(adapter).items()]
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraConfig

    for model, layers in planned:
        fields = lora_config({module: layer.rank for module, layer in layers.items()})
        del fields["peft_type"]
        weights = _weights(layers, model)
        inject_adapter_in_model(LoraConfig(**fields), model, adapter_name=name, state_dict=weights)
        set_peft_model_state_dict(model, weights, adapter_name=name)
        model._hf_peft_config_loaded = True  # what diffusers and transformers look at before they touch adapters
    for model, _ in planned:
        _activate(model, name, weight)


def detach(pipe: DiffusionPipeline, name: str = "lorahub") -> None:
    """Take an adapter off the pipeline, which then draws as before. Raises NotFoundError when it carries none so named."""
    if name not in _names(pipe):
        raise NotFoundError(f"the pipeline carries no adapter {name!r}: it has {', '.join(_names(pipe)) or 'none'}")
    for _, model in _models(pipe):
        if name in getattr(model, "peft_config", {}):
            from diffusers.utils.peft_utils import delete_adapter_layers

            delete_adapter_layers(model, name)


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
        fields |= {f"{component}.{key}": getattr(config, key) for key in _ADAPTER_FIELDS}
    metadata = {"lora_adapter_metadata": json.dumps(fields)}
    return from_state_dict(tensors, name=chosen, base=base, metadata=metadata, data_sha256=tensors_sha256(tensors))


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


def _fit(
    pipe: DiffusionPipeline, component: str, layers: dict[str, LowRank], name: str
) -> tuple[Any, dict[str, LowRank]]:
    """The component's model, and its layers under the model's own module names, checked against its weights."""
    model = dict(_models(pipe)).get(component)
    if model is None:
        raise BaseMismatchError(f"the pipeline has no {component}, which the adapter touches")
    if name in getattr(model, "peft_config", {}):
        raise ConflictError(f"the pipeline carries an adapter {name!r} already: detach it, or choose another name")
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
    return model, fitted


def _weights(layers: dict[str, LowRank], model: Any) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for module, layer in layers.items():
        up, down = layer.factors()
        kernel = layer.shape[2:]
        weights[f"{module}.lora_A.weight"] = down.reshape(layer.rank, *layer.shape[1:]).to(model.device, model.dtype)
        weights[f"{module}.lora_B.weight"] = up.reshape(*up.shape, *(1 for _ in kernel)).to(model.device, model.dtype)
    return weights


def _activate(model: Any, name: str, weight: float) -> None:
    from diffusers import ModelMixin
    from diffusers.loaders.lora_base import set_adapters_for_text_encoder

    if isinstance(model, ModelMixin):
        model.set_adapters([name], [weight])
    else:
        set_adapters_for_text_encoder([name], model, [weight])
