"""Whether something else was at work on the machine while a benchmark ran."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp.bench.spread import Spread

BUSY_CORES = 0.1
"""Cores' worth of other processes from which a machine counts as noisy."""
WIDE_SPREAD = 0.1
"""Interquartile range over median, in the middle of all rows, from which it does."""


def noise(others_cores: float | None, times: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What disturbed the times of steady work, and a line that says so; none on a quiet machine.

    Args:
        others_cores: Kept busy by others, on average; none where the system does not say.
        times: Of each row.
    """
    spreads = [Spread.of(row) for row in times]
    relative = float(np.median([spread.iqr / spread.median for spread in spreads]))
    reasons = []
    if others_cores is not None and others_cores > BUSY_CORES:
        reasons.append(f"other processes kept {others_cores:.1f} cores busy")
    if relative > WIDE_SPREAD:
        reasons.append(f"times spread by {relative:.0%} of their median")
    message = f"The machine was noisy: {' and '.join(reasons)}. Measure again when it is quiet." if reasons else None
    return {
        "others_cores": others_cores,
        "neighbours": neighbours(others_cores),
        "relative_iqr": relative,
        "noisy": bool(reasons),
        "message": message,
    }


def neighbours(others_cores: float | None) -> float:
    """How many times as long work on all cores takes with what others leave of them."""
    cores = os.cpu_count() or 1
    return cores / max(cores - (others_cores or 0.0), 0.01 * cores)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A moment: what all processes and this one have used of the processor until then."""

    clock_s: float
    all_s: float | None
    own_s: float

    @classmethod
    def begin(cls) -> Watch:
        """Now."""
        own = os.times()
        return cls(clock_s=time.perf_counter(), all_s=_used_s(), own_s=sum(own[:4]))

    def others_cores(self) -> float | None:
        """Cores that other processes kept busy from this moment until now, on average; none if nobody says."""
        now = Watch.begin()
        if self.all_s is None or now.all_s is None:
            return None
        others_s = (now.all_s - self.all_s) - (now.own_s - self.own_s)
        return max(0.0, others_s / (now.clock_s - self.clock_s))


def _used_s() -> float | None:
    """Processor seconds that all processes have used, and that a virtual machine's host has taken; on Linux."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
