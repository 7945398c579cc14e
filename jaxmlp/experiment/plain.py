"""How is a part said in JSON: by its kind, by the place of the user's code, and by dotted paths of fields?"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import sysconfig
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from flax import nnx

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.experiment.fields import choices, join_path
from jaxmlp.experiment.optax_parts import PREFIX, optax_class
from jaxmlp.experiment.optax_schedules import schedule_class
from jaxmlp.experiment.parts import Optimizer, Part, PlainObject, Schedule, hint_of, role_of, role_of_several

OF_OPTAX: Mapping[Any, Callable[[str], type[Part]]] = {Optimizer: optax_class, Schedule: schedule_class}
"""For each role: the function that makes a part class from an optax name."""
Find: TypeAlias = Callable[[str], Any]
"""Resolves a place such as `lion.py:Lion` to the class, function or object in the user's file."""


def where(part: Part) -> str:
    """Name of a part in JSON: its `kind` if it ships with the package, else its place, such as `lion.py:Lion`."""
    if isinstance(part, PlainObject):
        return part.source or place_of(part.value)
    cls = type(part)
    return cls.kind if is_shipped(cls) else place_of(cls)


def is_shipped(thing: Any) -> bool:
    """Whether a class or function belongs to this package."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] == __name__.partition(".")[0]


def is_installed(file: str | Path) -> bool:
    """Whether a file belongs to Python or to an installed package, and so is not the user's own code."""
    path = Path(file)
    stdlib = Path(sysconfig.get_path("stdlib"))
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(stdlib)


class Placed:
    """A function that an experiment's file uses but does not define by name: a lambda or a library's function.

    Args:
        function: The wrapped function.
        place: Place in the file, such as `exp.py:CONFIG.model.activation`.
        file: Path of the file.
    """

    def __init__(self, function: Callable[..., Any], place: str, file: str) -> None:
        self.function, self.place, self.file = function, place, file

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's value."""
        return self.function(*arguments, **named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placed) and (self.function, self.place) == (other.function, other.place)

    def __hash__(self) -> int:
        return hash((self.function, self.place))


def place_of(thing: Any) -> str:
    """File and name of a class or function, such as `lion.py:Lion`; `none:Lion` if no file defines it by name."""
    if isinstance(thing, Placed):
        return thing.place
    defined = defined_by(thing)
    # An object was made with arguments, which its class does not know.
    is_named = defined is thing and "<" not in defined.__qualname__
    file = file_of(defined) if is_named else None
    is_part = isinstance(thing, type) and issubclass(thing, Part)
    where_from = Path(file).name if file and (is_part or not is_installed(file)) else "none"
    return f"{where_from}:{defined.__qualname__}"


def file_of(thing: Any) -> str | None:
    """The file that defines a class or function, or an object's class."""
    if isinstance(thing, Placed):
        return thing.file
    thing = defined_by(thing)
    # After a second import, sys.modules holds the new module, but old classes keep the globals of the old one.
    function = vars(thing).get("__init__") if isinstance(thing, type) else thing
    scope: Mapping[str, Any] = getattr(function, "__globals__", {})
    if scope.get("__name__") != thing.__module__:
        scope = getattr(sys.modules.get(thing.__module__), "__dict__", {})
    return scope.get("__file__")


def defined_by(thing: Any) -> Any:
    """The class or function that defines a thing. For an NNX module in flax's bridge: the module's class."""
    if isinstance(thing, nnx.bridge.ToLinen):
        thing = thing.nnx_class
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing if hasattr(thing, "__qualname__") else type(thing)


def kinds(role: type[Part]) -> dict[str, type[Part]]:
    """The shipped parts of a role, by kind. Parts from optax are made on demand: see `optax_class`."""
    found = {}
    for cls in role.__subclasses__():
        if is_shipped(cls) and cls.kind and not cls.kind.startswith(PREFIX) and not cls.__abstractmethods__:
            found[cls.kind] = cls
        found |= kinds(cls)
    return found


def to_plain(value: Any) -> Any:
    """A part or value as JSON types. A part of a role includes its kind; a plain object is only its place."""
    if isinstance(value, PlainObject):
        return {"kind": where(value)}
    if isinstance(value, Part):
        plain: dict[str, Any] = {"kind": where(value)} if value.rule else {}
        return plain | {item.name: to_plain(getattr(value, item.name)) for item in told_fields(value)}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return place_of(value) if callable(value) else value


