"""How are many runs of an experiment trained at once, over seeds and values, in as few compiled programs as possible?

`from jaxmlp.sweep import sweep, resume, load, Range`. Like jaxmlp itself, importing this starts no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlp.sweep.directory import load as load
    from jaxmlp.sweep.result import LaneResult as LaneResult
    from jaxmlp.sweep.result import SweepResult as SweepResult
    from jaxmlp.sweep.start import resume as resume
    from jaxmlp.sweep.start import sweep as sweep
    from jaxmlp.sweep.values import Range as Range
else:  # Hidden from type checkers, as in jaxmlp.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"jaxmlp.sweep.{_HOMES[name]}"), name)


_HOMES = {
    "LaneResult": "result",
    "Range": "values",
    "SweepResult": "result",
    "load": "directory",
    "resume": "start",
    "sweep": "start",
}

__all__ = [*_HOMES]
