"""`jaxmlp new`: write a commented experiment to start from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import DiskError, UsageError

TEMPLATE = Path(__file__).with_name("new_experiment.txt")


@dataclass(frozen=True, kw_only=True)
class NewFlags(flags.Flags):
    """Write a commented experiment to start from, with a part of each role."""


def run(argv: Sequence[str]) -> Answer:
    """Write FILE.py, which must not exist."""
    _, (name,) = flags.parse(NewFlags(), argv, "new", "FILE.py")
    path = Path(name)
    if not path.name:
        raise UsageError(f"{name!r} is not the name of a file: jaxmlp new experiment.py")
    if path.suffix != ".py":
        raise UsageError(f"{name} must end in .py: jaxmlp new {path.with_suffix('.py')}")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(f"{name} already exists: name a new file") from None
    except OSError as error:
        raise DiskError(f"could not write {name}: {error.strerror}.") from error
    say(f"{name}: an experiment. Train it: jaxmlp train {shlex.quote(name)}")
    return Answer({"file": str(path)})
