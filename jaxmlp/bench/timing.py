"""How long programs take: warmed up, one after the other in rounds, so that a drift of the machine meets all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmlp.bench.spread import Spread


@dataclass(frozen=True, kw_only=True)
class Program:
    """Something to time, and the work that one of its units is."""

    what: str
    """warm start, compile, step, epoch, evaluation, run, sweep; `compare.DEVICE_ROWS` are the device's own."""
    run: Callable[[int], float | None]
    """Does so many units and waits for their end; may say itself how many seconds that took."""
    batch_size: int = 0
    width: int = 0
    """Of both hidden layers, or of the product's matrices."""
    mib: int = 0
    """Of the array that is copied, sent or exchanged."""
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
    resident: int = 0
    """Bytes that a unit comes back to: those of an epoch's updates are the same for every update."""
    once: bool = False
    """One unit a sample, however short, and no warm-up."""

    @property
    def key(self) -> str:
        """Names its row in every document."""
        sizes = [
            ("b", self.batch_size),
            ("w", self.width),
            ("m", self.mib),
            ("n", self.examples),
            ("l", self.lanes),
            ("d", self.devices),
            ("g", self.grad_shards if self.grad_shards != self.devices else 0),
        ]
        return " ".join([self.what, self.precision, *(f"{letter}{size}" for letter, size in sizes if size)])

    def facts(self) -> dict[str, Any]:
        """All but the times, as JSON values."""
        names = ("key", "what", "batch_size", "width", "mib", "precision", "devices", "grad_shards", "lanes")
        return {name: getattr(self, name) for name in (*names, "examples", "flops", "bytes", "resident")}


def document(facts: Mapping[str, Any], by_process: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A row of the benchmark's document, with the rates at its median.

    Args:
        facts: `Program.facts`.
        by_process: Seconds of one unit each, by process. A process counts as the median of its samples.
    """
    process_s = [Spread.of(seconds).median for seconds in by_process]
    spread = Spread.of(process_s)
    return {
        **facts,
        "seconds": [second for seconds in by_process for second in seconds],
        "process_s": process_s,
        "median_s": spread.median,
        "iqr_s": spread.iqr,
        "examples_per_s": facts["examples"] / spread.median,
        "flops_per_s": facts["flops"] / spread.median,
        "bytes_per_s": facts["bytes"] / spread.median,
    }


def calibrate(
    programs: Sequence[Program], *, sample_s: float = 0.02, clock: Callable[[], float] = time.perf_counter
) -> dict[str, int]:
    """How many units of each program take about `sample_s`, by the programs' keys."""
    return {program.key: 1 if program.once else _units(program, sample_s, clock) for program in programs}


def measure(
    programs: Sequence[Program],
    units: Mapping[str, int],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every program `repeats` times, all of them in each round.

    Args:
        programs: Each runs once before the first round, which compiles it, if it is not to run once a sample.
        units: How many units a sample of each is: long against the clock's steps and a call's own cost.
        repeats: Rounds.
        clock: In seconds.

    Returns:
        By the programs' keys, seconds of one unit, in the order of the rounds.
    """
    for program in programs:
        if not program.once:
            program.run(1)
    seconds: dict[str, list[float]] = {program.key: [] for program in programs}
    for turn in range(repeats):
        # In another order each round, so that no program always follows the same one.
        for program in random.Random(turn).sample(programs, len(programs)):
            count = units[program.key]
            if count > 1:
                program.run(1)  # Fetches what the program before has put out of the caches.
            seconds[program.key].append(_time(program, count, clock) / count)
    return seconds


def _units(program: Program, sample_s: float, clock: Callable[[], float]) -> int:
    """How many units last about `sample_s`; the first run, which compiles, warms up and counts for nothing."""
    _time(program, 1, clock)
    count = 1
    # The shorter of two, because a neighbour makes times longer and samples too small.
    while (seconds := min(_time(program, count, clock) for _ in range(2))) < sample_s / 2 and count < 1 << 20:
        count = min(8 * count, max(2 * count, int(count * sample_s / max(seconds, 1e-9))))
    return count


def _time(program: Program, count: int, clock: Callable[[], float]) -> float:
    began = clock()
    said = program.run(count)
    return clock() - began if said is None else said
