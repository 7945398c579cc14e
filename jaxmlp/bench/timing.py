"""How long programs take: warmed up, one after the other in rounds, so that a drift of the machine meets all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxmlp.bench.spread import Spread


@dataclass(frozen=True, kw_only=True)
class Program:
    """Something to time, and the work that one of its units is."""

    what: str
    """compile, first step, step, epoch, evaluation, run, sweep; product and copy are the device's own measures."""
    run: Callable[[int], float | None]
    """Does so many units and waits for their end; may say itself how many seconds that took."""
    batch_size: int = 0
    width: int = 0
    """Of both hidden layers, or of the product's matrices."""
    precision: str = "float32"
    devices: int = 1
    grad_shards: int = 1
    """Parts of a batch; one a device where the row's name is silent."""
    lanes: int = 0
    """Trainings of a sweep."""
    examples: int = 0
    """Of a unit."""
    flops: int = 0
    """Of a unit's products."""
    bytes: int = 0
    """That a unit must move, at least."""
    once: bool = False
    """One unit a sample, however short, and no warm-up."""

    @property
    def key(self) -> str:
        """Names its row in every document."""
        sizes = [
            ("b", self.batch_size),
            ("w", self.width),
            ("n", self.examples),
            ("l", self.lanes),
            ("d", self.devices),
            ("g", self.grad_shards if self.grad_shards != self.devices else 0),
        ]
        return " ".join([self.what, self.precision, *(f"{letter}{size}" for letter, size in sizes if size)])


@dataclass(frozen=True, kw_only=True)
class Row:
    """A program's times."""

    program: Program
    seconds: list[float] = field(default_factory=list)
    """Of one unit each, in the order of the rounds."""

    @property
    def best_s(self) -> float:
        """The shortest: what the device can do when nothing is in its way."""
        return min(self.seconds)

    def document(self) -> dict[str, Any]:
        """As JSON, with the rates at the median."""
        spread, program = Spread.of(self.seconds), self.program
        return {
            "key": program.key,
            **{name: getattr(program, name) for name in ("what", "batch_size", "width", "precision")},
            **{name: getattr(program, name) for name in ("devices", "grad_shards", "lanes", "examples")},
            **{name: getattr(program, name) for name in ("flops", "bytes")},
            "seconds": self.seconds,
            "median_s": spread.median,
            "iqr_s": spread.iqr,
            "examples_per_s": program.examples / spread.median,
            "flops_per_s": program.flops / spread.median,
            "bytes_per_s": program.bytes / spread.median,
        }


def measure(
    programs: Sequence[Program],
    *,
    repeats: int,
    sample_s: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time every program `repeats` times, all of them in each round.

    Args:
        programs: A sample of each runs as many units as take about `sample_s`.
        repeats: Rounds.
        sample_s: Long against the clock's steps and a call's own cost.
        clock: In seconds.
    """
    units = {program.key: 1 if program.once else _units(program, sample_s, clock) for program in programs}
    rows = [Row(program=program) for program in programs]
    for turn in range(repeats):
        # In another order each round, so that no program always follows the same one.
        for row in random.Random(turn).sample(rows, len(rows)):
            count = units[row.program.key]
            if count > 1:
                row.program.run(1)  # Fetches what the program before has put out of the caches.
            row.seconds.append(_time(row.program, count, clock) / count)
    return rows


def _units(program: Program, sample_s: float, clock: Callable[[], float]) -> int:
    """How many units last about `sample_s`; the first run, which compiles, warms up and counts for nothing."""
    _time(program, 1, clock)
    count = 1
    while (seconds := _time(program, count, clock)) < sample_s / 2 and count < 1 << 20:
        count = min(8 * count, max(2 * count, int(count * sample_s / max(seconds, 1e-9))))
    return count


def _time(program: Program, count: int, clock: Callable[[], float]) -> float:
    began = clock()
    said = program.run(count)
    return clock() - began if said is None else said
