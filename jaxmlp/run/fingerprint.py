"""With which program does an experiment train? A portable run's bits depend on it, besides its config and data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxmlp import data, train
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.portable.text import text
from jaxmlp.prng import root_key

_known: dict[Any, str] = {}
"""SHA-256 of each program text that this process has made."""


def program_text(config: ExperimentConfig, facts: data.Facts, *, weighted: bool = False) -> str:
    """A canonical text of the first state, a batch, the gradient of one gradient shard, and the update.

    It has no mesh, so it does not depend on the devices that split a batch.

    Args:
        config: The experiment.
        facts: Shapes and types of an example.
        weighted: Whether examples have weights.
    """
    rows = config.batch_size // config.grad_shards
    plain = dataclasses.replace(config.without_precision(), batch_size=rows, grad_shards=1)
    one_shard = plain.on_data(facts.outputs, 1)

    def update(config: ExperimentConfig, batch: train.Batch) -> Any:
        state = train.init_state(config, jax.tree.map(lambda leaf: leaf[:1], batch.inputs))
        return train.train_step(config, state, batch, root_key(config.seed))

    ones = np.ones(rows, np.float32)
    inputs, targets, _ = facts.zeros(rows)
    batch = train.Batch(inputs, targets, ones, ones if weighted else None)  # type: ignore[arg-type]  # NumPy will do
    return text(update, one_shard, batch)


def program_sha256(configs: Iterable[ExperimentConfig], dataset: data.Dataset) -> str:
    """SHA-256 of an experiment's program text; for several different programs, of their sorted hashes."""
    facts, weighted = dataset.facts, dataset.train.weights is not None
    sums = sorted({_sha256(config, facts, weighted) for config in configs})
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _sha256(config: ExperimentConfig, facts: data.Facts, weighted: bool) -> str:
    # Programs that differ only in rates, seed or name are traced once.
    key = jax.tree.structure(config.on_data(facts.outputs, 1)), str(facts), weighted
    if key not in _known:
        _known[key] = hashlib.sha256(program_text(config, facts, weighted=weighted).encode()).hexdigest()
    return _known[key]
