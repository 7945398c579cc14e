"""`make test-instrument`: can `jaxmlp bench --compare` be trusted on this machine?

Pairs of whole quick suites of the same program, one after the other: no row may be called different, and few unstable.
In the second of each pair the base's step, epoch and sweep are timed a second time with a slow-down of 10 %; in turn,
such a row takes the place of the real one, and must be named.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from jaxmlp.bench.compare import compare
from jaxmlp.bench.processes import run_suite

STAGES = ("step", "epoch", "sweep")
LIMIT = 0.05
UNSTABLE = 0.1
"""Part of all rows that may be."""
FOUND = 0.95
"""Part of the slow-downs that must be."""


def main() -> int:
    """Exit code 3 where the instrument is not to be trusted here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="of quick suites")
    parser.add_argument("--processes", type=int, help="of each suite; by default its own number")
    parser.add_argument("--out", type=Path, default=Path("instrument.json"), help="all that was found")
    chosen = parser.parse_args()
    began, pairs = time.perf_counter(), []
    for number in range(chosen.pairs):
        base = measured(chosen.processes)
        here = measured(chosen.processes, {row["key"]: row["units"] for row in base["rows"]})
        pairs.append(judged(base, here, STAGES[number % len(STAGES)]))
        chosen.out.write_text(json.dumps({"pairs": pairs, "machine": here["machine"], "manifest": here["manifest"]}))
        took = time.perf_counter() - began
        left = took / (number + 1) * (chosen.pairs - number - 1)
        print(f"pair {number + 1} of {chosen.pairs}: {told(pairs[-1])}; {left / 60:.0f} minutes more", flush=True)
    return verdict(pairs)


def measured(processes: int | None, units: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A quick suite with the planted rows."""
    return run_suite("quick", processes=processes, units=units, plants=STAGES, tell=lambda _: None)


def judged(base: Mapping[str, Any], here: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """What `--compare` says of a pair, and of the pair with one row of the stage slowed down."""
    real, (planted,) = without_plants(here), [row for row in here["rows"] if row["what"] == f"planted {stage}"]
    slowed = copy.deepcopy(real)
    key = planted["key"].removeprefix("planted ")
    (row,) = (row for row in slowed["rows"] if row["key"] == key)
    row["process_s"] = planted["process_s"]
    equal, injected = (compare(without_plants(base), one, limit=LIMIT) for one in (real, slowed))
    (found,) = (one for one in injected if one.key == key)
    return {
        "false": [one._asdict() for one in equal if one.verdict in ("slower", "faster")],
        "unstable": [one.key for one in equal if one.verdict == "unstable"],
        "rows": sum(one.verdict != "device" for one in equal),
        "planted": found._asdict(),
        "noise": [document["noise"] for document in (base, here)],
    }


def without_plants(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a suite as users measure it."""
    return {**document, "rows": [row for row in document["rows"] if not row["what"].startswith("planted")]}


def told(pair: Mapping[str, Any]) -> str:
    """A pair, in a line."""
    false = ", ".join(f"{one['key']} {one['verdict']} ({one['ratio']:.2f})" for one in pair["false"]) or "no false row"
    planted = pair["planted"]
    said = f"{false}; {len(pair['unstable'])} of {pair['rows']} unstable; planted in {planted['key']}"
    return f"{said}: {planted['verdict']} ({planted['ratio']:.2f})"


def verdict(pairs: list[dict[str, Any]]) -> int:
    """Say what all pairs came to, with the intervals of Clopper and Pearson."""
    false = sum(bool(pair["false"]) for pair in pairs)
    found = sum(pair["planted"]["verdict"] == "slower" for pair in pairs)
    rows = sum(pair["rows"] for pair in pairs)
    unstable = sum(len(pair["unstable"]) for pair in pairs) / rows
    for what, count in (("with a row called different", false), ("whose planted row was named slower", found)):
        low, high = binomtest(count, len(pairs)).proportion_ci(method="exact")
        print(f"pairs {what}: {count} of {len(pairs)}, 95 % interval {low:.3f} to {high:.3f}")
    print(f"rows unstable: {unstable:.1%} of {rows}")
    noisy = sum(one["noisy"] for pair in pairs for one in pair["noise"])
    if noisy:
        print(f"suites on a noisy machine: {noisy} of {2 * len(pairs)}. Measure again when it is quiet.")
    return 0 if not false and unstable <= UNSTABLE and found >= FOUND * len(pairs) else 3


if __name__ == "__main__":
    sys.exit(main())
