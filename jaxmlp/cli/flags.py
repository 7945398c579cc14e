"""How do dataclasses become flags? tyro parses them, and every mistake is one line of ours.

tyro splits the words and prints the help. Values reach the dataclasses as they were typed. So a wrong value is refused
by the same rule, and in the same words, as in Python.
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
from jaxmlp.experiment.fields import Checked
from jaxmlp.system.runtime import Device

Switch: TypeAlias = tyro.conf.FlagCreatePairsOff[bool]
"""A flag that turns something on, without a counterpart that turns it off."""


@dataclass(frozen=True, kw_only=True)
class Flags(Checked):
    """Flags of every command."""

    json: Switch = False
    """Print one JSON document to stdout; text for people goes to stderr."""
    no_color: Switch = False
    """Print no colours, like the environment variable NO_COLOR."""


@dataclass(frozen=True, kw_only=True)
class DeviceFlags(Flags):
    """Flags of every command that computes."""

    device: Device = "auto"
    """Device: auto, cpu, gpu or tpu. auto takes the first that JAX finds of TPU, GPU, CPU."""


@dataclass(frozen=True, kw_only=True)
class CodeFlags(Flags):
    """Flags of every command that takes a run."""

    experiment: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Experiment file that RUN used, if it has parts of its own. May be given several times. The copy inside RUN is
    never run."""


@dataclass(frozen=True, kw_only=True)
class ModelFlags(CodeFlags, DeviceFlags):
    """Flags of every command that asks a run's model."""

    checkpoint: str = "last"
    """Checkpoint: last; best, by the experiment's best_by; ema, the last moving average; or the step of a
    checkpoint."""


@dataclass(frozen=True, kw_only=True)
class DataFlags(Flags):
    """Flags of every command that reads a data set."""

    manual_dir: Path | None = None
    """Folder of the data's original files: DIR/<data name>/ or DIR itself. Default: JAXMLP_MANUAL_DIR."""


RENAMED = {"for_target": "for", "from_run": "from"}
"""Flags whose names are Python keywords."""
FLAG = re.compile(r"--|-[^\d.]")
"""Matches the start of a flag, but not a negative number."""

ONCE = ("json", "no_color", "resume", "experiment", "accept_changed_code", "distributed")
"""Flags that a resume command sets to a new value or leaves out."""

registry = ConstructorRegistry()


@registry.primitive_rule
def _as_typed(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Converts words to a value: a number if the type allows numbers and the word is a number, else the word."""
    kinds = _alternatives(info.type)
    if info.type is bool or not all(_is_plain(kind) for kind in kinds):
        return None
    if tyro.conf.UseAppendAction in info.markers:  # tyro handles flags that are given several times.
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
    """The value of these words for a type. A word that does not fit the type stays a string."""
    if typing.get_origin(kind) is tuple:
        return tuple(_value(word, _alternatives(typing.get_args(kind)[0])) for word in words)
    return _value(" ".join(words), _alternatives(kind))


def _is_plain(kind: Any) -> bool:
    """Whether values of this type are words. tyro also asks about parts and about the arguments of types."""
    origin = typing.get_origin(kind)
    if origin is None:
        return isinstance(kind, type) and kind is not object and not issubclass(kind, Checked)
    if origin is tuple:
        return all(_is_plain(inner) for inner in typing.get_args(kind) if inner is not Ellipsis)
    return origin in (typing.Literal, Callable)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union. A function has no word, so Callable is dropped if the union also allows a string."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(kind for kind in kinds if str not in kinds or typing.get_origin(kind) is not Callable)


def _value(word: str, kinds: Sequence[Any]) -> Any:
    if types.NoneType in kinds and word.lower() == "none":
        return None
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(word)
    if Path not in kinds:
        return word
    try:
        return Path(word).expanduser()  # The shell does not expand the ~ in `--out=~/runs`.
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _shown(value: Any) -> str:
    return "none" if value is None else str(getattr(value, "__name__", value))


def _metavar(kinds: Sequence[Any]) -> str:
    """The placeholder of a value in the help, such as `FLOAT|STR|none` or `{relu,tanh}`."""
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
    """Parse flags. Returns them and the remaining words.

    Args:
        default: The defaults. Their type gives the names and the help.
        argv: Words after the command.
        command: Name of the command, for help and messages.
        names: Names of the expected words. A name in brackets is optional; a name that ends in `...` may repeat.
        hint: Text for the message about an unknown flag or an extra word.
        unknown: Returns a message for an unknown flag, or an empty string.

    Raises:
        ConfigError: A value breaks its rule.
        UsageError: A flag is unknown (the message names the nearest), or a value or word is missing or superfluous.
        SystemExit: The help was requested and has been printed.
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


def words_after(flag: str, words: Sequence[str]) -> Iterator[str]:
    """The words that follow a flag, after a space or `=`, before the flags are parsed."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == flag:
            yield following
        elif word.startswith(f"{flag}="):
            yield word.removeprefix(f"{flag}=")


def repeated(chosen: Flags, kind: type[Flags]) -> str:
    """The flags of `kind` to repeat in a resume command: the flags with values other than the defaults."""
    said = []
    for item in dataclasses.fields(kind):
        value = getattr(chosen, item.name)
        if item.name not in ONCE and value != item.default:
            flag = f"--{item.name.replace('_', '-')}"
            said.append(flag if value is True else f"{flag} {shlex.quote(_shown(value))}")
    return "".join(f" {words}" for words in said)


def _mistake(error: BaseException, argv: Sequence[str]) -> ConfigError | None:
    """The ConfigError that made tyro end the program.

    A part's class does not know its position in a tuple of parts. It is found from the flag in `argv`.
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
    """Every flag, and whether a value must follow it."""
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
