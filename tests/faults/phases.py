"""Send the program signals when it comes to a phase: `python tests/faults/phases.py PHASE SIGNALS train ...`."""

from __future__ import annotations

import os
import pkgutil
import re
import signal
import sys
from pathlib import Path
from typing import Any

PHASES = {
    "load": "jaxmlp.data.embedded:load",
    "prepare": "jaxmlp.data.builders:read_idx",
    "begin": "jaxmlp.run.directory:RunDirectory._begin",
    "compile": "jaxmlp.engine.run_loop:RunLoop._compile",
    "step": "jaxmlp.engine.programs:Programs.advance",
    "evaluation": "jaxmlp.engine.programs:Programs.evaluate",
    "log": "jaxmlp.run.directory:RunDirectory.append_epoch",
    "checkpoint": "jaxmlp.run.checkpoint:save",
    "finish": "jaxmlp.run.directory:RunDirectory.finish",
}
"""A function that is called in it."""


def signal_in(phase: str, *signals: signal.Signals) -> None:
    """At the first call of the phase's function, before it does anything."""
    owner_name, name = re.split(r"[.:](?=\w+$)", PHASES[phase])
    owner, function = pkgutil.resolve_name(owner_name), pkgutil.resolve_name(PHASES[phase])

    def signalled(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, function)
        for number in signals:
            os.kill(os.getpid(), number)
        return function(*arguments, **named)

    setattr(owner, name, signalled)


def main() -> int:
    """The program, signalled."""
    from faults.start import start

    phase, signals, *argv = sys.argv[1:]
    signal_in(phase, *(signal.Signals[name] for name in signals.split(",")))
    return start(argv)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