def stored_fields(part: Part | type[Part]) -> list[dataclasses.Field[Any]]:
    """The fields that JSON may hold: all except those that training sets."""
    return [item for item in dataclasses.fields(part) if not item.metadata.get("filled_in")]  # type: ignore[arg-type]


def told_fields(part: Part) -> list[dataclasses.Field[Any]]:
    """The fields in the part's JSON. Optional fields at their defaults are left out.

    So a new optional field changes no hash of an experiment that does not use it.
    """
    return [
        item
        for item in stored_fields(part)
        if not item.metadata.get("optional") or getattr(part, item.name) != item.default
    ]


def from_plain(path: str, hint: Any, plain: Any, find: Find) -> Any:
    """The inverse of `to_plain`: the part or value of type `hint`.

    Raises:
        ConfigError: A field is unknown or missing, or a value breaks its rule.
    """
    if typing.get_origin(hint) is tuple and isinstance(plain, list):
        element = typing.get_args(hint)[0]
        return tuple(from_plain(f"{path}.{index}", element, each, find) for index, each in enumerate(plain))
    parts = [each for each in choices(hint) if isinstance(each, type) and issubclass(each, Part)]
    if not parts:
        return find(plain) if is_place(plain) and _takes_functions(hint) else plain
    (cls,) = parts
    if not isinstance(plain, Mapping):
        raise ConfigError(path or "config", f"must be a JSON object, got {plain!r}")
    plain = dict(plain)
    if cls.rule:
        kind = plain.pop("kind", None)
        cls = _class(f"{path}.kind", cls, kind, find)
        if not isinstance(cls, type):  # A plain object.
            return dataclasses.replace(cls, source=kind)
    known = {item.name: item for item in stored_fields(cls)}
    for name in plain:
        if name not in known:
            raise ConfigError(join_path(path, str(name)), f"is not a field.{did_you_mean(str(name), known)}")
    for name, item in known.items():
        if name not in plain and not item.metadata.get("optional"):
            raise ConfigError(join_path(path, name), "is missing")
    given = {name: plain[name] for name in known if name in plain}
    return cls(
        **{name: from_plain(join_path(path, name), hint_of(cls, name), each, find) for name, each in given.items()}
    )


def is_place(value: Any) -> bool:
    """Whether a JSON value is a place of code, such as `lion.py:Lion`."""
    return isinstance(value, str) and re.fullmatch(r"[^/:]+:[\w.<>]+", value) is not None


def _takes_functions(hint: Any) -> bool:
    return any(each is object for each in choices(hint)) or "Callable" in str(hint)


def _class(path: str, role: Any, kind: Any, find: Find) -> Any:
    """The class with this kind, or the part that wraps a plain object."""
    shipped = kinds(role)
    if isinstance(kind, str) and kind in shipped:
        return shipped[kind]
    if role in OF_OPTAX and isinstance(kind, str) and kind.startswith(PREFIX):
        return OF_OPTAX[role](kind)
    if not is_place(kind):
        raise ConfigError(path, f"must be one of {', '.join(shipped)}, got {kind!r}.{did_you_mean(str(kind), shipped)}")
    found = find(kind)
    found = found.function if isinstance(found, Placed) else found
    if isinstance(found, type) and issubclass(found, Part):
        if not issubclass(found, role):
            raise ConfigError(path, f"must be a subclass of {role.__name__}, got {kind}")
        return found
    return role.of(found)


def roles_of(part: Part, prefix: str = "") -> dict[str, Part]:
    """The parts of an experiment that have a role, by the dotted paths of their fields."""
    found: dict[str, Part] = {}
    for item in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, item.name)
        if isinstance(value, Part):
            found |= {prefix + item.name: value} if value.rule else {}
            found |= roles_of(value, f"{prefix}{item.name}.")
    return found


def of_kind(role: type[Part], path: str, kind: str) -> Part:
    """A part of a role with its defaults.

    Raises:
        ConfigError: As `class_of_kind`.
    """
    return class_of_kind(role, path, kind)()


