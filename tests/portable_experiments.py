"""Prints a digest of the state after some updates of both experiments and docs/howto.md's: `... UPDATES`.

Portable and plain, on digits of mnist_5k, with four gradient shards, which the devices share. With `golden` it also
says whether the golden digests are this machine's; those on MNIST where it is prepared.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
from pathlib import Path

from jaxmlp import data, runtime
from jaxmlp.config import ExperimentConfig
from jaxmlp.experiment import load_experiment
from jaxmlp.proof import right_bits
from jaxmlp.proof.experiments import RELU_RMSPROP, TANH_SGD_NESTEROV
from jaxmlp.proof.training import Training
from jaxmlp.run.digest import digest

HOWTO = Path(__file__).parents[1] / "docs" / "howto.md"


def own_experiment() -> ExperimentConfig:
    """The convolutional network of docs/howto.md, with an optimizer, a loss and an augmentation of its own."""
    blocks = re.findall(r"^```python\n(.*?)^```$", HOWTO.read_text(), re.M | re.S)
    (text,) = [block for block in blocks if "class FocalLoss" in block]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "own.py")
        path.write_text(text)
        return load_experiment(path).config


def main() -> None:
    runtime.configure()
    updates = int(sys.argv[1])
    found: dict[str, dict[str, str]] = {"portable": {}, "plain": {}}
    for config in (RELU_RMSPROP, TANH_SGD_NESTEROV, own_experiment()):
        shards = {"grad_shards": 4, "data": dataclasses.replace(config.data, name="mnist_5k")}
        for kind, precision in (("portable", "portable"), ("plain", "float32")):
            each = dataclasses.replace(config, precision=precision, **shards)
            training = Training(each, data.load(each.data))
            training.advance(updates)
            found[kind][config.name if config.name != "experiment" else "docs/howto.md"] = digest(training.state())
    if "golden" in sys.argv:
        prepared = {each.name for each in data.status() if each.where}
        for name, config in right_bits.GOLDEN.items():
            if config.data.name in prepared:
                check = right_bits.check(name, data.load(config.data))
                found["portable"][f"golden {name}"] = f"{check.same} {check.updates}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
