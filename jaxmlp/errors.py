"""Every mistake the program answers for, and the exit code each ends in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JaxmlpError(Exception):
    """A mistake that has a message for people; the program prints it and ends in `exit_code`."""

    exit_code = 1


class UsageError(JaxmlpError):
    """A wrong command line: an unknown experiment, flag or value."""

    exit_code = 2


class ConfigError(UsageError, ValueError):
    """A config value that breaks its rule.

    Args:
        field: The dotted path, such as `model.dropout_rate`.
        problem: The rule, the value and the remedy: `must be in [0, 1), got 50. Did you mean 0.5?`
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem

    def as_flag(self) -> str:
        """The same line with the flag's name, for the command line."""
        return f"--{self.field.replace('_', '-')} {self.problem}"


class CheckFailed(JaxmlpError):
    """A check that was asked for did not hold: not reproduced, slower, below the wanted accuracy."""

    exit_code = 3


class DataError(JaxmlpError):
    """Data that is missing, damaged, or of another shape."""

    exit_code = 4


class RunError(JaxmlpError):
    """A run directory or checkpoint that cannot be used."""

    exit_code = 5


class CodeError(RunError):
    """A run made with code of the user's own, which is not given, or is another now.

    Args:
        message: What is wrong, and the way on.
        flags: What to add to the command line.
    """

    def __init__(self, message: str, flags: str) -> None:
        super().__init__(message)
        self.flags = flags


class DeviceError(JaxmlpError):
    """A device that is not there, or a JAX that is already up otherwise."""

    exit_code = 6


class DivergedError(JaxmlpError):
    """A loss or parameter that is no longer finite."""

    exit_code = 7


class DiskError(JaxmlpError):
    """Something that could not be written."""

    exit_code = 8


class PeerLostError(JaxmlpError):
    """Another process of the same run is gone."""

    exit_code = 9


def printable(text: object, *, lines: bool = True) -> str:
    r"""The text with all that could move a terminal, or that no encoding has, as escapes such as `\x1b`.

    Names of files, and what files from strangers say, may hold anything.

    Args:
        text: What people are to read.
        lines: Whether it may have several.
    """

    def shown(character: str) -> str:
        is_plain = character.isprintable() or (lines and character == "\n")
        return character if is_plain else character.encode("unicode_escape").decode()

    return "".join(map(shown, str(text)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean X?"` for the known word nearest to `word`, or nothing where none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
