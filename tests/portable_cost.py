"""What does portable precision cost an update? Prints docs/portable.md's table: `... [ROUNDS]`, on an idle machine.

Two networks with relu, dropout, RMSprop and batches of 128, in float32 and with 1, 2 and 3 slices. Each round runs
every program once, for 31 updates. The first round is not counted.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

from jaxmlp import MLP, train
from jaxmlp.portable import portable
from jaxmlp.proof.experiments import RELU_RMSPROP
from jaxmlp.system import runtime

UPDATES = 31
PROGRAMS = {"float32": None, "1 slice": 1, "2 slices": 2, "3 slices": 3}


def updates_of(width: int, slices: int | None) -> Any:
    """A function that makes the updates in one program, and returns milliseconds of an update: of CPU, and in all."""
    model, precision = MLP(hidden_sizes=(width, width), dropout_rate=0.2), "portable" if slices else "float32"
    config = dataclasses.replace(RELU_RMSPROP, model=model, precision=precision).on_data(10, UPDATES)
    rng, examples = np.random.default_rng(0), UPDATES * config.batch_size
    images, labels = rng.integers(0, 256, (examples, 28, 28, 1), np.uint8), rng.integers(0, 10, examples, np.int32)
    split = jax.device_put(train.DeviceSplit.of(train.DeviceSplit(images, labels)))
    jax.clear_caches()
    with mock.patch.object(train, "portable", functools.partial(portable, slices=slices or 2)):
        kept = [state := train.init_state(config, images[:1]), train.zero_sums(config, state, split)]
        rest = split, train.epoch_order(config, np.int32(0), examples=examples), np.int32(0), np.int32(UPDATES)
        steps: Any = train.train_steps
        program = steps.lower(config, *kept, *rest).compile()

    def run() -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        *kept[:], _ = jax.block_until_ready(program(config, *kept, *rest))
        return (time.process_time() - cpu) / UPDATES * 1e3, (time.perf_counter() - wall) / UPDATES * 1e3

    return run


def main() -> None:
    runtime.configure("cpu")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    for width in (512, 2048):
        programs = [updates_of(width, slices) for slices in PROGRAMS.values()]
        ms = np.asarray([[run() for run in programs] for _ in range(rounds + 1)])[1:]
        times, ratios = np.median(ms, 0), np.median(ms / ms[:, :1], 0)
        print(f"784-{width}-{width}-10, medians of {rounds} x {UPDATES} updates")
        for name, (cpu, wall), (of_cpu, of_wall) in zip(PROGRAMS, times, ratios, strict=True):
            print(f"  {name:9} {cpu:7.2f} ms of CPU ({of_cpu:.2f} of float32) {wall:7.2f} ms ({of_wall:.2f})")


if __name__ == "__main__":
    main()
