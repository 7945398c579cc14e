"""Flags by tyro over the same dataclasses as the API, with every mistake said in one line, ours.

tyro splits the words and prints the help. Values reach the dataclasses as they were typed, so that a wrong one is
refused by the same rule, and in the same words, as in Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from jaxmlp.errors import ConfigError, UsageError, did_you_mean
from jaxmlp.fields import Checked
from jaxmlp.runtime import Device

Switch: TypeAlias = tyro.conf.FlagCreatePairsOff[bool]
"""A flag that turns something on, without a second one that turns it off."""


@dataclass(frozen=True, kw_only=True)
class Flags(Checked):
    """Of every command."""

    json: Switch = False
    """One JSON document on stdout; what people read goes to stderr."""
    no_color: Switch = False
    """No colours; so does the environment variable NO_COLOR."""


@dataclass(frozen=True, kw_only=True)
class DeviceFlags(Flags):
    """Of every command that computes."""

    device: Device = "auto"
    """auto, cpu, gpu or tpu; auto takes what JAX prefers: TPU, GPU, CPU."""


@dataclass(frozen=True, kw_only=True)
class CodeFlags(Flags):
    """Of every command that takes a run."""

    experiment: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """The experiment's file that a RUN was made with, where it has parts of its own; may be given several times. The
    copy that a RUN keeps is never run."""


@dataclass(frozen=True, kw_only=True)
class DataFlags(Flags):
    """Of every command that reads a data set."""

    manual_dir: Path | None = None
    """Folder of the data's original files, DIR/<data name>/ or DIR itself; else JAXMLP_MANUAL_DIR."""


RENAMED = {"for_target": "for", "from_run": "from"}
"""Flags whose word is one of Python's own."""
FLAG = re.compile(r"--|-[^\d.]")
"""Starts a flag, and no negative number."""

ONCE = ("json", "no_color", "resume", "experiment", "accept_changed_code", "distributed")
"""Flags that are said anew, or not again, where a command goes on."""

registry = ConstructorRegistry()


