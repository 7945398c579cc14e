"""Prints a digest of the state after some updates of both experiments and docs/howto.md's: `... UPDATES [MODE]`.

Portable and plain, on digits of mnist_5k, with eight gradient shards, which the devices share; of as many processes as
PROCESSES says. Modes: with `op-by-op` nothing is compiled; with `golden` one process also says whether the golden
digests are this machine's, those on MNIST where it is prepared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxmlp import data, train
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.portable import portable
from jaxmlp.prng import root_key
from jaxmlp.proof import right_bits
from jaxmlp.proof.experiments import RELU_RMSPROP, TANH_SGD_NESTEROV
from jaxmlp.proof.training import Training
from jaxmlp.run.digest import digest
from jaxmlp.source.file import load_experiment
from jaxmlp.system import runtime
from jaxmlp.system.distributed import Cluster, is_first

HOWTO = Path(__file__).parents[1] / "docs" / "howto.md"


def own_experiment() -> ExperimentConfig:
    """The convolutional network of docs/howto.md, with an optimizer, a loss and an augmentation of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", HOWTO.read_text(), re.M | re.S)
    (text,) = [block for block in blocks if "class FocalLoss" in block]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "own.py")
        path.write_text(text)
        return load_experiment(path).config


def trained(config: ExperimentConfig, updates: int) -> str:
    """The state's digest."""
    training = Training(config, data.load(config.data))
    training.advance(updates)
    return digest(training.state())


def trained_op_by_op(config: ExperimentConfig, updates: int) -> str:
    """The state's digest; each operation is a program of its own."""

    def update(config: ExperimentConfig, state: train.TrainState, batch: train.Batch) -> train.TrainState:
        after: train.TrainState
        after, _ = train.train_step(config, state, batch, root_key(config.seed))
        return after

    dataset = data.load(config.data)
    training, step = Training(config, dataset), portable(update)
    state = training.state()
    for number in range(1, updates + 1):
        batch = right_bits.batch_of(training, dataset, number)
        with jax.disable_jit():
            state = jax.device_get(step(training.on_data.without_precision(), state, batch))
    return digest(state)


def meet() -> Cluster | None:
    """The processes of this run, if there are several; the first one starts the others."""
    if given := os.environ.get("CLUSTER"):
        return Cluster.parse(given)
    if (count := int(os.environ.get("PROCESSES", "1"))) == 1:
        return None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for index in range(1, count):
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {"CLUSTER": f"{address},{count},{index}"})
    return Cluster(address, count, 0)


def main() -> None:
    runtime.configure(cluster=meet())
    updates, modes = int(sys.argv[1]), sys.argv[2:]
    compute = trained_op_by_op if "op-by-op" in modes else trained
    found: dict[str, dict[str, str]] = {"portable": {}, "plain": {}}
    for config in (RELU_RMSPROP, TANH_SGD_NESTEROV, own_experiment()):
        shards = {"grad_shards": 8, "data": dataclasses.replace(config.data, name="mnist_5k")}
        name = config.name if config.name != "experiment" else "docs/howto.md"
        found["portable"][name] = compute(dataclasses.replace(config, precision="portable", **shards), updates)
        if compute is trained:
            found["plain"][name] = trained(dataclasses.replace(config, precision="float32", **shards), updates)
    if "golden" in modes and jax.process_count() == 1:
        prepared = {each.name for each in data.status() if each.where}
        for name, config in right_bits.GOLDEN.items():
            if config.data.name in prepared:
                check = right_bits.check(name, data.load(config.data))
                found["portable"][f"golden {name}"] = f"{check.same} {check.updates}"
    if is_first():
        print(json.dumps(found))


if __name__ == "__main__":
    main()
