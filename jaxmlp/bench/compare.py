"""Which rows of a benchmark are slower than another benchmark's?

The unit of comparison is the process, not the sample: samples of one process share memory layout, clock speed and time.
A row therefore has one value for each process, the median of its samples. Two benchmarks are two groups of processes.

A whole process, or a whole benchmark, can be faster or slower, by ten per cent on a virtual machine, because a
neighbour or the clock changes. The same update in plain JAX (`bench.plain`) shows by how much: it runs in the same
rounds, and no code of jaxmlp. So the times of jaxmlp are divided by the slowness of the device in their process: the
time of a plain step there, over its median time in the base. A device that has really become slower shows in its own
rows, such as plain step, product and copy, whose times are not changed, and in `Comparison.device_ratio`.

A row is `slower` if three things hold, and `faster` if they hold in the other direction:

1. Significant: the exact two-sided Mann-Whitney test over processes, adjusted for all rows by Holm's step-down, gives
   p < `P_MAX`. If both groups of processes come from one distribution, at most this fraction of tables has any such
   row, however the rows depend on each other. All rows have the same number of processes, and fewer than
   `needed_processes` are refused. Otherwise rows that cannot become significant would raise the p-values of the others.
2. Large: its ratio of medians exceeds the limit. Two benchmarks never come from quite the same distribution, so a test
   finds a difference of a per cent sooner or later.
3. Larger than the noise: its ratio exceeds the spread of its own processes (interquartile range over median) in either
   benchmark, and the slow-down that other processes on the machine could cause (`noise.load_factor`).

Any other row is `same` if a change by `EXCLUDED`, or by twice the limit if that is more, is excluded in both directions
(two one-sided Mann-Whitney tests, each with p < `P_MAX`), and its spread is not larger than that. Otherwise it is
`unstable`: it allows no conclusion. The device's own rows are not judged. Their verdict is `device`.
`tests/test_compare.py` simulates whole tables with noise between runs, between processes and within a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from math import comb
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.bench.spread import Spread
from jaxmlp.errors import UsageError

P_MAX = 0.05
"""Largest chance that any row of a table is significant although the programs are equal."""
EXCLUDED = 0.1
"""Change of a row that must be excluded before it is called the same, unless twice the limit is larger."""
PLAIN = "plain step"
"""Row by which the times of jaxmlp are divided."""
DEVICE_ROWS = (PLAIN, "product", "products", "copy", "dispatch", "to device", "from device", "psum",
               "all gather", "reduce scatter", "all to all")  # fmt: skip
"""Rows that run no code of jaxmlp. They measure the device itself."""
DEVICE = ("device_kind", "isa", "platform_version")
"""Names of the facts in the manifest that identify a device."""


class RowChange(NamedTuple):
    """A row of this benchmark compared with the same row of the base.

    Times of the device's own rows are as measured, all others relative to the device: see this module's docstring.
    """

    key: str
    base_s: float
    """Median over the base's processes, in seconds."""
    here_s: float
    """Median over this benchmark's processes, in seconds."""
    ratio: float
    """`here_s` divided by `base_s`."""
    effect: float
    """Cliff's delta over processes: 1 if every process here is slower than every process of the base, -1 if faster."""
    p: float
    """Two-sided p-value, adjusted by Holm's step-down for all rows of the table. 1 for the device's own rows."""
    spread: float
    """Interquartile range over median of the row's processes, in the benchmark where it is larger."""
    verdict: str
    """The verdict: slower, faster, same, unstable or device."""


class Comparison(NamedTuple):
    """A benchmark compared with a base."""

    rows: list[RowChange]
    device_ratio: float
    """How slow the device was, relative to the base. Above 1, a plain step took longer."""


def judge(
    base: Mapping[str, Sequence[float]],
    here: Mapping[str, Sequence[float]],
    *,
    limit: float,
    device: Sequence[str] = (),
    plain: str | None = None,
    load_factor: float = 1.0,
) -> Comparison:
    """Judge every row of `here` by the rules in this module's docstring.

    Args:
        base: Seconds of each process, in the order of the processes, for each row.
        here: The same, for the same rows.
        limit: The smallest difference that matters, as a fraction: 0.05 is 5 %.
        device: Keys of the device's own rows, which are not judged.
        plain: Key of the one among them by which all other times are divided. None: no time is divided.
        load_factor: Factor by which other processes could slow a row down, in either benchmark.
    """
    slow = [np.asarray(times[plain]) / np.median(base[plain]) if plain else np.ones(1) for times in (base, here)]
    base, here = (_relative(times, each, device) for times, each in zip((base, here), slow, strict=True))
    judged = [key for key in here if key not in device]
    adjusted = dict(zip(judged, holm([_p(here[key], base[key]) for key in judged]), strict=True))
    rows, excluded = [], max(EXCLUDED, 2 * limit)
    for key in here:
        there, now = base[key], here[key]
        spreads = [Spread.of(times) for times in (there, now)]
        ratio, spread = spreads[1].median / spreads[0].median, max(one.iqr / one.median for one in spreads)
        p, size = adjusted.get(key, 1.0), max(ratio, 1 / ratio)
        differs = p < P_MAX and size > 1 + limit
        if key in device:
            verdict = "device"
        elif differs and size > max(1 + spread, load_factor):
            verdict = "slower" if ratio > 1 else "faster"
        else:
            is_same = not differs and spread <= excluded and _excludes(excluded, now, there)
            verdict = "same" if is_same else "unstable"
        wins = sum(float(one > other) + 0.5 * (one == other) for one in now for other in there)
        effect = float(2 * wins / (len(now) * len(there)) - 1)
        rows.append(RowChange(key, spreads[0].median, spreads[1].median, ratio, effect, p, spread, verdict))
    return Comparison(rows, float(np.median(slow[1]) / np.median(slow[0])))


