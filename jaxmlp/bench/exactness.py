"""What does each level of exactness cost an update of the two experiments' networks and of a wide network?

`fastest` promises no bits (`exact=False`). It is timed in separate processes, because XLA's deterministic flags belong
to a process. `deterministic` gives the same bits when it runs again, `shards` on 1, 2, 4 or 8 devices, and `portable`
on any machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxmlp.bench.noise import Watch
from jaxmlp.bench.spread import Spread
from jaxmlp.bench.timing import TimedProgram, calibrate, measure

SUITES = ("fastest", "exact")
PROCESSES = 5
"""Number of timed processes of each suite."""
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
GRAD_SHARDS = 8
EXAMPLES = 4_000
ROUNDS = 3


def measure_once(name: str, units: Mapping[str, int], **_: Any) -> dict[str, Any]:
    """Time one of `SUITES` in this process. Returns JSON values, as `suite.measure_once` does.

    Args:
        name: A name in `SUITES`.
        units: Units of a sample, by the programs' keys. Missing keys are calibrated.
    """
    from jaxmlp.bench.machine import machine
    from jaxmlp.run.manifest import platform_facts

    watch, timed = Watch.begin(), list(programs(name))
    units = calibrate([program for program in timed if program.key not in units]) | dict(units)
    return {
        "programs": [program.facts() for program in timed],
        "units": units,
        "seconds": measure(timed, units, repeats=ROUNDS),
        "others_cores": watch.others_cores(),
        "manifest": platform_facts(),
        "machine": machine(),
    }


def programs(name: str) -> Iterator[TimedProgram]:
    """The updates of a suite. `what` is the network and the level of exactness, such as `relu shards`."""
    from jaxmlp.bench.suite import SteppedTraining, random_dataset
    from jaxmlp.experiment.config import ExperimentConfig
    from jaxmlp.experiment.mlp import MLP
    from jaxmlp.experiment.optimizers import SGD

    relu = ExperimentConfig(model=MLP(hidden_sizes=(512, 512)), batch_size=128)
    tanh = MLP(hidden_sizes=(500, 500), activation="tanh", dropout_rate=0.5)
    networks = {
        "relu": relu,
        "tanh": replace(relu, model=tanh, optimizer=SGD(momentum=0.9, nesterov=True), batch_size=200),
        "wide": replace(relu, model=MLP(hidden_sizes=(2048, 2048))),
    }
    ways: dict[str, dict[str, Any]] = {"fastest": {"exact": False}}
    if name == "exact":
        ways = {"deterministic": {}, "shards": {"grad_shards": GRAD_SHARDS}}
    dataset = random_dataset(EXAMPLES, 1_000)
    for network, config in networks.items():
        chosen = [(way, {**values, "precision": one}) for one in PRECISIONS for way, values in ways.items()]
        if name == "exact":
            chosen.append(("portable", {"precision": "portable"}))
        for way, values in chosen:
            made = replace(config, **values)
            assert isinstance(made.model, MLP)
            yield TimedProgram(
                what=f"{network} {way}", run=SteppedTraining(made, dataset).steps, batch_size=made.batch_size,
                width=made.model.hidden_sizes[0], precision=made.precision, grad_shards=made.grad_shards,
                examples=made.batch_size,
            )  # fmt: skip


def run_exactness(
    *, device: str = "auto", processes: int | None = None, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Time all levels of exactness, and return JSON values. For arguments see `processes.run_suite`.

    The suites take turns, a process each, so that both meet the same clock speeds and neighbours.
    """
    from jaxmlp.bench.processes import measure_in_a_process, rows_of

    wanted, began = processes or PROCESSES, time.perf_counter()
    tell(f"exactness: two processes compile, then {wanted} of each suite are timed in turns; minutes on two cores")
    firsts = {name: measure_in_a_process(name, device, {}, (), counted=True) for name in SUITES}
    tell(f"compiled; less than {wanted * (time.perf_counter() - began):.0f} s more")
    timed: dict[str, list[dict[str, Any]]] = {name: [] for name in SUITES}
    for number in range(1, wanted + 1):
        started = time.perf_counter()
        for name in SUITES:
            timed[name].append(measure_in_a_process(name, device, firsts[name]["units"], ()))
        took = time.perf_counter() - started
        tell(f"turn {number} of {wanted}: {took:.1f} s; about {took * (wanted - number):.0f} s more")
    return {
        "suite": "exactness",
        "manifest": firsts["exact"]["manifest"],
        "machine": firsts["exact"]["machine"],
        "processes": wanted,
        "others_cores": max(one["others_cores"] or 0.0 for found in timed.values() for one in found),
        "rows": [row for name in SUITES for row in rows_of(firsts[name], timed[name])],
    }


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines with the milliseconds of an update, and the ratios of each turn to `fastest` in the same precision."""
    rows = {(*row["what"].split(), row["precision"]): row for row in document["rows"]}
    ways = ("fastest", "deterministic", "shards")
    yield f"{'an update':22}" + "".join(f"{way:>26}" for way in ways)
    for network in dict.fromkeys(name for name, _, _ in rows):
        for precision in PRECISIONS:
            fastest = rows[network, "fastest", precision]
            cells = "".join(_cell(rows[network, way, precision], fastest) for way in ways)
            yield f"{f'{network}, {precision}':22}{cells}"
        cell = _cell(rows[network, "portable", "portable"], rows[network, "fastest", "float32"])
        yield f"{f'{network}, portable':22}{cell}"
    yield "Median ms; median ratio to the fastest in the same precision (its interquartile range)."
    yield "portable: ratio to the fastest in float32."
    yield f"shards: {GRAD_SHARDS} gradient shards, added in a fixed order on one device."


def _cell(row: Mapping[str, Any], fastest: Mapping[str, Any]) -> str:
    ratios = Spread.of([one / other for one, other in zip(row["process_s"], fastest["process_s"], strict=True)])
    return f"{f'{1e3 * row["median_s"]:.3g} ms, {ratios.median:.2f} ({ratios.iqr:.2f})':>26}"
