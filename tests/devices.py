"""A second device for machines that have none: tensors that live elsewhere, and refuse to meet those of the CPU.

It goes by the name of "meta", a device that torch always has. Within `elsewhere()`, tensors made on it or moved to it hold
numbers, which the CPU computes; an operation on tensors of both devices fails as on a GPU, and so does every way for
numbers to cross over but `.to`, `.cpu()`, `.copy_` and reading single numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ELSEWHERE = "meta"
_CROSSING = ("aten._to_copy", "aten.copy_", "aten._copy_from")


class _Away(Tensor):
    """A tensor that says it is elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Away:
        made: _Away = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE,
        )  # type: ignore[attr-defined]  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: Any) -> Any:
    given, _ = tree_flatten((args, kwargs))
    name, target = str(operation).rpartition(".")[0], kwargs.get("device")
    here = [each for each in given if isinstance(each, Tensor) and not isinstance(each, _Away) and each.ndim]
    away = [each for each in given if isinstance(each, _Away)]
    if here and away and name not in _CROSSING:
        raise RuntimeError(f"{name}: tensors on two devices, {here[0].device} and {ELSEWHERE}")
    if target is not None and torch.device(target).type == ELSEWHERE:
        kwargs = {**kwargs, "device": "cpu"}
    result = operation(*tree_map_only(_Away, lambda each: each.held, args), **_unwrapped(kwargs))
    if name in ("aten.copy_", "aten.set_") or (str(operation).split(".")[1].endswith("_") and away):
        return args[0]
    if isinstance(kwargs.get("out"), _Away):
        return kwargs["out"]
    stays = torch.device(target).type == ELSEWHERE if target is not None else bool(away)
    return tree_map_only(Tensor, _Away, result) if stays else result


def _unwrapped(kwargs: Any) -> Any:
    return tree_map_only(_Away, lambda each: each.held, kwargs)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _Away not in types and kwargs.get("device") is None:  # most are of the CPU alone
            return operation(*args, **kwargs)
        return _run(operation, args, kwargs)


class _Function(TorchFunctionMode):
    """`torch.tensor` makes its result on the device by itself, past the dispatcher."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            return function(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """The name of the second device, while it exists. It adds in the order of one thread, as the CPU does in a layer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), _Function(), _Dispatch():
            yield ELSEWHERE
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def metered() -> Iterator[Callable[[], int]]:
    """A function that says how many bytes were in use on the second device at most, since it was last asked."""
    alive: WeakValueDictionary[int, _Away] = WeakValueDictionary()
    honest, peaks = _Away.__new__, [0]

    def made(cls: type[_Away], held: Tensor) -> _Away:
        tensor = honest(cls, held)
        alive[id(tensor)] = tensor
        memory = {
            each.held.untyped_storage().data_ptr(): each.held.untyped_storage().nbytes() for each in alive.values()
        }
        peaks.append(sum(memory.values()))
        return tensor

    def most() -> int:
        peak = max(peaks)
        peaks[:] = [0]
        return peak

    _Away.__new__ = made  # type: ignore[method-assign]
    try:
        yield most
    finally:
        _Away.__new__ = honest  # type: ignore[method-assign]
