"""What does one process of a benchmark time? Each stage of a training, over sizes, precisions and devices."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlp import data, shards, train
from jaxmlp.bench.device import device_programs
from jaxmlp.bench.machine import gpu, joules, machine, peak_bytes
from jaxmlp.bench.noise import Watch
from jaxmlp.bench.profile import profile
from jaxmlp.bench.timing import Program, calibrate, measure
from jaxmlp.bench.work import Work, eval_work, step_work
from jaxmlp.compile.targets import compiling_anew
from jaxmlp.engine.fitting import fit
from jaxmlp.engine.programs import Programs
from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.run.manifest import manifest
from jaxmlp.sweep import sweep

IMAGE_SHAPE, NUM_CLASSES = (28, 28, 1), 10
ENERGY_S = 2.0
"""Long against the steps of a GPU's energy counter, some 0.1 s."""
PLANTED = 1.1
"""Factor of the slow-down by which the instrument is tried."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark's sizes; the first batch size, width and number of examples are the base, which all stages run."""

    batch_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    precisions: tuple[str, ...]
    grad_shards: tuple[int, ...]
    """On one device; as many devices as there are share a batch in one shard each."""
    examples: tuple[int, ...]
    eval_examples: int
    cross: bool
    """Steps of all combinations, or of those that differ from the base in one size."""
    lanes: tuple[int, ...]
    """Of sweeps of the base over the fewest examples."""
    rounds: int = 3
    """In each process; of what is long, which is compiling and sweeps, there is one."""


SUITES = {
    "quick": Suite(
        batch_sizes=(128, 32, 512), widths=(512, 128, 256), precisions=("float32", "bfloat16"),
        grad_shards=(1, 2, 4, 8), examples=(3_000, 750), eval_examples=2_000, cross=False,
        lanes=(1, 4),
    ),
    "full": Suite(
        batch_sizes=(128, 32, 256, 512, 1024, 4096), widths=(512, 128, 256, 1024, 2048),
        precisions=("float32", "bfloat16"), grad_shards=(1, 2, 4, 8), examples=(60_000, 7_500, 15_000, 30_000),
        eval_examples=10_000, cross=True, lanes=(1, 2, 4, 8, 16),
    ),
}  # fmt: skip


def measure_once(
    name: str,
    units: Mapping[str, int],
    *,
    counted: bool,
    plants: Sequence[str] = (),
    profiled: str | None = None,
    started: float,
) -> dict[str, Any]:
    """Time a suite in this process, and return JSON values for `processes.run_suite`.

    Args:
        name: Of `SUITES`.
        units: As `timing.measure`; those that are missing are found.
        counted: Whether each program's work is counted, and an update's energy, too.
        profiled: Folder for a profile of an epoch of the base.
        plants: Stages of which the base is timed a second time, slowed down by `PLANTED`.
        started: When the process began, by `time.perf_counter`.
    """
    suite, watch = SUITES[name], Watch.begin()
    base = Trainer(_config(suite), random_dataset(suite.examples[0], suite.eval_examples))
    base.steps(1)
    warm_s = time.perf_counter() - started
    sizes: Any = {"batch_size": suite.batch_sizes[0], "width": suite.widths[0], "once": True}
    compiles = [Program(what="compile", run=base.compile, **sizes)]
    start = Program(what="warm start", run=lambda _: warm_s, **sizes)
    layers = (int(np.prod(IMAGE_SHAPE)), suite.widths[0], suite.widths[0], NUM_CLASSES)
    device = device_programs(suite.batch_sizes[0], layers, suite.precisions)
    steady, swept = [*device, *_steady(suite, counted=counted)], list(_sweeps(suite))
    for what in plants:
        held = swept if what == "sweep" else steady
        held.append(_slowed(next(program for program in held if program.what == what)))
    programs = [start, *compiles, *steady, *swept]
    units = calibrate([program for program in programs if program.key not in units]) | dict(units)
    # A slow-down is of the same sample.
    units |= {key: units[key.removeprefix("planted ")] for key in units}
    with compiling_anew():
        seconds = measure(compiles, units, repeats=1)
    seconds |= measure(steady, units, repeats=suite.rounds) | measure([start, *swept], units, repeats=1)
    energy_updates = round(ENERGY_S / seconds[next(one.key for one in steady if one.what == "step")][0])
    energy_j = joules(lambda: base.steps(energy_updates)) if counted and gpu() else None
    return {
        "energy": {"joules": energy_j, "updates": energy_updates},
        "profile": profile(lambda: base.epoch(1), Path(profiled)) if profiled else None,
        "programs": [program.facts() for program in programs],
        "units": units,
        "seconds": seconds,
        "others_cores": watch.others_cores(),
        "peak_bytes": peak_bytes(),
        "base": [suite.batch_sizes[0], suite.widths[0]],
        "manifest": manifest(base.config, base.dataset),
        "machine": machine(),
    }


def _slowed(program: Program) -> Program:
    """The same work, and then a wait of the part by which it is planted to be slower."""

    def run(count: int) -> float | None:
        began = time.perf_counter()
        said = program.run(count)
        end = began + PLANTED * (time.perf_counter() - began)
        while said is None and time.perf_counter() < end:
            pass
        return said and PLANTED * said

    return dataclasses.replace(program, what=f"planted {program.what}", run=run)


