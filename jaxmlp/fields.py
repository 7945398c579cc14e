"""How a config part checks its fields where it is made, and how it becomes JSON and comes back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeAlias

from jaxmlp.errors import ConfigError, did_you_mean

Hyperparameters: TypeAlias = dict[str, Any]
"""The traced values of a config part: a number or a tuple of numbers by field name, nested as the config is."""


def dotted(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted paths."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def ranged(default: Any, interval: str, *, traced: bool = False) -> Any:
    """A field of one number or more in `interval`, the rule as people write it, such as `[0, 1)` or `(0, inf)`."""
    return field(default=default, metadata={"interval": interval, "traced": traced})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _choices(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _checked(path: str, hint: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as its type says, or ConfigError with the rule it breaks."""
    is_bool = isinstance(value, bool)
    for choice in _choices(hint):
        if typing.get_origin(choice) is Literal:
            known = typing.get_args(choice)
            if value in known:
                return value
            names = ", ".join(map(str, known))
            raise ConfigError(path, f"must be one of {names}, got {value!r}.{did_you_mean(str(value), known)}")
        if typing.get_origin(choice) is tuple and isinstance(value, list | tuple):
            element = typing.get_args(choice)[0]
            return tuple(_checked(path, element, item, metadata) for item in value)
        if choice is bool and is_bool:
            return value
        if choice is int and isinstance(value, Integral) and not is_bool:
            return _in_interval(path, int(value), metadata)
        if choice is float and isinstance(value, Real) and not is_bool:
            return _in_interval(path, _as_float(typing.cast(float, value)), metadata)
        if isinstance(choice, type) and choice not in (bool, int, float) and isinstance(value, choice):
            return value
    raise ConfigError(path, f"must be {' or '.join(_described(choice) for choice in _choices(hint))}, got {value!r}")


def _described(choice: Any) -> str:
    if typing.get_origin(choice) is tuple:
        return f"a list of {_described(typing.get_args(choice)[0]).split()[-1]}s"
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "a text", types.NoneType: "none"}
    return plain.get(choice) or str(choice.__name__)


def _as_float(value: float) -> float:
    """A whole number may be beyond every float."""
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def _as_float32(value: float) -> float:
    try:
        found: float = struct.unpack("f", struct.pack("f", value))[0]
        return found
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def _in_interval(path: str, value: float, metadata: Mapping[str, Any]) -> float:
    interval = metadata["interval"]
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def is_in(number: float) -> bool:
        above = number > low if interval[0] == "(" else number >= low
        below = number < high if interval[-1] == ")" else number <= high
        return above and below and math.isfinite(number)

    shown = _as_float(value)
    if is_in(shown):
        # All arithmetic is float32's: a momentum that it rounds to 1 would be one of 1.
        if isinstance(value, int) or is_in(rounded := _as_float32(value)):
            return value
        raise ConfigError(path, f"must be in {interval}, got {value!r}, which float32 rounds to {rounded:g}")
    hint = f". Did you mean {value / 100:g}?" if high == 1 and 1 < value < 100 else ""
    raise ConfigError(path, f"must be in {interval}, got {shown:g}{hint}")


class Part:
    """A frozen dataclass whose fields are checked against their type and interval when it is made."""

    path: ClassVar[str] = ""
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = _hints(typing.cast(Any, type(self)))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            checked = _checked(_dotted(self.path, item.name), hints[item.name], getattr(self, item.name), item.metadata)
            object.__setattr__(self, item.name, checked)

    def hyperparameters(self) -> Hyperparameters:
        """The traced values, nested as the config is."""
        found: Hyperparameters = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.metadata.get("traced"):
                found[item.name] = value
            elif isinstance(value, Part) and (inner := value.hyperparameters()):
                found[item.name] = inner
        return found

    def program(self) -> Self:
        """The same part with every traced value at its default: what a compiled program depends on."""
        changes: dict[str, Any] = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.metadata.get("traced"):
                changes[item.name] = item.default
            elif isinstance(value, Part):
                changes[item.name] = value.program()
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, without what Python alone takes: NaN, Infinity, and halves of surrogate pairs.

    Raises:
        ValueError: It is no such text, or nested too deep.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def to_plain(value: Any) -> Any:
    """A part or value as JSON types; a part of several kinds says its own under `kind`."""
    if isinstance(value, Part):
        plain: dict[str, Any] = {"kind": value.kind} if value.kind else {}
        items = dataclasses.fields(value)  # type: ignore[arg-type]
        return plain | {item.name: to_plain(getattr(value, item.name)) for item in items}
    return list(value) if isinstance(value, tuple) else value


def from_plain(path: str, hint: Any, plain: Any) -> Any:
    """The part or value of type `hint` that `plain`, read from JSON, stands for."""
    parts = [c for c in _choices(hint) if isinstance(c, type) and issubclass(c, Part)]
    if not parts:
        return plain
    if not isinstance(plain, Mapping):
        raise ConfigError(path or "config", f"must be a JSON object, got {plain!r}")
    plain = dict(plain)
    if len(parts) > 1:
        kinds = {part.kind: part for part in parts}
        kind = plain.pop("kind", None)
        if not isinstance(kind, str) or kind not in kinds:
            names = ", ".join(kinds)
            raise ConfigError(f"{path}.kind", f"must be one of {names}, got {kind!r}.{did_you_mean(str(kind), kinds)}")
        cls: Any = kinds[kind]
    else:
        cls = parts[0]
    known = [item.name for item in dataclasses.fields(cls)]
    for name in plain:
        if name not in known:
            raise ConfigError(_dotted(path, str(name)), f"is not a field.{did_you_mean(str(name), known)}")
    for name in known:
        if name not in plain:
            raise ConfigError(_dotted(path, name), "is missing")
    return cls(**{name: from_plain(_dotted(path, name), _hints(cls)[name], plain[name]) for name in known})