@registry.primitive_rule
def _as_typed(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How a value is made of words: a number where its type takes one and the word is one, else the word."""
    kinds = _alternatives(info.type)
    if info.type is bool or not all(_is_plain(kind) for kind in kinds):
        return None
    if tyro.conf.UseAppendAction in info.markers:  # A flag said several times is tyro's own.
        return None
    is_tuple = typing.get_origin(info.type) is tuple
    item_kinds = _alternatives(typing.get_args(info.type)[0]) if is_tuple else kinds

    return PrimitiveConstructorSpec(
        nargs="*" if is_tuple else 1,
        metavar=f"[{_metavar(item_kinds)} ...]" if is_tuple else _metavar(kinds),
        instance_from_str=lambda words: value_of(words, info.type),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [_shown(item) for item in (value if is_tuple else [value])],
    )


def value_of(words: Sequence[str], kind: Any) -> Any:
    """What these words stand for where a value of this type is wanted; what is no such value stays as it was typed."""
    if typing.get_origin(kind) is tuple:
        return tuple(_value(word, _alternatives(typing.get_args(kind)[0])) for word in words)
    return _value(" ".join(words), _alternatives(kind))


def _is_plain(kind: Any) -> bool:
    """Whether values of this type are words: tyro asks about parts, and about the arguments of types, too."""
    origin = typing.get_origin(kind)
    if origin is None:
        return isinstance(kind, type) and kind is not object and not issubclass(kind, Checked)
    if origin is tuple:
        return all(_is_plain(inner) for inner in typing.get_args(kind) if inner is not Ellipsis)
    return origin in (typing.Literal, Callable)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union. No word stands for a function, so where a text will do its name alone is a flag's value."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(kind for kind in kinds if str not in kinds or typing.get_origin(kind) is not Callable)


def _value(word: str, kinds: Sequence[Any]) -> Any:
    if types.NoneType in kinds and word.lower() == "none":
        return None
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(word)
    return Path(word).expanduser() if Path in kinds else word  # The shell leaves `--out=~/runs` as it is.


def _shown(value: Any) -> str:
    return "none" if value is None else str(getattr(value, "__name__", value))


def _metavar(kinds: Sequence[Any]) -> str:
    """What the help shows for a value: `FLOAT|STR|none`, `{relu,tanh}`."""
    shown = []
    for kind in kinds:
        if typing.get_origin(kind) is Callable:
            continue
        if typing.get_origin(kind) is typing.Literal:
            shown.append("{" + ",".join(typing.get_args(kind)) + "}")
        else:
            shown.append("none" if kind is types.NoneType else kind.__name__.upper())
    return "|".join(shown)


def parse[Chosen: Flags](
    default: Chosen,
    argv: Sequence[str],
    command: str,
    *names: str,
    hint: str = "",
    unknown: Callable[[str], str] = lambda flag: "",
) -> tuple[Chosen, list[str]]:
    """The flags, and the words that are none.

    Args:
        default: What the flags change; its type has their names and help.
        argv: After the command.
        command: For the help and for messages.
        names: Of the words wanted, as people read them: one in brackets may be left out, and there may be more of one
            that ends in `...`.
        hint: Why a flag or word that is none of these will not do.
        unknown: What to say of an unknown flag, where more is known of it.

    Raises:
        ConfigError: A value that breaks its rule.
        UsageError: An unknown flag, with the nearest; a value, or a word, that is missing or too many.
        SystemExit: The help was asked for, and is printed.
    """
    known = dict(_names(default))
    for word, following in itertools.pairwise([*argv, "--"]):
        if known.get(word.replace("_", "-")) and FLAG.match(following):
            raise UsageError(f"{word} needs a value")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            chosen, words = tyro.cli(
                type(default),
                prog=" ".join(["jaxmlp", command, *names]),
                args=argv,
                default=default,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
                registry=registry,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise _mistake(end, argv) or UsageError(said.getvalue().strip()) from None
    for word in filter(FLAG.match, words):
        flag = word.partition("=")[0]
        raise UsageError(unknown(flag) or f"{flag} is not a flag of {command}.{did_you_mean(flag, known)}{hint}")
    usage = " ".join([command, *names])
    if len(words) < len([name for name in names if name[0] != "["]):
        raise UsageError(f"{command} needs {names[len(words)]}: jaxmlp {usage}")
    if len(words) > len(names) and not usage.endswith("..."):
        raise UsageError(f"{command} takes no {words[len(names)]!r}: jaxmlp {usage}.{hint}")
    return chosen, words


def repeated(chosen: Flags, kind: type[Flags]) -> str:
    """The flags of `kind` that a command line repeats to go on: those whose values are not the defaults."""
    said = []
    for item in dataclasses.fields(kind):
        value = getattr(chosen, item.name)
        if item.name not in ONCE and value != item.default:
            flag = f"--{item.name.replace('_', '-')}"
            said.append(flag if value is True else f"{flag} {shlex.quote(_shown(value))}")
    return "".join(f" {words}" for words in said)


def _mistake(error: BaseException, argv: Sequence[str]) -> ConfigError | None:
    """The mistake that made tyro end the program: one that it caught on the way.

    The class of a part knows not which of several it is: the one that has such a flag.
    """
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ConfigError):
            role, _, name = cause.as_flag().partition(" ")[0].partition(".")
            flag = re.compile(rf"{role}\.(\d+)\.{name}(=|$)")
            numbers = {found[1] for word in argv if (found := flag.match(word.replace("_", "-")))}
            field = f"{role[2:]}.{numbers.pop()}.{name}" if len(numbers) == 1 else cause.field
            return ConfigError(field, cause.problem)
        cause = cause.__context__
    return None


def _names(flags: Checked, prefix: str = "--") -> Iterator[tuple[str, bool]]:
    """Every flag, and whether a value must follow."""
    for item in dataclasses.fields(flags):  # type: ignore[arg-type]
        value, name = getattr(flags, item.name), RENAMED.get(item.name, item.name.replace("_", "-"))
        if isinstance(value, tuple) and value and isinstance(value[0], Checked):
            for number, each in enumerate(value):
                yield from _names(each, f"{prefix}{name}.{number}.")
        elif isinstance(value, Checked):
            yield from _names(value, prefix if item.name == "config" else f"{prefix}{name}.")
        elif not item.metadata.get("filled_in"):
            yield f"{prefix}{name}", not isinstance(value, bool | tuple)
            if value is True:
                yield f"{prefix}no-{name}", False
