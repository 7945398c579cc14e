"""With which program does an experiment train? A portable run's bits depend on it, besides its config and data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxmlp import data, train
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.portable.text import text
from jaxmlp.prng import root_key


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
    sums = sorted({_sha256(_Program(config, facts, weighted)) for config in configs})
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """What a program is traced from. Equal if only rates, seed or name differ."""

    config: ExperimentConfig
    facts: data.Facts
    weighted: bool

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        return jax.tree.structure(self.config.on_data(self.facts.outputs, 1)), str(self.facts), self.weighted

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self.key == other.key


@functools.lru_cache(maxsize=64)
def _sha256(program: _Program) -> str:
    said = program_text(program.config, program.facts, weighted=program.weighted)
    return hashlib.sha256(said.encode()).hexdigest()
