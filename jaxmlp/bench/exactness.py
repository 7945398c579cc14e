"""What does each level of exactness cost an update of the two experiments' networks and of a wide network?

`fastest` promises no bits (`exact=False`). It is timed in separate processes, because XLA's deterministic flags belong
to a process. `deterministic` gives the same bits when it runs again, `shards` on 1, 2, 4 or 8 devices, and `portable`
on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxmlp.bench.noise import Watch
from jaxmlp.bench.timing import TimedProgram, calibrate, measure

SUITES = {"fastest": 5, "exact": 5}
"""Number of timed processes for each suite."""
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
    """Time all levels of exactness, and return JSON values. For arguments see `processes.run_suite`."""
    from jaxmlp.bench.processes import rows_of, timed_processes

    rows, found = [], []
    for name, usual in SUITES.items():
        first, counted = timed_processes(name, device=device, wanted=processes or usual, tell=tell)
        found += counted
        rows += rows_of(first, counted)
    busy = max((one["others_cores"] or 0.0 for one in found), default=0.0)
    return {
        "suite": "exactness",
        "manifest": first["manifest"],
        "machine": first["machine"],
        "processes": len(counted),
        "others_cores": busy,
        "rows": rows,
    }


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Lines with the milliseconds of an update, and their ratio to `fastest` in the same precision."""
    rows = {(*row["what"].split(), row["precision"]): row for row in document["rows"]}
    ways = ("fastest", "deterministic", "shards")
    yield f"{'an update':22}" + "".join(f"{way:>22}" for way in ways)
    for network in dict.fromkeys(name for name, _, _ in rows):
        for precision in PRECISIONS:
            cells = _cells([rows[network, way, precision]["median_s"] for way in ways])
            yield f"{f'{network}, {precision}':22}{cells}"
        fastest, portable = (rows[network, *held]["median_s"] for held in (("fastest", "float32"), ("portable",) * 2))
        yield f"{f'{network}, portable':22}{_cells([portable], fastest)}"
    yield "Second figure: ratio to the fastest in the same precision; portable: to the fastest in float32."
    yield f"shards: {GRAD_SHARDS} gradient shards, added in a fixed order on one device."


def _cells(seconds: Sequence[float], fastest: float | None = None) -> str:
    return "".join(f"{f'{1e3 * one:.3g} ms, {one / (fastest or seconds[0]):.2f}':>22}" for one in seconds)
