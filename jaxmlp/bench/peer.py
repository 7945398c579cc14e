"""How does each library train the same experiment, in its fastest fair form?

This file is a worker that trains one epoch at a time. It is run by its path, `python -P peer.py PEER CONFIG.json
DATA.npz`, so its interpreter needs only one library and NumPy. After each epoch it prints a line of JSON and waits for
a line on stdin. After the end of stdin it does not wait. PEER is the library and its options:
`torch-compiled-bfloat16`.

All libraries train on the same arrays in memory, shuffle each epoch, train on the last smaller batch too, and compute
training loss, training accuracy and test accuracy each epoch.
"""

from __future__ import annotations

import importlib
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import numpy as np

PEERS = (
    "jaxmlp",
    "jaxmlp-bfloat16",
    "keras",
    "keras-bfloat16",
    "torch",
    "torch-bfloat16",
    "torch-compiled",
    "torch-compiled-bfloat16",
    "sklearn",
)
"""Libraries with their options. Ratios are relative to the first peer of a race."""
EpochEnded = Callable[[float], None]
"""Called with the test accuracy after each epoch. Returns when the next epoch may begin."""

EVAL_ROWS = 1000
"""Rows of an evaluation batch. It divides the test split, so no library compiles a second shape for the last batch."""


def train_jaxmlp(config: Mapping[str, Any], data: Mapping[str, Any], epoch_ended: EpochEnded, use: set[str]) -> None:
    """Train with jaxmlp as a user does: `fit`, with a hook."""
    import dataclasses

    from jaxmlp.data import from_arrays
    from jaxmlp.engine.fitting import fit
    from jaxmlp.engine.history import EpochRecord
    from jaxmlp.experiment.config import ExperimentConfig

    def hook(record: EpochRecord, state: object) -> None:
        assert record.val_accuracy is not None
        epoch_ended(record.val_accuracy)

    chosen = ExperimentConfig.from_dict(config)
    chosen = dataclasses.replace(chosen, precision="bfloat16" if "bfloat16" in use else "float32")
    train, test = ((data[f"{name}_images"], data[f"{name}_labels"]) for name in ("train", "test"))
    fit(chosen, from_arrays(train, test, validation="test"), hooks=[hook])


def train_keras(config: Mapping[str, Any], data: Mapping[str, Any], epoch_ended: EpochEnded, use: set[str]) -> None:
    """Train with Keras 3 on JAX: `fit` with a compiled step, 32 steps per call."""
    import keras

    keras.utils.set_random_seed(config["seed"])
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if "bfloat16" in use else "float32")
    model = keras.Sequential([keras.Input((data["train_images"][0].size,))])
    for size in config["model"]["hidden_sizes"]:
        model.add(keras.layers.Dense(size, "relu"))
        model.add(keras.layers.Dropout(config["model"]["dropout_rate"]))
    model.add(keras.layers.Dense(int(data["train_labels"].max()) + 1, dtype="float32"))
    rule = config["optimizer"]
    model.compile(
        optimizer=keras.optimizers.RMSprop(rule["learning_rate"], rho=rule["rho"], epsilon=rule["epsilon"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,
        steps_per_execution=32,
    )
    train, test = (_arrays(config, data, name) for name in ("train", "test"))
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epoch_ended(float(logs["val_accuracy"])))
    model.fit(
        *train, batch_size=config["batch_size"], epochs=config["epochs"], verbose=0,
        validation_data=test, validation_batch_size=EVAL_ROWS, callbacks=[callback],
    )  # fmt: skip


def train_torch(config: Mapping[str, Any], data: Mapping[str, Any], epoch_ended: EpochEnded, use: set[str]) -> None:
    """Train with PyTorch: the data on the device, and no host synchronisation inside an epoch."""
    import torch
    from torch import nn

    torch.manual_seed(config["seed"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (images, labels), (test_images, test_labels) = (
        tuple(torch.from_numpy(array).to(device) for array in _arrays(config, data, name)) for name in ("train", "test")
    )
    labels, test_labels = labels.long(), test_labels.long()
    sizes = (images.shape[1], *config["model"]["hidden_sizes"])
    layers: list[Any] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(config["model"]["dropout_rate"])]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], int(labels.max()) + 1)).to(device)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    rule = config["optimizer"]
    optimizer = torch.optim.RMSprop(
        model.parameters(), rule["learning_rate"], alpha=rule["rho"], eps=rule["epsilon"], foreach=True
    )

    def forward(images: Any, labels: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled="bfloat16" in use):
            logits = model(images).float()
        return nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()

    update = optimizer.step
    if "compiled" in use:
        forward, update = torch.compile(forward), torch.compile(update)

    for _ in range(config["epochs"]):
        model.train()
        loss_sum, hits = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
        for rows in torch.randperm(len(images), device=device).split(config["batch_size"]):
            loss, correct = forward(images[rows], labels[rows])
            loss.backward()
            update()
            optimizer.zero_grad()
            loss_sum += loss.detach() * len(rows)
            hits += correct
        model.eval()
        with torch.no_grad():
            chunks = zip(test_images.split(EVAL_ROWS), test_labels.split(EVAL_ROWS), strict=True)
            test_hits = sum(forward(*chunk)[1] for chunk in chunks)
        _ = loss_sum.item(), hits.item()
        epoch_ended(int(test_hits) / len(test_labels))


