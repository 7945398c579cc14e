"""Was anything else running on the machine during a benchmark?"""

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
"""A machine is noisy if other processes keep more cores busy than this."""
WIDE_SPREAD = 0.1
"""A machine is noisy if the median row's relative spread, interquartile range over median, is larger than this."""


def noise(others_cores: float | None, times: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Judge whether other processes disturbed a benchmark, as JSON values. `message` is None on a quiet machine.

    Args:
        others_cores: Average number of cores that other processes kept busy. None: unknown.
        times: Seconds of each row.
    """
    relative = float(np.median([spread.iqr / spread.median for spread in map(Spread.of, times)]))
    reasons = []
    if others_cores is not None and others_cores > BUSY_CORES:
        reasons.append(f"other processes kept {others_cores:.1f} cores busy")
    if relative > WIDE_SPREAD:
        reasons.append(f"times spread by {relative:.0%} of their median")
    message = f"The machine was noisy: {' and '.join(reasons)}. Measure again when it is quiet." if reasons else None
    return {
        "others_cores": others_cores,
        "load_factor": load_factor(others_cores),
        "relative_iqr": relative,
        "noisy": bool(reasons),
        "message": message,
    }


def load_factor(others_cores: float | None) -> float:
    """Factor by which work on all cores slows down if other processes keep `others_cores` cores busy."""
    cores = os.cpu_count() or 1
    return cores / max(cores - (others_cores or 0.0), 0.01 * cores)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Processor time that all processes and this process had used at a moment, in seconds."""

    clock_s: float
    all_s: float | None
    own_s: float

    @classmethod
    def begin(cls) -> Watch:
        """Start to watch now."""
        return cls(clock_s=time.perf_counter(), all_s=_used_s(), own_s=sum(os.times()[:4]))

    def others_cores(self) -> float | None:
        """Average number of cores that other processes kept busy since this moment. None: unknown."""
        now = Watch.begin()
        if self.all_s is None or now.all_s is None:
            return None
        others_s = (now.all_s - self.all_s) - (now.own_s - self.own_s)
        return max(0.0, others_s / (now.clock_s - self.clock_s))


def _used_s() -> float | None:
    """Processor seconds used by all processes or taken by a virtual machine's host. None: not on Linux."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
