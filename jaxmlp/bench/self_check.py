"""Can the benchmark be trusted here? It must time work of known size right, and find slow-downs of known size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from jaxmlp.bench.compare import judge
from jaxmlp.bench.device import copy, product
from jaxmlp.bench.timing import TimedProgram, calibrate, measure

TRIES = 20
LIMIT = 0.05
"""Fraction by which a row may be slower."""
SLOW_DOWN = 1.1
SLEEP_S = 0.02


def self_check(repeats: int = 30, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Test the benchmark against known answers on this machine.

    A sleep must take its length. Two products, one with 8 times the FLOPs, must have the same rate within a factor of
    two, and so must two copies, one with twice the bytes. In each of 20 tries, 10 % more work must be judged slower,
    and the same work neither slower nor faster.

    Returns:
        The measured figures as JSON values:
        `sleep_s`, `product_rates`, `copy_rates`, `tries`, `slow_downs_found`, `false_alarms` and `passed`.
    """
    slept = TimedProgram(what="sleep", run=lambda count: time.sleep(SLEEP_S * count), once=True)
    sized = [product(512, "float32"), product(1024, "float32"), copy(128), copy(256)]
    named = [slept, *(replace(one, batch_size=number) for number, one in enumerate(sized, 1))]
    sleep_s, *times = map(min, measure(named, calibrate(named), repeats=5).values())
    rates = [(one.flops or one.bytes) / seconds for one, seconds in zip(sized, times, strict=True)]
    found = alarms = 0
    for number in range(TRIES):
        base, here, slower = _three(repeats)
        found += judge({"": base}, {"": slower}, limit=LIMIT).rows[0].verdict == "slower"
        alarms += judge({"": base}, {"": here}, limit=LIMIT).rows[0].verdict in ("slower", "faster")
        tell(f"try {number + 1} of {TRIES}: {found} slow-downs found, {alarms} false alarms")
    products, copies = rates[:2], rates[2:]
    # On a quiet machine time.sleep oversleeps by at most one tick of the system.
    true_sleep = SLEEP_S <= sleep_s < 1.25 * SLEEP_S
    true_rates = all(max(pair) < 2 * min(pair) for pair in (products, copies))
    return {
        "sleep_s": sleep_s,
        "product_rates": products,
        "copy_rates": copies,
        "tries": TRIES,
        "slow_downs_found": found,
        "false_alarms": alarms,
        "passed": true_sleep and true_rates and found == TRIES and alarms == 0,
    }


def _three(repeats: int) -> list[list[float]]:
    """Times of the same work twice, then of 10 % more work, in the same rounds."""
    work = product(512, "float32")

    def run(units: int, count: int) -> None:
        work.run(units * count)

    parts = {"base": 10, "here": 10, "slower": round(10 * SLOW_DOWN)}
    programs = [TimedProgram(what=name, run=partial(run, units), once=True) for name, units in parts.items()]
    return list(measure(programs, calibrate(programs), repeats=repeats).values())
