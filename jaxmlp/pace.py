"""How much the device does between two looks of the host, and when all processes stop: the same on every process."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import jax

from jaxmlp import distributed
from jaxmlp.signals import Stop


@dataclass
class Pace:
    """Fits the updates of a call to `chunk_s`. Changes no bit."""

    stop: Stop
    chunk_s: float
    """About how long the device runs between two looks: signals, progress, divergence."""
    chunk: int = 1
    """Updates of the next call."""
    stopping: bool = False
    """Whether all processes know that one has a stop signal."""

    def agree(self, due: bool = False) -> bool:
        """Take the shortest chunk of all processes, and stop where one of them is to.

        Returns:
            `due`, as the first process has it.
        """
        plans = [(self.chunk, self.stop.signal or 0, due)]
        if jax.process_count() > 1:
            plans = distributed.gather(plans[0]).tolist()
        self.chunk = min(chunk for chunk, _, _ in plans)
        if signals := [number for _, number, _ in plans if number]:
            self.stop.signal, self.stopping = signal.Signals(signals[0]), True
        return bool(plans[0][2])

    def took(self, seconds: float, updates: int) -> None:
        """Fit the next chunk to how long these updates took, at most eight times as many."""
        self.chunk = max(1, min(int(updates * self.chunk_s / max(seconds, 1e-9)), 8 * updates))
