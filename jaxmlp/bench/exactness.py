"""What does each level of exactness cost? An update of both experiments and of a wide network, in each way of adding.

`fastest` promises no bits (`exact=False`) and is timed in processes of its own, because XLA's deterministic flags
belong to a process. `deterministic` has the same bits when run again, `shards` on any number of devices up to 8,
`portable` on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxmlp.bench.noise import Watch
from jaxmlp.bench.timing import Program, calibrate, measure

SUITES = {"fastest": 5, "exact": 5}
"""Processes of each of the two suites."""
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
GRAD_SHARDS = 8
EXAMPLES = 4_000
ROUNDS = 3


def measure_once(name: str, units: Mapping[str, int], **_: Any) -> dict[str, Any]:
    """Time one of `SUITES` in this process, and return JSON values as `suite.measure_once`; units as there."""
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


def programs(name: str) -> Iterator[Program]:
    """Updates with the bits of a suite; `what` is the network, then how it adds."""
    from jaxmlp.bench.suite import Trainer, random_dataset
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
            yield Program(
                what=f"{network} {way}", run=Trainer(made, dataset).steps, batch_size=made.batch_size,
                width=made.model.hidden_sizes[0], precision=made.precision, grad_shards=made.grad_shards,
                examples=made.batch_size,
            )  # fmt: skip


def run_exactness(
    *, device: str = "auto", processes: int | None = None, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Time all ways, and return all about them as JSON values; arguments as of `processes.run_suite`."""
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
    """Milliseconds of an update, and how many times those of the fastest in the same precision."""
    rows = {(*row["what"].split(), row["precision"]): row for row in document["rows"]}
    ways = ("fastest", "deterministic", "shards")
    yield f"{'an update':22}" + "".join(f"{way:>22}" for way in ways)
    for network in dict.fromkeys(name for name, _, _ in rows):
        for precision in PRECISIONS:
            cells = _cells([rows[network, way, precision]["median_s"] for way in ways])
            yield f"{f'{network}, {precision}':22}{cells}"
        fastest, portable = (rows[network, *held]["median_s"] for held in (("fastest", "float32"), ("portable",) * 2))
        yield f"{f'{network}, portable':22}{_cells([portable], fastest)}"
    yield "Times as long as the fastest of the same precision; portable: of float32."
    yield f"shards: {GRAD_SHARDS}, added in a fixed order on one device."


def _cells(seconds: Sequence[float], fastest: float | None = None) -> str:
    return "".join(f"{f'{1e3 * one:.3g} ms, {one / (fastest or seconds[0]):.2f}':>22}" for one in seconds)
