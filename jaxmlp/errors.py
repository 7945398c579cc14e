"""Which mistakes does the program answer for, and which exit code does each end in?"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JaxmlpError(Exception):
    """A mistake with a message for people. The program prints the message and ends with `exit_code`."""

    exit_code = 1


class UsageError(JaxmlpError):
    """A wrong command line: an unknown experiment, flag or value."""

    exit_code = 2


class ConfigError(UsageError, ValueError):
    """A config value that breaks its rule.

    Args:
        field: Dotted path of the field, such as `model.dropout_rate`.
        problem: Rule, value and remedy: `must be in [0, 1), got 50. Did you mean 0.5?`
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem

    def as_flag(self) -> str:
        """The same line with the flag's name, for the command line."""
        return f"--{self.field.replace('_', '-')} {self.problem}"


class CheckFailed(JaxmlpError):
    """A requested check failed: not reproduced, slower, or below the wanted accuracy."""

    exit_code = 3


class DataError(JaxmlpError):
    """Data that is missing, damaged, or of another shape."""

    exit_code = 4


class RunError(JaxmlpError):
    """A run directory or checkpoint that cannot be used."""

    exit_code = 5


class CodeError(RunError):
    """A run used code of the user's own, which was not given or has changed.

    Args:
        message: What is wrong and what to do.
        flags: Flags to add to the command line.
    """

    def __init__(self, message: str, flags: str) -> None:
        super().__init__(message)
        self.flags = flags


class DeviceError(JaxmlpError):
    """A device that does not exist, or a JAX that has already started with other settings."""

    exit_code = 6


class DivergedError(JaxmlpError):
    """A loss or parameter that is no longer finite."""

    exit_code = 7


class DiskError(JaxmlpError):
    """A file that could not be written."""

    exit_code = 8


class PeerLostError(JaxmlpError):
    """Another process of the same run is gone."""

    exit_code = 9


def printable(text: object, *, lines: bool = True) -> str:
    r"""The text with unsafe characters, which could move a terminal or have no encoding, escaped as in `\x1b`.

    File names, and the content of files from strangers, may hold any character.

    Args:
        text: Text for people to read.
        lines: Whether newlines are kept.
    """

    def shown(character: str) -> str:
        is_plain = character.isprintable() or (lines and character == "\n")
        return character if is_plain else character.encode("unicode_escape").decode()

    return "".join(map(shown, str(text)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean X?"` for the known word nearest to `word`; empty if no known word is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