def train_sklearn(config: Mapping[str, Any], data: Mapping[str, Any], epoch_ended: EpochEnded, use: set[str]) -> None:
    """Train with scikit-learn's MLPClassifier: Adam without dropout, because it has neither RMSprop nor dropout."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        config["model"]["hidden_sizes"], solver="adam", alpha=0.0, batch_size=config["batch_size"],
        learning_rate_init=config["optimizer"]["learning_rate"], random_state=config["seed"],
    )  # fmt: skip
    train, test = (_arrays(config, data, name) for name in ("train", "test"))
    for _ in range(config["epochs"]):
        model.partial_fit(*train, classes=np.unique(train[1]))
        epoch_ended(float(model.score(*test)))


def _arrays(config: Mapping[str, Any], data: Mapping[str, Any], split: str) -> tuple[Any, Any]:
    """The flat scaled float32 images of a split, `[examples, pixels]`, and its labels."""
    images = data[f"{split}_images"]
    scaled = images.reshape(len(images), -1).astype(np.float32) * np.float32(config["data"]["pixel_scale"])
    return scaled, data[f"{split}_labels"]


TRAIN = {"jaxmlp": train_jaxmlp, "keras": train_keras, "torch": train_torch, "sklearn": train_sklearn}
DISTRIBUTIONS = {"jaxmlp": ("jax", "jaxlib"), "keras": ("keras", "jax", "jaxlib"), "sklearn": ("scikit-learn",)}


def main(peer: str, config_file: str, data_file: str) -> None:
    """Train one epoch for each line on stdin."""
    answers, sys.stdout = sys.stdout, sys.stderr  # What a library prints must not mix with the answers.
    library, *use = peer.split("-")
    importlib.import_module(library)
    with open(config_file, encoding="utf-8") as file:
        config = json.load(file)
    data = dict(np.load(data_file, allow_pickle=False))
    versions = {name: metadata.version(name) for name in DISTRIBUTIONS.get(library, (library,))}
    print(json.dumps({"versions": {**versions, "python": platform.python_version()}}), file=answers, flush=True)
    began = time.perf_counter()

    def epoch_ended(test_accuracy: float) -> None:
        nonlocal began
        seconds = time.perf_counter() - began
        print(json.dumps({"epoch_s": seconds, "test_accuracy": test_accuracy}), file=answers, flush=True)
        sys.stdin.readline()
        began = time.perf_counter()

    TRAIN[library](config, data, epoch_ended, set(use))


if __name__ == "__main__":
    main(*sys.argv[1:])