def _config(
    suite: Suite,
    batch_size: int | None = None,
    width: int | None = None,
    precision: Any = "float32",
    grad_shards: int = 1,
) -> ExperimentConfig:
    """The relu experiment of these sizes, by default of the base's."""
    width = width or suite.widths[0]
    return ExperimentConfig(
        model=MLP(hidden_sizes=(width, width)),
        data=DataConfig(validation="test"),
        batch_size=batch_size or suite.batch_sizes[0],
        epochs=1,
        precision=precision,
        grad_shards=grad_shards,
    )


def random_dataset(examples: int, eval_examples: int) -> data.Dataset:
    """Random images: what a step costs depends on their shape alone."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples + eval_examples, *IMAGE_SHAPE), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, examples + eval_examples, np.int32)
    labels[:NUM_CLASSES] = np.arange(NUM_CLASSES)
    return data.from_arrays(
        (images[:examples], labels[:examples]), (images[examples:], labels[examples:]), validation="test"
    )


class Trainer:
    """A training whose updates, orders and evaluations can be called one by one."""

    def __init__(self, config: ExperimentConfig, dataset: data.Dataset, devices: int = 1) -> None:
        mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
        self.config, self.dataset, self.programs = config, dataset, Programs(config, dataset, mesh)
        self.position = self.programs.first()
        self.order = self.programs.order(1)

    def compile(self, _: int) -> None:
        """From the Python code to a program of the device, nothing kept from before."""
        jax.clear_caches()
        state, sums, programs = self.position.state, self.position.sums, self.programs
        updates = programs.feeds["train"].updates(self.order, 0, 1)
        train.train_steps.lower(programs.config, state, sums, *updates, mesh=programs.mesh).compile()

    def steps(self, count: int) -> None:
        """In as few calls as an epoch has room for."""
        while count > 0:
            now = min(count, self.programs.steps_per_epoch)
            self.position.done = 0
            jax.block_until_ready(self.programs.advance(self.position, self.order, now))
            count -= now

    def evaluate(self, count: int) -> None:
        """The validation split."""
        for _ in range(count):
            self.programs.evaluate(self.position, "validation")

    def epoch(self, count: int) -> None:
        """As `fit` does it, but for its looks at the clock: order, updates, evaluation."""
        for _ in range(count):
            self.order = self.programs.order(1)
            self.steps(self.programs.steps_per_epoch)
            self.evaluate(1)

    def whole(self, count: int) -> None:
        """As a user trains."""
        for _ in range(count):
            fit(self.config, self.dataset, devices=self.programs.mesh.size)


def _steady(suite: Suite, *, counted: bool) -> Iterator[Program]:
    """Steps, evaluations, epochs and runs; their work is counted, which takes longer than to make them, if asked."""
    dataset = random_dataset(suite.examples[0], suite.eval_examples)
    for devices, grad_shards, precision, batch_size, width in _combinations(suite):
        config = _config(suite, batch_size, width, precision, grad_shards)
        trainer = Trainer(config, dataset, devices)
        step = (step_work(config, dataset.facts) if counted else Work(0, 0))._asdict()
        sizes: Any = {"batch_size": batch_size, "width": width, "precision": precision}
        sizes |= {"devices": devices, "grad_shards": grad_shards, "resident": step["bytes"] // 2}
        yield Program(what="step", run=trainer.steps, examples=batch_size, **step, **sizes)
        if (batch_size, width) != (suite.batch_sizes[0], suite.widths[0]) or grad_shards != devices:
            continue
        evaluated = (eval_work(config, dataset.facts, suite.eval_examples) if counted else Work(0, 0))._asdict()
        yield Program(what="evaluation", run=trainer.evaluate, examples=suite.eval_examples, **evaluated, **sizes)
        for examples in suite.examples[: None if (precision, devices) == (suite.precisions[0], 1) else 1]:
            smaller = trainer
            if examples != suite.examples[0]:
                smaller = Trainer(config, random_dataset(examples, suite.eval_examples), devices)
            full = {name: step[name] * examples // batch_size + evaluated[name] for name in step}
            yield Program(what="epoch", run=smaller.epoch, examples=examples, **full, **sizes)
        yield Program(what="run", run=trainer.whole, examples=suite.examples[0], **sizes)


def _sweeps(suite: Suite) -> Iterator[Program]:
    config = _config(suite)
    examples = min(suite.examples)
    dataset = random_dataset(examples, suite.eval_examples)
    sizes: Any = {"batch_size": config.batch_size, "width": suite.widths[0]}
    for lanes in suite.lanes:
        # Of all lanes, without what the call compiles.
        run = partial(lambda lanes, _: sweep(config, dataset, seeds=range(lanes)).train_s, lanes)
        yield Program(what="sweep", run=run, lanes=lanes, examples=lanes * examples, once=True, **sizes)


def _combinations(suite: Suite) -> Iterator[tuple[int, int, str, int, int]]:
    """Devices, gradient shards, precision, batch size and width of each training."""
    base = ((1, 1), suite.precisions[0], suite.batch_sizes[0], suite.widths[0])
    # A shard has two rows at least.
    counts = range(1, jax.device_count() + 1)
    most = max(n for n in counts if n == 1 or not any(size % n or size < 2 * n for size in suite.batch_sizes))
    sharing = [*((1, count) for count in suite.grad_shards), *([(most, most)] if most > 1 else [])]
    sizes = (sharing, suite.precisions, suite.batch_sizes, suite.widths)
    for found in itertools.product(*sizes):
        differs = sum(one != other for one, other in zip(found, base, strict=True))
        if differs < 2 or (suite.cross and found[0] == (1, 1)):
            yield (*found[0], *found[1:])
