"""Scale facts that stand outside the tensors: PEFT's adapter_config.json and diffusers' lora_adapter_metadata.

Both are a PEFT configuration and are read as PEFT itself reads them: the same defaults, the same pattern matching.
Nothing is guessed: a configuration that contradicts the tensors is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lorahub.errors import FileFormatError

METADATA_KEY = "lora_adapter_metadata"
DEFAULT_ALPHA = 8.0
_LARGE = 1e30
"""No rank or alpha is so large; NaN, infinities and integers that overflow a float are no numbers here."""
_TYPES: Mapping[str, str] = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "OFT": "", "BOFT": "", "IA3": ""}
"""peft_type -> the field that holds its alpha ("" where there is none)."""

_T = TypeVar("_T")
_D = TypeVar("_D")
_Test = Callable[[Mapping[str, object]], bool]


def _initialised(name: str) -> _Test:
    return lambda raw: str(raw.get("init_lora_weights", "")).lower().startswith(name)


def _set(field: str) -> _Test:
    return lambda raw: bool(raw.get(field))


_FEATURES: tuple[tuple[str, _Test], ...] = (
    *((name, _initialised(name)) for name in ("pissa", "olora", "corda", "lora_ga", "loftq")),
    ("kasa", _set("kasa_config")),
    ("qalora", _set("use_qalora")),
    ("bdlora", _set("use_bdlora")),
    ("monteclora", _set("monteclora_config")),
    ("alora", _set("alora_invocation_tokens")),
    ("layer_replication", _set("layer_replication")),
    ("target_parameters", _set("target_parameters")),
    ("dora", _set("use_dora")),  # last: with base weights it can be baked, whatever stands above it cannot
)
"""Kinds (see kinds.NOT_ADDITIVE) that a configuration makes of plain LoRA tensors; the first that is set counts."""


@dataclass(frozen=True)
class PeftConfig:
    """What a configuration says of the scale, for one wrapped model."""

    source: str
    rank: int | None
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    kind: str | None
    """The non-additive kind that the configuration makes of its modules, if any."""
    replaced: tuple[str, ...]
    """Names of modules stored as whole trained copies (modules_to_save)."""
    trains_biases: bool
    """Whether the base's biases are stored as whole trained copies."""

    def rank_of(self, path: str) -> int | None:
        """The rank PEFT gives the module at `path`, or None when the configuration names none."""
        return _lookup(self._rank_patterns, path, self.rank)

    def alpha_of(self, path: str) -> float:
        """The alpha PEFT gives the module at `path`."""
        return _lookup(self._alpha_patterns, path, self.alpha)

    def replaces(self, path: str, field: str) -> bool:
        """Whether a tensor `field` of the module at `path` is a trained copy of the base's own."""
        return (field == "bias" and self.trains_biases) or any(f".{name}." in f".{path}." for name in self.replaced)

    @cached_property
    def _rank_patterns(self) -> tuple[tuple[re.Pattern[str], int], ...]:
        return _compiled(self.rank_pattern, self.source)

    @cached_property
    def _alpha_patterns(self) -> tuple[tuple[re.Pattern[str], float], ...]:
        return _compiled(self.alpha_pattern, self.source)


class Configs:
    """The configurations that apply to a file: one for all of it, or one for each component."""

    def __init__(self, config: Mapping[str, object] | None, metadata: Mapping[str, str]) -> None:
        self._common: PeftConfig | None = None
        self._components: dict[str, PeftConfig] = {}
        if config is not None:
            self._common = _read(config, "adapter_config.json")
        elif METADATA_KEY in metadata:
            for component, fields in _components(metadata[METADATA_KEY]).items():
                self._components[component] = _read(fields, f"{METADATA_KEY} of {component or 'the file'}")

    def of(self, prefix: str) -> PeftConfig | None:
        """The configuration of the modules under `prefix`."""
        return self._common or self._components.get(prefix) or self._components.get("")

    def all(self) -> tuple[PeftConfig, ...]:
        """Every configuration found."""
        return (self._common,) if self._common else tuple(self._components.values())


def _components(text: str) -> dict[str, dict[str, object]]:
    """Diffusers' flattened configurations (`unet.r`, or `r` when saved from a model alone), by component."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"metadata {METADATA_KEY}: expected JSON; {error}") from None
    if not isinstance(fields, dict):
        raise FileFormatError(f"metadata {METADATA_KEY}: expected a JSON object, found {type(fields).__name__}")
    components: dict[str, dict[str, object]] = {}
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        components.setdefault(component, {})[field] = value
    return components


def _read(raw: Mapping[str, object], source: str) -> PeftConfig:
    peft_type = str(raw.get("peft_type") or "LORA").upper().rpartition(".")[2]
    if peft_type not in _TYPES:
        raise FileFormatError(f"{source}: expected a peft_type among {', '.join(_TYPES)}; found {peft_type}")
    rank, alpha = raw.get("r"), raw.get(_TYPES[peft_type])
    return PeftConfig(
        source=source,
        rank=None if rank is None else _rank(rank, "r", source),
        alpha=DEFAULT_ALPHA if alpha is None else _number(alpha, _TYPES[peft_type], source),
        rank_pattern=_pattern(raw, "rank_pattern", source, _rank),
        alpha_pattern=_pattern(raw, "alpha_pattern", source, _number),
        rslora=bool(raw.get("use_rslora")) and peft_type == "LORA",
        kind=next((kind for kind, test in _FEATURES if test(raw)), None),
        replaced=_names(raw.get("modules_to_save"), source),
        trains_biases=raw.get("bias", "none") not in ("none", None),
    )


def _number(value: object, field: str, source: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGE:
        raise FileFormatError(f"{source}: expected a number for {field}, found {value!r:.80}")
    return float(value)


def _rank(value: object, field: str, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGE:
        raise FileFormatError(f"{source}: expected a whole number above 0 for {field}, found {value!r:.80}")
    return value


def _pattern(
    raw: Mapping[str, object], field: str, source: str, convert: Callable[[object, str, str], _T]
) -> dict[str, _T]:
    value = raw.get(field) or {}
    if not isinstance(value, dict):
        raise FileFormatError(f"{source}: expected an object for {field}, found {value!r:.80}")
    return {str(name): convert(number, f"{field}[{name}]", source) for name, number in value.items()}


def _names(value: object, source: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise FileFormatError(f"{source}: expected a list for modules_to_save, found {value!r:.80}")
    return tuple(str(name) for name in value)


def _compiled(patterns: Mapping[str, _T], source: str) -> tuple[tuple[re.Pattern[str], _T], ...]:
    """PEFT's get_pattern_key: a pattern matches the whole path, or its end after a dot."""
    try:
        return tuple((re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items())
    except re.error as error:
        raise FileFormatError(f"{source}: expected regular expressions in a pattern; {error}") from None


def _lookup(patterns: tuple[tuple[re.Pattern[str], _T], ...], path: str, default: _D) -> _T | _D:
    """The value of the first pattern that matches `path`; failing that, of the path itself (PEFT looks it up so)."""
    return next((value for pattern, value in patterns if pattern.match(path)), default)
