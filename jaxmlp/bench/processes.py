"""What do several fresh processes measure? Each times the whole suite; they run one after the other.

The first compiles, finds units and counts work; its times are not taken, so that all others start alike, from the cache
of compiled programs. A process beside which others worked is measured again, unless all of them were. The process that
asks starts no JAX, which would take a GPU's memory, or all of a TPU, from those that measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp.bench.noise import BUSY_CORES, noise
from jaxmlp.bench.timing import document
from jaxmlp.errors import JaxmlpError

SUITES = {"quick": 10, "full": 10}
"""Processes of each suite."""
ORDER = ("warm start", "compile", "step", "epoch", "evaluation", "run", "sweep")
"""Of the rows; then what else there is, the device's own."""
SIZES = ("devices", "grad_shards", "lanes", "width", "batch_size", "examples")
"""Order of the rows of a stage and a precision."""
AGAIN = 0.5
"""How many more may be measured, of the processes wanted, because others worked beside them."""


def run_suite(
    name: str,
    *,
    device: str = "auto",
    processes: int | None = None,
    units: Mapping[str, int] | None = None,
    plants: Sequence[str] = (),
    profiled: str | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time a suite, and return all about it as JSON values.

    Args:
        name: Of `SUITES`.
        device: As of `runtime.configure`.
        processes: How many are counted; by default the suite's own number.
        units: How many units a sample of a row is, as in a document that this one will be compared with: a sample of
            more units finds warmer caches. By default, and for rows that are not named, as many as take about 20 ms.
        plants: Stages that are timed a second time with a slow-down of known size, to try the instrument.
        profiled: Folder for a profile of an epoch, which the first process takes.
        tell: Told what happens, and how long it will take.

    Raises:
        JaxmlpError: A process failed, with its message and exit code.
    """
    from jaxmlp.bench.roof import add_utilisation, peaks
    from jaxmlp.bench.scaling import fits

    began, wanted = time.time(), processes or SUITES[name]
    asked: Any = {"units": units, "plants": plants, "profiled": profiled}
    first, counted = timed_processes(name, device=device, wanted=wanted, tell=tell, **asked)
    rows = rows_of(first, counted)
    rows.sort(key=_place)
    found_peaks = peaks(rows)
    add_utilisation(rows, found_peaks, first["machine"]["device_kind"])
    others = [one["others_cores"] for one in counted]
    return {
        "suite": name,
        "began_unix_s": began,
        "ended_unix_s": time.time(),
        "manifest": first["manifest"],
        "machine": first["machine"] | {"peak_bytes": counted[-1]["peak_bytes"]},
        "energy": first["energy"],
        "profile": first["profile"],
        "processes": len(counted),
        "noise": noise(None if None in others else float(np.mean(others)), [row["seconds"] for row in rows]),
        "peaks": found_peaks,
        "rows": rows,
        "scaling": fits(rows, *first["base"]),
    }


def timed_processes(
    name: str,
    *,
    device: str,
    wanted: int,
    units: Mapping[str, int] | None = None,
    plants: Sequence[str] = (),
    profiled: str | None = None,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the first process found, and what those that count did; arguments as of `run_suite`."""
    began = time.time()
    tell(f"{name}: one process compiles, then {wanted} fresh processes are timed; minutes on two cores")
    first = measure_in_a_process(name, device, units or {}, plants, counted=True, profiled=profiled)
    tell(f"compiled; less than {wanted * (time.time() - began):.0f} s more")
    quiet: list[dict[str, Any]] = []
    busy: list[dict[str, Any]] = []
    while len(quiet) < wanted and len(quiet) + len(busy) < wanted + int(AGAIN * wanted) * bool(quiet):
        started = time.perf_counter()
        found = measure_in_a_process(name, device, first["units"], plants)
        is_busy = (found["others_cores"] or 0.0) > BUSY_CORES
        (busy if is_busy else quiet).append(found)
        took, number = time.perf_counter() - started, len(quiet) + len(busy)
        said = f"; others kept {found['others_cores']:.1f} cores busy" if is_busy else ""
        rest = f"; about {took * (wanted - number):.0f} s more" if number < wanted else ""
        tell(f"process {number} of {wanted}: {took:.1f} s{said}{rest}")
    return first, [*quiet, *busy][:wanted]


def rows_of(first: Mapping[str, Any], counted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a document, by `timed_processes`."""
    return [
        document(facts, [one["seconds"][facts["key"]] for one in counted]) | {"units": first["units"][facts["key"]]}
        for facts in first["programs"]
    ]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a row stands in the table."""
    stages = [*ORDER, row["what"]]
    return stages.index(row["what"]), row["precision"] != "float32", *(row[size] for size in SIZES)


def measure_in_a_process(
    name: str, device: str, units: Mapping[str, int], plants: Sequence[str], **first: Any
) -> dict[str, Any]:
    """What `suite.measure_once` finds in a fresh process, asked as the first one is by `first`.

    Raises:
        JaxmlpError: As there, with its exit code.
    """
    command = [sys.executable, "-P", "-m", "jaxmlp", "bench-worker", "--suite", name, "--device", device, "--json"]
    asked = {"units": dict(units), "plants": list(plants), "counted": False, **first}
    here = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        try:
            answer = json.loads(worker.communicate(json.dumps(asked))[0] or "{}")
        except BaseException:
            worker.kill()
            raise
    if worker.returncode:
        failed = JaxmlpError(answer.get("error", f"a process that measured ended with code {worker.returncode}"))
        failed.exit_code = max(worker.returncode, 1)  # Negative: a signal ended it.
        raise failed
    found: dict[str, Any] = answer
    return found
