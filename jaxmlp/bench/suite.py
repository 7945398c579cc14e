"""What a benchmark times: every stage of a training, over batch sizes, widths, precisions and devices."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxmlp import data, shards, train
from jaxmlp.bench.device import peak_programs
from jaxmlp.bench.noise import Watch
from jaxmlp.bench.scaling import fits
from jaxmlp.bench.timing import Program, Row, measure
from jaxmlp.bench.work import eval_work, step_work
from jaxmlp.config import DataConfig, ExperimentConfig
from jaxmlp.fitting import fit
from jaxmlp.mlp import MLP
from jaxmlp.programs import Programs
from jaxmlp.run.manifest import manifest
from jaxmlp.sweep import sweep

IMAGE_SHAPE, NUM_CLASSES = (28, 28, 1), 10


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
    repeats: int
    lanes: tuple[int, ...]
    """Of sweeps of the base over the fewest examples."""
    few: int
    """Rounds of what is long: compiles and sweeps."""


SUITES = {
    "quick": Suite(
        batch_sizes=(128, 32, 512), widths=(512, 128, 256), precisions=("float32", "bfloat16"),
        grad_shards=(1, 2, 4, 8), examples=(3_000, 750, 1_500), eval_examples=2_000, cross=False, repeats=20,
        lanes=(1, 2, 4), few=3,
    ),
    "full": Suite(
        batch_sizes=(128, 32, 256, 512, 1024, 4096), widths=(512, 128, 256, 1024, 2048),
        precisions=("float32", "bfloat16"), grad_shards=(1, 2, 4, 8), examples=(60_000, 7_500, 15_000, 30_000),
        eval_examples=10_000, cross=True, repeats=20, lanes=(1, 2, 4, 8, 16), few=12,
    ),
}  # fmt: skip


def run_suite(name: str, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Time a suite, and return all about it as JSON values.

    Args:
        name: Of `SUITES`.
        tell: Told what happens.
    """
    suite = SUITES[name]
    began, watch = time.time(), Watch.begin()
    tell(f"{name}: compiling for {jax.devices()[0].device_kind}")
    compiled = _measure_compiles(suite)
    steady = measure([*peak_programs(suite.precisions), *_steady(suite)], repeats=suite.repeats)
    swept = measure(list(_sweeps(suite)), repeats=suite.few)
    rows = [row.document() for row in (*compiled, *steady, *swept)]
    _add_utilisation(rows, steady)
    base = _config(suite, suite.batch_sizes[0], suite.widths[0], suite.precisions[0], 1)
    return {
        "suite": name,
        "began_unix_s": began,
        "ended_unix_s": time.time(),
        "manifest": manifest(base, _dataset(suite, suite.examples[0])),
        "noise": watch.noise([row.seconds for row in steady]),
        "peaks": _peaks(steady),
        "rows": rows,
        "scaling": fits(rows, suite.batch_sizes[0], suite.widths[0]),
    }


def _config(suite: Suite, batch_size: int, width: int, precision: Any, grad_shards: int) -> ExperimentConfig:
    """The relu experiment of these sizes."""
    return ExperimentConfig(
        model=MLP(hidden_sizes=(width, width)),
        data=DataConfig(validation="test"),
        batch_size=batch_size,
        epochs=1,
        precision=precision,
        grad_shards=grad_shards,
    )