def _relative(times: Mapping[str, Sequence[float]], slow: Any, device: Sequence[str]) -> dict[str, Any]:
    return {key: np.asarray(seconds) / (1 if key in device else slow) for key, seconds in times.items()}


def _p(here: Any, base: Any, alternative: str = "two-sided") -> float:
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(here, base, alternative=alternative, method="exact").pvalue)


def _excludes(change: float, here: Any, base: Any) -> bool:
    """Whether `here` is neither slower nor faster than the base by `change` or more."""
    return max(_p(here, base * (1 + change), "less"), _p(here, base / (1 + change), "greater")) < P_MAX


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down, in the order of `p`.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return [float(value) for value in adjusted.clip(max=1)]


def needed_processes(rows: int, others: int | None = None) -> int:
    """The fewest processes with which one of `rows` rows can be significant.

    Args:
        rows: Rows of the table.
        others: Processes of the base. Default: the same number.
    """
    return next(n for n in count(2) if 2 * rows / comb(n + (others or n), n) < P_MAX)


def compare_benchmarks(
    base: Mapping[str, Any], here: Mapping[str, Any], *, limit: float, across_devices: bool = False
) -> Comparison:
    """Judge the rows that two documents of `run_suite` share, in the order of `here`.

    Raises:
        UsageError: The devices differ and `across_devices` is False, the documents share no row or no plain step, or
            they have too few processes.
    """
    check_comparable(base, here, across_devices=across_devices)
    before = {row["key"]: row["process_s"] for row in base["rows"]}
    shared = [row for row in here["rows"] if row["key"] in before]
    device = [row["key"] for row in shared if row["what"] in DEVICE_ROWS]
    plain = next(row["key"] for row in shared if row["what"] == PLAIN)
    check_processes(base, min(len(row["process_s"]) for row in shared))
    load_factor = max(document["noise"]["load_factor"] for document in (base, here))
    times = {row["key"]: row["process_s"] for row in shared}
    return judge(before, times, limit=limit, device=device, plain=plain, load_factor=load_factor)


def check_comparable(base: Mapping[str, Any], here: Mapping[str, Any], *, across_devices: bool) -> None:
    """Refuse a base of another device, or without a common row. The rows of `here` need not be timed yet.

    Raises:
        UsageError: The devices differ and `across_devices` is False, or the documents share no row, or no plain step.
    """
    if not across_devices and (differing := _devices(base, here)):
        hint = "Add --across-devices to compare them anyway"
        raise UsageError(f"compare: the devices differ: {'; '.join(differing)}. {hint}")
    before = {row["key"] for row in base["rows"]}
    if not before & {row["key"] for row in here["rows"]}:
        raise UsageError(f"compare: the base, which has suite {base['suite']}, has none of these rows")
    if not before & {row["key"] for row in here["rows"] if row["what"] == PLAIN}:
        said = f"has no row `{PLAIN}`, by which the times of jaxmlp are divided"
        raise UsageError(f"compare: the base {said}. Make it again with `jaxmlp bench --json`")


def check_processes(base: Mapping[str, Any], processes: int) -> None:
    """Refuse a number of processes that cannot show a difference from the base.

    Raises:
        UsageError: There are too few processes.
    """
    rows = [row["process_s"] for row in base["rows"] if row["what"] not in DEVICE_ROWS]
    there = min(map(len, rows), default=1)
    if processes < (needed := needed_processes(len(rows), there)):
        said = f"compare: {processes} processes cannot show a difference from a base of {there}"
        raise UsageError(f"{said}. Measure with --processes {needed}, or make a base with more")


def _devices(base: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The facts in which the devices differ, such as `device_kind: cpu there, NVIDIA H100 here`."""
    facts = [
        {name: document["manifest"]["binding"].get(name) for name in DEVICE}
        | {"devices": document["manifest"]["not_binding"].get("devices")}
        | {"threads": document["manifest"]["not_binding"].get("threads")}
        for document in (base, here)
    ]
    return [
        f"{name}: {facts[0][name]} there, {facts[1][name]} here"
        for name in facts[0]
        if facts[0][name] != facts[1][name]
    ]
