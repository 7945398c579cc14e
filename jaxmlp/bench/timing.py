"""How long do programs take? They are warmed up and timed in rounds, so that drift of the machine affects all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmlp.bench.spread import Spread

SAMPLE_S = 0.01
"""Seconds that a sample of several units takes: long compared with the clock's steps and the cost of a call."""


@dataclass(frozen=True, kw_only=True)
class TimedProgram:
    """A program to time, with the work of one unit."""

    what: str
    """Name of the stage: warm start, compile, step, epoch, evaluation, run, sweep, or one of `compare.DEVICE_ROWS`."""
    run: Callable[[int], float | None]
    """Runs a number of units and waits for their end. It may return the seconds; None: the caller's clock counts."""
    batch_size: int = 0
    width: int = 0
    """Width of both hidden layers, or of the product's matrices."""
    mib: int = 0
    """MiB of the array that is copied, sent or exchanged."""
    precision: str = "float32"
    devices: int = 1
    grad_shards: int = 1
    """Gradient shards of a batch. The key names them only if they differ from the number of devices."""
    lanes: int = 0
    """Number of lanes of a sweep."""
    examples: int = 0
    """Examples in a unit."""
    flops: int = 0
    """FLOPs of the products in a unit."""
    bytes: int = 0
    """Smallest number of bytes that a unit must move."""
    resident: int = 0
    """Bytes that every update uses again, such as parameters. An epoch has the resident bytes of one update."""
    once: bool = False
    """Time samples of one unit, however short, without a warm-up."""

    @property
    def key(self) -> str:
        """Key of the program's row in every document, such as `step float32 b128 w512 n128 d1`."""
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
        """The row without its times, as JSON values."""
        names = ("key", "what", "batch_size", "width", "mib", "precision", "devices", "grad_shards", "lanes")
        return {name: getattr(self, name) for name in (*names, "examples", "flops", "bytes", "resident")}


def document(facts: Mapping[str, Any], by_process: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A row of the benchmark's document, with the rates at its median.

    Args:
        facts: Result of `TimedProgram.facts`.
        by_process: Seconds of one unit for each sample, by process. A process counts as the median of its samples.
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
    programs: Sequence[TimedProgram], *, sample_s: float = SAMPLE_S, clock: Callable[[], float] = time.perf_counter
) -> dict[str, int]:
    """Number of units of each program that take about `sample_s` seconds, by the programs' keys."""
    return {program.key: 1 if program.once else _units(program, sample_s, clock) for program in programs}


def measure(
    programs: Sequence[TimedProgram],
    units: Mapping[str, int],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every program `repeats` times, all of them in each round.

    Args:
        programs: The programs. Each runs and compiles once before the first round, unless it has `once`.
        units: Units of a sample of each program. A sample should take long compared with the clock's steps and the
            cost of a call.
        repeats: Number of rounds.
        clock: Returns the time in seconds.

    Returns:
        Seconds of one unit in each round, by the programs' keys.
    """
    for program in programs:
        if not program.once:
            program.run(1)
    seconds: dict[str, list[float]] = {program.key: [] for program in programs}
    for turn in range(repeats):
        # A new order in each round, so that no program always follows the same program.
        for program in random.Random(turn).sample(programs, len(programs)):
            count = units[program.key]
            if count > 1:
                program.run(1)  # Refill the caches, from which the previous program evicted this program's data.
            seconds[program.key].append(_time(program, count, clock) / count)
    return seconds


def _units(program: TimedProgram, sample_s: float, clock: Callable[[], float]) -> int:
    """Number of units that take about `sample_s` seconds. The first run compiles and is not counted."""
    _time(program, 1, clock)
    count = 1
    # The shorter of two times: a busy neighbour makes times longer, and samples would become too small.
    while (seconds := min(_time(program, count, clock) for _ in range(2))) < sample_s / 2 and count < 1 << 20:
        count = min(8 * count, max(2 * count, int(count * sample_s / max(seconds, 1e-9))))
    return count


def _time(program: TimedProgram, count: int, clock: Callable[[], float]) -> float:
    began = clock()
    said = program.run(count)
    return clock() - began if said is None else said
