"""What does portable precision cost an update? Prints docs/portable.md's table: `... [ROUNDS]`, on an idle machine.

Two networks with relu, dropout, RMSprop and batches of 128, in float32 and with 1, 2 and 3 slices. Each round runs
every program once, for 31 updates. The first round is not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxmlp import MLP, train
from jaxmlp.batches import DeviceSplit, epoch_order
from jaxmlp.portable import portable
from jaxmlp.proof.experiments import RELU_RMSPROP
from jaxmlp.system import runtime

UPDATES = 31
WIDTHS = (512, 2048)
PROGRAMS = {"float32": None, "1 slice": 1, "2 slices": 2, "3 slices": 3}


class Seconds(NamedTuple):
    """Of one update."""

    cpu: float
    wall: float


def update_of(width: int, slices: int | None) -> Any:
    """A function that makes `UPDATES` updates in one compiled program and returns their `Seconds`."""
    precision = "portable" if slices else "float32"
    model = MLP(hidden_sizes=(width, width), activation="relu", dropout_rate=0.2)
    config = dataclasses.replace(RELU_RMSPROP, model=model, precision=precision).on_data(10, UPDATES)
    examples = UPDATES * config.batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8)
    split = jax.device_put(DeviceSplit.of(DeviceSplit(images, rng.integers(0, 10, examples, np.int32))))
    jax.clear_caches()
    with mock.patch.object(train, "portable", functools.partial(portable, slices=slices or 2)):
        state = train.init_state(config, images[:1])
        sums = train.zero_sums(config, state, split)
        order = epoch_order(config, jax.numpy.int32(0), examples=examples)
        bounds = np.int32(0), np.int32(UPDATES)
        steps: Any = train.train_steps
        program = steps.lower(config, state, sums, split, order, *bounds).compile()
    kept = [state, sums]

    def run() -> Seconds:
        cpu, wall = time.process_time(), time.perf_counter()
        *kept[:], _ = jax.block_until_ready(program(config, *kept, split, order, *bounds))
        return Seconds((time.process_time() - cpu) / UPDATES, (time.perf_counter() - wall) / UPDATES)

    return run


def main() -> None:
    runtime.configure("cpu")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    for width in WIDTHS:
        programs = {name: update_of(width, slices) for name, slices in PROGRAMS.items()}
        found: dict[str, list[Seconds]] = {name: [] for name in programs}
        for _ in range(rounds + 1):
            for name, run in programs.items():
                found[name].append(run())
        print(f"784-{width}-{width}-10, medians of {rounds} x {UPDATES} updates")
        float32 = found["float32"][1:]
        for name, (_, *times) in found.items():
            cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
            of_cpu, of_wall = (
                statistics.median(ours[i] / theirs[i] for ours, theirs in zip(times, float32, strict=True))
                for i in (0, 1)
            )
            print(f"  {name:9} {cpu * 1e3:7.2f} ms of CPU ({of_cpu:.2f}) {wall * 1e3:7.2f} ms ({of_wall:.2f})")


if __name__ == "__main__":
    main()