def _dataset(suite: Suite, examples: int) -> data.Dataset:
    """Random images: what a step costs depends on their shape alone."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples + suite.eval_examples, *IMAGE_SHAPE), np.uint8)
    labels = rng.integers(0, NUM_CLASSES, examples + suite.eval_examples, np.int32)
    labels[:NUM_CLASSES] = np.arange(NUM_CLASSES)
    return data.from_arrays(
        (images[:examples], labels[:examples]), (images[examples:], labels[examples:]), validation="test"
    )


class _Trainer:
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

    def first_step(self, _: int) -> None:
        jax.clear_caches()
        self.steps(1)

    def steps(self, count: int) -> None:
        """In as few calls as an epoch has room for."""
        while count > 0:
            now = min(count, self.programs.steps_per_epoch)
            self.position.done = 0
            jax.block_until_ready(self.programs.advance(self.position, self.order, now))
            count -= now

    def evaluate(self, count: int) -> None:
        for _ in range(count):
            self.programs.evaluate(self.position, "validation")

    def epoch(self, count: int) -> None:
        """As `fit` does it, but for its looks at the clock: order, updates, evaluation."""
        for _ in range(count):
            self.order = self.programs.order(1)
            self.steps(self.programs.steps_per_epoch)
            self.evaluate(1)

    def whole(self, count: int) -> None:
        for _ in range(count):
            fit(self.config, self.dataset, devices=self.programs.mesh.size)


def _measure_compiles(suite: Suite) -> list[Row]:
    cached = jax.config.jax_enable_compilation_cache
    # What an earlier run has compiled must not shorten a compile.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return measure(list(_compiles(suite)), repeats=suite.few)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)


def _compiles(suite: Suite) -> Iterator[Program]:
    config = _config(suite, suite.batch_sizes[0], suite.widths[0], suite.precisions[0], 1)
    trainer = _Trainer(config, _dataset(suite, suite.examples[0]))
    sizes: Any = {"batch_size": config.batch_size, "width": suite.widths[0], "once": True}
    yield Program(what="compile", run=trainer.compile, **sizes)
    yield Program(what="first step", run=trainer.first_step, **sizes)


def _steady(suite: Suite) -> Iterator[Program]:
    dataset = _dataset(suite, suite.examples[0])
    for devices, grad_shards, precision, batch_size, width in _combinations(suite):
        config = _config(suite, batch_size, width, precision, grad_shards)
        trainer, step = _Trainer(config, dataset, devices), step_work(config, dataset.facts)._asdict()
        sizes: Any = {"batch_size": batch_size, "width": width, "precision": precision}
        sizes |= {"devices": devices, "grad_shards": grad_shards}
        yield Program(what="step", run=trainer.steps, examples=batch_size, **step, **sizes)
        if (batch_size, width) != (suite.batch_sizes[0], suite.widths[0]) or grad_shards != devices:
            continue
        evaluated = eval_work(config, dataset.facts, suite.eval_examples)._asdict()
        yield Program(what="evaluation", run=trainer.evaluate, examples=suite.eval_examples, **evaluated, **sizes)
        for examples in suite.examples[: None if (precision, devices) == (suite.precisions[0], 1) else 1]:
            smaller = trainer if examples == suite.examples[0] else _Trainer(config, _dataset(suite, examples), devices)
            full = {name: step[name] * examples // batch_size + evaluated[name] for name in step}
            yield Program(what="epoch", run=smaller.epoch, examples=examples, **full, **sizes)
        yield Program(what="run", run=trainer.whole, examples=suite.examples[0], **sizes)


def _sweeps(suite: Suite) -> Iterator[Program]:
    config = _config(suite, suite.batch_sizes[0], suite.widths[0], suite.precisions[0], 1)
    examples = min(suite.examples)
    dataset = _dataset(suite, examples)
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


def _peaks(rows: list[Row]) -> dict[str, Any]:
    """The device's fastest product of each precision, and its copy."""
    products = [row for row in rows if row.program.what == "product"]
    (copied,) = (row for row in rows if row.program.what == "copy")
    rates: dict[str, float] = {}
    for row in products:
        rate = row.program.flops / row.best_s
        rates[row.program.precision] = max(rate, rates.get(row.program.precision, 0.0))
    return {"flops_per_s": rates, "bytes_per_s": copied.program.bytes / copied.best_s}


def _add_utilisation(rows: list[dict[str, Any]], steady: list[Row]) -> None:
    """How near each row is to what its devices can do at its number of FLOPs a byte: 1 is the roof."""
    peaks = _peaks(steady)
    for row in rows:
        if row["flops"] and row["bytes"]:
            devices = row["devices"]
            product_s = row["flops"] / (devices * peaks["flops_per_s"][row["precision"]])
            bytes_s = row["bytes"] / (devices * peaks["bytes_per_s"])
            row["of_peak_flops"] = product_s / row["median_s"]
            row["of_peak_bytes"] = bytes_s / row["median_s"]
            row["of_roof"] = max(product_s, bytes_s) / row["median_s"]
