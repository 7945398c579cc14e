"""What does one process of a benchmark time? Each stage of a training, over sizes, precisions and devices.

The base is the training with the first batch size, width and number of examples, in float32 on one device.
"""

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
from jaxmlp.bench.machine import joules, machine, peak_bytes
from jaxmlp.bench.noise import Watch
from jaxmlp.bench.plain import plain_step
from jaxmlp.bench.profile import profile
from jaxmlp.bench.timing import TimedProgram, calibrate, measure
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
"""Seconds of updates over which energy is measured: long compared with the counter's steps of about 0.1 s."""
PLANTED = 1.1
"""Factor of the slow-downs that test the instrument."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Sizes of a benchmark. The first batch size, width and number of examples are the base, which all stages run."""

    batch_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    precisions: tuple[str, ...]
    grad_shards: tuple[int, ...]
    """Numbers of gradient shards that are timed on one device. On several devices each device has one shard."""
    examples: tuple[int, ...]
    eval_examples: int
    cross: bool
    """Time steps of all combinations of sizes. False: only of combinations that differ from the base in one size."""
    lanes: tuple[int, ...]
    """Numbers of lanes of the sweeps."""
    sweep_examples: int
    """Examples that each lane of a sweep trains on, with the sizes of the base."""
    rounds: int
    """Rounds in each process. On a server that others share, a row is slow for some tenths of a second at a time, so
    the median of many rounds varies least (docs/benchmarking.md)."""


