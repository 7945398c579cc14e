"""`make test-instrument`: can `jaxmlp bench --compare` be trusted on this machine?

It times whole quick suites of the same program, and compares each with the suite before it. No row may be judged
different, and few rows may be unstable. The second suite of a pair also times the base's step, epoch or sweep, in turn,
with a slow-down of 10 %. In each pair, this slowed row then replaces the real row, and must be judged slower.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jaxmlp.bench.compare import compare_benchmarks
from jaxmlp.bench.processes import run_suite

STAGES = ("step", "epoch", "sweep")
LIMIT = 0.05
UNSTABLE = 0.1
"""Largest fraction of all rows that may be unstable."""
FOUND = 0.95
"""Smallest fraction of the slow-downs that must be found."""


def main() -> int:
    """Time and judge the pairs. Returns exit code 3 if `--compare` cannot be trusted on this machine, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="of suites; there is one suite more than pairs")
    parser.add_argument("--processes", type=int, help="of each suite; by default its own number")
    parser.add_argument("--out", type=Path, default=Path("instrument.json"), help="all that was found")
    parser.add_argument("--read", type=Path, metavar="OUT", help="time nothing; judge what is in this file again")
    parser.add_argument("--rounds", type=int, help="with --read: judge by the first rounds of each process")
    chosen = parser.parse_args()
    if chosen.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {chosen.pairs}")
    if chosen.read:
        suites = [first_rounds(suite, chosen.rounds) for suite in json.loads(chosen.read.read_text())["suites"]]
        return verdict([judged(*pair, stage) for pair, stage in zip(pairwise(suites), cycle(STAGES), strict=False)])
    suites, pairs = [measured(chosen.processes)], []
    units = {row["key"]: row["units"] for row in suites[0]["rows"]}
    began = time.perf_counter()
    for number in range(chosen.pairs):
        stage = STAGES[number % len(STAGES)]
        suites.append(measured(chosen.processes, units, [stage]))
        pairs.append(judged(suites[-2], suites[-1], stage))
        chosen.out.write_text(json.dumps({"pairs": pairs, "suites": suites}))
        took = time.perf_counter() - began
        left = took / (number + 1) * (chosen.pairs - number - 1)
        print(f"pair {number + 1} of {chosen.pairs}: {told(pairs[-1])}; {left / 60:.0f} minutes more", flush=True)
    return verdict(pairs)


def measured(
    processes: int | None, units: Mapping[str, int] | None = None, plants: Sequence[str] = ()
) -> dict[str, Any]:
    """Time a quick suite, and the slowed rows of `plants`."""
    return run_suite("quick", processes=processes, units=units, plants=plants, tell=lambda _: None)


def first_rounds(document: Mapping[str, Any], rounds: int | None) -> dict[str, Any]:
    """The document as processes of fewer rounds would have given it."""
    samples = {row["key"]: np.reshape(row["seconds"], (document["processes"], -1)) for row in document["rows"]}
    medians = {key: np.median(seconds[:, :rounds], axis=1).tolist() for key, seconds in samples.items()}
    return {**document, "rows": [{**row, "process_s": medians[row["key"]]} for row in document["rows"]]}


def judged(base: Mapping[str, Any], here: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The verdicts of `--compare` on a pair, and on the pair with the slowed row of `stage`."""
    real, (planted,) = without_plants(here), [row for row in here["rows"] if row["what"] == f"planted {stage}"]
    slowed = copy.deepcopy(real)
    key = planted["key"].removeprefix("planted ")
    (row,) = (row for row in slowed["rows"] if row["key"] == key)
    row["process_s"] = planted["process_s"]
    equal, injected = (compare_benchmarks(without_plants(base), one, limit=LIMIT).rows for one in (real, slowed))
    (found,) = (one for one in injected if one.key == key)
    return {
        "false": [one._asdict() for one in equal if one.verdict in ("slower", "faster")],
        "unstable": [one.key for one in equal if one.verdict == "unstable"],
        "rows": sum(one.verdict != "device" for one in equal),
        "planted": found._asdict(),
        "noise": [document["noise"] for document in (base, here)],
    }


def without_plants(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without slowed rows, as users measure it."""
    return {**document, "rows": [row for row in document["rows"] if not row["what"].startswith("planted")]}


def told(pair: Mapping[str, Any]) -> str:
    """A line about a pair."""
    false = ", ".join(f"{one['key']} {one['verdict']} ({one['ratio']:.2f})" for one in pair["false"]) or "no false row"
    planted = pair["planted"]
    said = f"{false}; {len(pair['unstable'])} of {pair['rows']} unstable; planted in {planted['key']}"
    return f"{said}: {planted['verdict']} ({planted['ratio']:.2f})"


def verdict(pairs: list[dict[str, Any]]) -> int:
    """Print the totals of all pairs, with Clopper-Pearson intervals, and return the exit code."""
    false = sum(bool(pair["false"]) for pair in pairs)
    found = sum(pair["planted"]["verdict"] == "slower" for pair in pairs)
    rows = sum(pair["rows"] for pair in pairs)
    unstable = sum(len(pair["unstable"]) for pair in pairs) / rows
    for what, count in (("with a row called different", false), ("whose planted row was named slower", found)):
        low, high = binomtest(count, len(pairs)).proportion_ci(method="exact")
        print(f"pairs {what}: {count} of {len(pairs)}, 95 % interval {low:.3f} to {high:.3f}")
    print(f"rows unstable: {unstable:.1%} of {rows}")
    noisy = sum(any(one["noisy"] for one in pair["noise"]) for pair in pairs)
    if noisy:
        print(f"pairs on a noisy machine: {noisy} of {len(pairs)}. Measure again when it is quiet.")
    return 0 if not false and unstable <= UNSTABLE and found >= FOUND * len(pairs) else 3


if __name__ == "__main__":
    sys.exit(main())
