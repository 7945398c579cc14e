"""How a value of a config or a flag is checked where it is made, and how a config becomes JSON and comes back.

This module starts no JAX: the flags of every command are made of `Checked` classes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NoReturn

from jaxmlp.errors import ConfigError, did_you_mean


def dotted(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted paths."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def ranged(default: Any, interval: str, *, traced: bool = False, host: bool = False, optional: bool = False) -> Any:
    """A field of one number or more in an interval.

    Args:
        default: The field's default.
        interval: The rule as people write it, such as `[0, 1)` or `(0, inf)`.
        traced: Whether compiled programs take the value as an argument, so that another value compiles nothing anew.
        host: Whether compiled programs never see the value, so that it is at its default inside them.
        optional: Whether JSON leaves the field out while it is at its default.
    """
    return field(default=default, metadata={"interval": interval, "traced": traced, "host": host, "optional": optional})


def host(default: Any) -> Any:
    """A field that compiled programs never see: it is at its default inside them."""
    return field(default=default, metadata={"host": True})


def optional(default: Any) -> Any:
    """A field that JSON leaves out while it is at its default."""
    return field(default=default, metadata={"optional": True})


def filled_in(*, traced: bool = False) -> Any:
    """A field that training fills in from the data: no flag, and not in JSON."""
    return field(default=None, metadata={"traced": traced, "filled_in": True})


def named(default: str, known: Mapping[str, Callable[..., Any]]) -> Any:
    """A field that takes the name of a known function, or a function of the user's own."""
    return field(default=default, metadata={"known": known})


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """The types of a class's fields."""
    return typing.get_type_hints(cls)


def join_path(path: str, name: str) -> str:
    """The dotted path of a field."""
    return f"{path}.{name}" if path else name


def choices(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


class Checked:
    """A frozen dataclass whose fields are checked against their type and interval when it is made.

    Only Python's and NumPy's values are checked: a transformation of JAX puts its own in their place.
    """

    path: ClassVar[str] = ""
    """The dotted path of the part in an experiment, for messages."""

    def __post_init__(self) -> None:
        types_of = hints(typing.cast(Any, type(self)))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if not _is_given(value):
                continue
            checked = _checked(join_path(self.path, item.name), types_of[item.name], value, item.metadata)
            object.__setattr__(self, item.name, checked)


def _is_given(value: Any) -> bool:
    """Whether a person gave the value: a tracer, a JAX array or a placeholder stands for one that was checked."""
    if isinstance(value, list | tuple):
        return all(map(_is_given, value))
    # NumPy's numbers are a person's; its arrays, and all arrays of JAX, are what a transformation put in their place.
    is_array = (
        hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, Real) and not _is_bool(value)
    )
    return not is_array and type(value) is not object


def _is_bool(value: Any) -> bool:
    """Whether it is Python's or NumPy's; nothing here loads NumPy."""
    return type(value).__name__ in ("bool", "bool_") and type(value).__module__ in ("builtins", "numpy")


def _checked(path: str, hint: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as its type says, or ConfigError with the rule it breaks."""
    if "known" in metadata:
        return _named(path, value, metadata["known"])
    is_bool = _is_bool(value)
    for choice in choices(hint):
        if typing.get_origin(choice) is Literal:
            known = typing.get_args(choice)
            if value in known:
                return value
            names = ", ".join(map(str, known))
            raise ConfigError(path, f"must be one of {names}, got {value!r}.{did_you_mean(str(value), known)}")
        if typing.get_origin(choice) is tuple and isinstance(value, list | tuple):
            element = typing.get_args(choice)[0]
            return tuple(_checked(path, element, item, metadata) for item in value)
        if choice is Any:
            return value
        if choice is bool and is_bool:
            return bool(value)
        if choice is int and isinstance(value, Integral) and not is_bool:
            return _in_interval(path, int(value), metadata)
        if choice is float and isinstance(value, Real) and not is_bool:
            return _in_interval(path, _as_float(typing.cast(float, value)), metadata)
        if isinstance(choice, type) and choice not in (bool, int, float) and isinstance(value, choice):
            return value
    raise ConfigError(path, f"must be {' or '.join(_described(choice) for choice in choices(hint))}, got {value!r}")


def _named(path: str, value: Any, known: Mapping[str, Any]) -> Any:
    for name, function in known.items():
        if value is function:
            return name
    if callable(value) or (isinstance(value, str) and value in known):
        return value
    names = ", ".join(known)
    raise ConfigError(path, f"must be a function or one of {names}, got {value!r}.{did_you_mean(str(value), known)}")


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
    interval = metadata.get("interval")
    if not interval:
        return value
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
