"""Which operations does the device spend its time on? JAX's profiler, with the time of each operation."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

DEAREST = 10
AROUND = ("while", "call", "conditional")
"""Prefixes of operations that only contain other operations."""


def profile(work: Callable[[], Any], folder: Path) -> list[dict[str, Any]]:
    """Trace `work` into a folder, for TensorBoard or Perfetto, and return the most expensive operations.

    Args:
        work: Function that is compiled already and waits for its end.
        folder: Folder for the trace, made if it is missing.

    Returns:
        For each operation `op` and `module`, XLA's names; `seconds`, added over all threads or streams; and `count`.
    """
    with jax.profiler.trace(str(folder)):
        work()
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Warnings about the binding's own types.
        for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
            for event in (event for line in plane.lines for event in line.events):
                stats = dict(event.stats)
                if "hlo_op" in stats and not str(stats["hlo_op"]).startswith(AROUND):
                    spent[str(stats["hlo_op"]), str(stats.get("hlo_module"))].append(event.duration_ns / 1e9)
    dearest = sorted(spent.items(), key=lambda item: -sum(item[1]))[:DEAREST]
    return [
        {"op": op, "module": module, "seconds": sum(seconds), "count": len(seconds)}
        for (op, module), seconds in dearest
    ]