def class_of_kind(role: type[Part], path: str, kind: str) -> type[Part]:
    """The class of a kind: a shipped kind, or the name of a class of the user's own, in either case of letters.

    Raises:
        ConfigError: There is no such kind.
    """
    own = {cls.__name__: cls for cls in _own_parts(role)}
    known: dict[str, type[Part]] = {**kinds(role), **own}
    near = {place_of(cls).lower().replace("-", "_"): cls for cls in own.values()}
    near |= {name.lower().replace("-", "_"): cls for name, cls in known.items()}
    cls = known.get(kind) or near.get(kind.lower().replace("-", "_"))
    if role in OF_OPTAX and not cls and kind.startswith(PREFIX):
        cls = OF_OPTAX[role](kind.replace("-", "_"))
    if not cls:
        raise ConfigError(path, f"must be one of {', '.join(known)}, got {kind!r}.{did_you_mean(kind, known)}")
    return cls


def _own_parts(role: type[Part]) -> Iterator[type[Part]]:
    """The user's own parts of a role, in the order of their definitions."""
    for cls in role.__subclasses__():
        # A class whose definition was refused has no list of abstract methods.
        if not is_shipped(cls) and not getattr(cls, "__abstractmethods__", True):
            yield cls
        yield from _own_parts(cls)


def _find_own(place: str) -> type[Part]:
    """The user's own loaded class at a place; the newest if there are several."""
    found = [cls for cls in _own_parts(Part) if place_of(cls) == place]
    if not found:
        raise ConfigError("kind", f"is {place}, but no part with that place is loaded")
    return found[-1]


def with_value[P: Part](part: P, path: str, value: Any) -> P:
    """The part with a new value in the field at a dotted path.

    For the field of a role, a string is the kind of a part, and a mapping is a whole part in its JSON form.

    Raises:
        ConfigError: There is no such field, or the value breaks its rule.
    """
    return typing.cast(P, _with_value(part, path.split("."), value, path))


def _with_value(part: Any, names: list[str], value: Any, path: str) -> Any:
    name, *rest = names
    changed: Any
    if isinstance(part, tuple):
        if not name.isdecimal() or int(name) >= len(part):
            raise ConfigError(path, f"is not a field: there are {len(part)} parts, counted from 0")
        changed = _with_value(part[int(name)], rest, value, path)
        return (*part[: int(name)], changed, *part[int(name) + 1 :])
    known = [item.name for item in stored_fields(part)] if isinstance(part, Part) else []
    if name not in known:
        raise ConfigError(path, f"is not a field of this experiment.{did_you_mean(name, known)}")
    old = getattr(part, name)
    several = role_of_several(part, name)
    if several and not rest and isinstance(value, str):
        changed = tuple(of_kind(several, path, word) for word in value.split(",") if word)
    elif rest:
        changed = _with_value(old, rest, value, path)
    elif isinstance(old, Part) and isinstance(value, str) and old.rule:
        # The current kind keeps its values: `--optimizer lion` changes nothing if the file's optimizer is Lion.
        kind = type(old) if value == where(old) else class_of_kind(role_of(type(old)), path, value)
        changed = old if kind is type(old) else kind()
    elif isinstance(old, Part) and isinstance(value, Mapping) and old.rule:
        changed = from_plain(path, role_of(type(old)), value, _find_own)
    else:
        changed = value
    return dataclasses.replace(part, **{name: changed})


def value_at(part: Part, path: str) -> Any:
    """The JSON value of the field at a dotted path. For a part of a role: its kind.

    Raises:
        ConfigError: There is no such field.
    """
    found: Any = part
    for name in path.split("."):
        if isinstance(found, tuple) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Part) and name in {item.name for item in stored_fields(found)}:
            found = getattr(found, name)
        else:
            raise ConfigError(path, "is not a field of this experiment")
    return where(found) if isinstance(found, Part) and found.rule else to_plain(found)


def paths(part: Part, prefix: str = "") -> Iterator[str]:
    """The dotted paths of all fields in JSON, including fields of nested parts."""
    for item in stored_fields(part):
        value = getattr(part, item.name)
        yield prefix + item.name
        for name, each in enumerate(value) if isinstance(value, tuple) else [("", value)]:
            if isinstance(each, Part) and not isinstance(each, PlainObject):
                yield from paths(each, f"{prefix}{item.name}.{f'{name}.' if isinstance(value, tuple) else ''}")
