"""How is a suite measured by several fresh processes, one after the other?

The first process compiles, calibrates units and counts work. Its times are discarded, so that all timed processes start
alike, from the cache of compiled programs. If other programs kept the machine busy during a process, the process is
measured again, unless all were disturbed. The parent process does not start JAX, which would take a GPU's memory, or a
whole TPU, from the workers.
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
"""Default number of timed processes for each suite. With fewer, one disturbed process can hide a slower row: in a table
of 20 rows, the test over processes would not be significant any more."""
ORDER = ("warm start", "compile", "step", "epoch", "evaluation", "run", "sweep")
"""Order of the rows by what they time. The device's own rows follow."""
SIZES = ("devices", "grad_shards", "lanes", "width", "batch_size", "examples")
"""Sizes by which the rows of a stage and precision are sorted."""
AGAIN = 0.5
"""Largest number of processes that are measured again on a busy machine, as a fraction of the wanted processes."""


def run_suite(
    name: str,
    *,
    device: str = "auto",
    processes: int | None = None,
    units: Mapping[str, int] | None = None,
    plants: Sequence[str] = (),
    profiled: str | None = None,
    check: Callable[[Mapping[str, Any]], None] = lambda _: None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time a suite in fresh processes, and return its document as JSON values.

    Args:
        name: A name in `SUITES`.
        device: Kind of device, as in `runtime.configure`.
        processes: Number of timed processes. Default: the suite's number.
        units: Units of a sample for each row, from a document to compare with: a sample with more units finds warmer
            caches. Default, also for rows that are missing: the number that takes about 10 ms.
        plants: Stages that are timed a second time with a slow-down of known size, to test the instrument.
        profiled: Folder for a profile of an epoch, which the first process records.
        check: Called after the first process with `manifest` and `rows` of the document, whose rows have no times yet.
            It may raise, to end the measurement.
        tell: Called with progress messages and the time left.

    Raises:
        JaxmlpError: A process failed. The error has its message and exit code.
    """
    from jaxmlp.bench.roof import add_utilisation, peaks
    from jaxmlp.bench.scaling import fits

    began, wanted = time.time(), processes or SUITES[name]
    first, counted = timed_processes(
        name, device=device, wanted=wanted, units=units, plants=plants, profiled=profiled, check=check, tell=tell
    )
    rows = sorted(rows_of(first, counted), key=_place)
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
    check: Callable[[Mapping[str, Any]], None] = lambda _: None,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of the first process, and of the timed processes. For arguments see `run_suite`."""
    tell(f"{name}: one process compiles, then {wanted} fresh processes are timed; minutes on two cores")
    first = measure_in_a_process(name, device, units or {}, plants, counted=True, profiled=profiled)
    check({"manifest": first.get("manifest"), "rows": first["programs"]})
    tell("compiled")
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
    """The rows of a document, from the results of `timed_processes`."""
    return [
        document(facts, [one["seconds"][facts["key"]] for one in counted]) | {"units": first["units"][facts["key"]]}
        for facts in first["programs"]
    ]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The sort key of a row in the table."""
    return [*ORDER, row["what"]].index(row["what"]), row["precision"] != "float32", *(row[size] for size in SIZES)


def measure_in_a_process(
    name: str, device: str, units: Mapping[str, int], plants: Sequence[str], **first: Any
) -> dict[str, Any]:
    """Run `suite.measure_once` in a fresh process. `first` has the further arguments of the first process.

    Raises:
        JaxmlpError: The process failed. The error has its message and exit code.
    """
    command = [sys.executable, "-P", "-m", "jaxmlp", "bench-worker", "--suite", name, "--device", device, "--json"]
    asked = {"units": dict(units), "plants": list(plants), "counted": False, **first}
    here = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
    with subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        try:
            answer: dict[str, Any] = json.loads(worker.communicate(json.dumps(asked))[0] or "{}")
        except BaseException:
            worker.kill()
            raise
    if worker.returncode:
        failed = JaxmlpError(answer.get("error", f"a process that measured ended with code {worker.returncode}"))
        failed.exit_code = max(worker.returncode, 1)  # A negative code: a signal ended the process.
        raise failed
    return answer
