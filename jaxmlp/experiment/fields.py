"""How are the values of configs and flags checked, and how does JSON text become values?

This module does not import JAX, because the flags of every command are `Checked` classes.
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

MAX_NESTING = 100
"""Deepest nesting of a JSON text that is read. Python's own limit depends on its version."""


def dotted(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, by dotted path."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def ranged(default: Any, interval: str, *, traced: bool = False, host: bool = False, optional: bool = False) -> Any:
    """A field that holds a number in an interval, or several such numbers.

    Args:
        default: Default value.
        interval: Valid range, such as `[0, 1)` or `(0, inf)`.
        traced: Whether compiled programs take the value as an argument. Then a new value compiles nothing.
        host: Whether compiled programs never see the value. Inside them it has its default.
        optional: Whether JSON leaves the field out at its default.
    """
    return field(default=default, metadata={"interval": interval, "traced": traced, "host": host, "optional": optional})


def host(default: Any) -> Any:
    """A field that compiled programs never see. Inside them it has its default."""
    return field(default=default, metadata={"host": True})


def optional(default: Any) -> Any:
    """A field that JSON leaves out at its default."""
    return field(default=default, metadata={"optional": True})


def filled_in(*, traced: bool = False) -> Any:
    """A field that training sets from the data. It has no flag and no JSON key."""
    return field(default=None, metadata={"traced": traced, "filled_in": True})


def named(default: str, known: Mapping[str, Callable[..., Any]]) -> Any:
    """A field that takes the name of a known function, or a function."""
    return field(default=default, metadata={"known": known})


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """The types of a class's fields."""
    return typing.get_type_hints(cls)


def join_path(path: str, name: str) -> str:
    """The dotted path of a field."""
    return f"{path}.{name}" if path else name


def choices(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; for any other type, the type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


class Checked:
    """A frozen dataclass that checks each field against its type and interval when it is made.

    Only values of Python and NumPy are checked: JAX's transformations put their own objects in the fields.
    """

    path: ClassVar[str] = ""
    """Dotted path of the part in an experiment, for error messages."""

    def __post_init__(self) -> None:
        types_of = hints(typing.cast(Any, type(self)))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if not _is_given(value):
                continue
            checked = _checked(join_path(self.path, item.name), types_of[item.name], value, item.metadata)
            object.__setattr__(self, item.name, checked)


def _is_given(value: Any) -> bool:
    """Whether a person gave the value.

    Tracers, JAX arrays and placeholders stand for values that were checked before.
    """
    if isinstance(value, list | tuple):
        return all(map(_is_given, value))
    # A NumPy scalar comes from a person. Arrays, of NumPy or JAX, come from a transformation.
    is_array = (
        hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, Real) and not _is_bool(value)
    )
    return not is_array and type(value) is not object


def _is_bool(value: Any) -> bool:
    """Whether the value is a bool of Python or NumPy. This module does not import NumPy."""
    return type(value).__name__ in ("bool", "bool_") and type(value).__module__ in ("builtins", "numpy")


def _checked(path: str, hint: Any, value: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` converted to its type.

    Raises:
        ConfigError: The value breaks the field's rule.
    """
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
    """The float, or an infinity if an integer is too large for a float."""
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
        if not math.isfinite(_as_float(value)):
            raise ConfigError(path, f"must be finite, got {_as_float(value):g}")
        return value
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def is_in(number: float) -> bool:
        above = number > low if interval[0] == "(" else number >= low
        below = number < high if interval[-1] == ")" else number <= high
        return above and below and math.isfinite(number)

    shown = _as_float(value)
    if is_in(shown):
        # Arithmetic is float32: a momentum that rounds to 1 would act as 1.
        if isinstance(value, int) or is_in(rounded := _as_float32(value)):
            return value
        raise ConfigError(path, f"must be in {interval}, got {value!r}, which float32 rounds to {rounded:g}")
    hint = f". Did you mean {value / 100:g}?" if high == 1 and 1 < value < 100 else ""
    raise ConfigError(path, f"must be in {interval}, got {shown:g}{hint}")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Refuses what only Python accepts: NaN, Infinity, numbers as large, lone surrogates.

    Raises:
        ValueError: The text is not valid JSON, or is nested more than `MAX_NESTING` deep.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if text.count("[") + text.count("{") > MAX_NESTING and _is_deeper(value, MAX_NESTING):
            raise RecursionError
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value is nested more than `levels` deep."""
    level = [value]
    for _ in range(levels):
        inner = (one for each in level for one in (each.values() if isinstance(each, dict) else each))
        level = [one for one in inner if isinstance(one, dict | list)]
    return bool(level)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