SUITES = {
    "quick": Suite(
        batch_sizes=(128, 32, 512), widths=(512, 128, 256), precisions=("float32", "bfloat16"),
        grad_shards=(1, 2, 4, 8), examples=(1_500, 375), eval_examples=1_000, cross=False,
        lanes=(1, 4), sweep_examples=750, rounds=10,
    ),
    "full": Suite(
        batch_sizes=(128, 32, 256, 512, 1024, 4096), widths=(512, 128, 256, 1024, 2048),
        precisions=("float32", "bfloat16"), grad_shards=(1, 2, 4, 8), examples=(60_000, 7_500, 15_000, 30_000),
        eval_examples=10_000, cross=True, lanes=(1, 2, 4, 8, 16), sweep_examples=7_500, rounds=5,
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
        name: A name in `SUITES`.
        units: Units of a sample, by the programs' keys. Missing keys are calibrated.
        counted: Whether to count the work of each program and to measure the energy of updates, in the process whose
            times are discarded. It makes one round.
        profiled: Folder for a profile of an epoch of the base. None: no profile.
        plants: Stages whose base is timed a second time, slowed down by `PLANTED`.
        started: `time.perf_counter()` at the start of the process.
    """
    suite, watch = SUITES[name], Watch.begin()
    base = SteppedTraining(_config(suite), random_dataset(suite.examples[0], suite.eval_examples))
    base.steps(1)
    warm_s = time.perf_counter() - started
    sizes: Any = {"batch_size": suite.batch_sizes[0], "width": suite.widths[0], "once": True}
    compiling = TimedProgram(what="compile", run=base.compile, **sizes)
    start = TimedProgram(what="warm start", run=lambda _: warm_s, **sizes)
    layers = (int(np.prod(IMAGE_SHAPE)), suite.widths[0], suite.widths[0], NUM_CLASSES)
    device = device_programs(suite.batch_sizes[0], layers, suite.precisions)
    plain = plain_step(suite.batch_sizes[0], layers, suite.examples[0])
    steady, swept = [plain, *device, *_steady(suite, counted=counted)], list(_sweeps(suite))
    for what in plants:
        held = swept if what == "sweep" else steady
        held.append(_slowed(next(program for program in held if program.what == what)))
    programs = [start, compiling, *steady, *swept]
    units = calibrate([program for program in programs if program.key not in units]) | dict(units)
    # A slowed program has samples of the same size.
    units |= {key: units[key.removeprefix("planted ")] for key in units}
    with compiling_anew():
        seconds = measure([compiling], units, repeats=1)
    rounds = 1 if counted else suite.rounds
    seconds |= measure([*steady, *swept], units, repeats=rounds) | measure([start], units, repeats=1)
    energy_updates = round(ENERGY_S / seconds[next(one.key for one in steady if one.what == "step")][0])
    energy_j = joules(lambda: base.steps(energy_updates)) if counted else None
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


def _slowed(program: TimedProgram) -> TimedProgram:
    """The same program slowed down by `PLANTED`: it waits after its work, or multiplies the time that `run` returns."""

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
    """The relu experiment with these sizes. Default: the sizes of the base."""
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
    """Random images of MNIST's shape, because the cost of a step depends only on shapes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples + eval_examples, *IMAGE_SHAPE), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, examples + eval_examples, np.int32)
    labels[:NUM_CLASSES] = np.arange(NUM_CLASSES)
    return data.from_arrays(
        (images[:examples], labels[:examples]), (images[examples:], labels[examples:]), validation="test"
    )


class SteppedTraining:
    """A training whose updates, orders and evaluations can be called separately."""

    def __init__(self, config: ExperimentConfig, dataset: data.Dataset, devices: int = 1) -> None:
        mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
        self.config, self.dataset, self.programs = config, dataset, Programs(config, dataset, mesh)
        self.position = self.programs.first()
        self.order = self.programs.order(1)

    def compile(self, _: int) -> None:
        """Compile an update from its Python code, without JAX's caches in memory."""
        jax.clear_caches()
        state, sums, programs = self.position.state, self.position.sums, self.programs
        updates = programs.feeds["train"].updates(self.order, 0, 1)
        train.train_steps.lower(programs.config, state, sums, *updates, mesh=programs.mesh).compile()

    def steps(self, count: int) -> None:
        """Make `count` updates, in as few calls as an epoch's length allows."""
        while count > 0:
            now = min(count, self.programs.steps_per_epoch)
            self.position.done = 0
            jax.block_until_ready(self.programs.advance(self.position, self.order, now))
            count -= now

    def evaluate(self, count: int) -> None:
        """Evaluate the validation split `count` times."""
        for _ in range(count):
            self.programs.evaluate(self.position, "validation")

    def epoch(self, count: int) -> None:
        """Train `count` epochs: order, updates, evaluation. Unlike `fit`, each is one chunk and has the same order."""
        for _ in range(count):
            self.order = self.programs.order(1)
            self.steps(self.programs.steps_per_epoch)
            self.evaluate(1)

    def whole(self, count: int) -> None:
        """Call `fit` `count` times, as a user does."""
        for _ in range(count):
            fit(self.config, self.dataset, devices=self.programs.mesh.size)


def _steady(suite: Suite, *, counted: bool) -> Iterator[TimedProgram]:
    """Steps, evaluations, epochs and runs. `counted` also counts their work, which takes longer than to make them."""
    dataset = random_dataset(suite.examples[0], suite.eval_examples)
    for devices, grad_shards, precision, batch_size, width in combinations(suite):
        config = _config(suite, batch_size, width, precision, grad_shards)
        trainer = SteppedTraining(config, dataset, devices)
        step = (step_work(config, dataset.facts) if counted else Work(0, 0))._asdict()
        sizes: Any = {"batch_size": batch_size, "width": width, "precision": precision}
        sizes |= {"devices": devices, "grad_shards": grad_shards, "resident": step["bytes"] // 2}
        yield TimedProgram(what="step", run=trainer.steps, examples=batch_size, **step, **sizes)
        if (batch_size, width) != (suite.batch_sizes[0], suite.widths[0]) or grad_shards != devices:
            continue
        evaluated = (eval_work(config, dataset.facts, suite.eval_examples) if counted else Work(0, 0))._asdict()
        yield TimedProgram(what="evaluation", run=trainer.evaluate, examples=suite.eval_examples, **evaluated, **sizes)
        for examples in suite.examples[: None if (precision, devices) == (suite.precisions[0], 1) else 1]:
            smaller = trainer
            if examples != suite.examples[0]:
                smaller = SteppedTraining(config, random_dataset(examples, suite.eval_examples), devices)
            full = {name: step[name] * examples // batch_size + evaluated[name] for name in step}
            yield TimedProgram(what="epoch", run=smaller.epoch, examples=examples, **full, **sizes)
        yield TimedProgram(what="run", run=trainer.whole, examples=suite.examples[0], **sizes)


def _sweeps(suite: Suite) -> Iterator[TimedProgram]:
    config = _config(suite)
    dataset = random_dataset(suite.sweep_examples, suite.eval_examples)
    sizes: Any = {"batch_size": config.batch_size, "width": suite.widths[0]}
    for lanes in suite.lanes:
        run = partial(sweeps_s, config, dataset, lanes)
        examples = lanes * suite.sweep_examples
        yield TimedProgram(what="sweep", run=run, lanes=lanes, examples=examples, **sizes)


def sweeps_s(config: ExperimentConfig, dataset: data.Dataset, lanes: int, count: int) -> float:
    """Seconds of `count` sweeps, without compilation."""
    return sum(sweep(config, dataset, seeds=range(lanes)).train_s for _ in range(count))


def combinations(suite: Suite) -> Iterator[tuple[int, int, str, int, int]]:
    """Devices, gradient shards, precision, batch size and width of each timed training."""
    base = ((1, 1), suite.precisions[0], suite.batch_sizes[0], suite.widths[0])
    # A shard must have at least two rows.
    counts = range(1, jax.device_count() + 1)
    most = max(n for n in counts if n == 1 or not any(size % n or size < 2 * n for size in suite.batch_sizes))
    sharing = [*((1, count) for count in suite.grad_shards), *([(most, most)] if most > 1 else [])]
    for found in itertools.product(sharing, suite.precisions, suite.batch_sizes, suite.widths):
        differs = sum(one != other for one, other in zip(found, base, strict=True))
        if differs < 2 or (suite.cross and found[0] == (1, 1)):
            yield (*found[0], *found[1:])
