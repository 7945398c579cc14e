"""What do the groups of a sweep share? The data on the devices, the compiled programs, the directory, the progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from jaxmlp import data, train
from jaxmlp.engine.feed import RESIDENT_BYTES, Feed
from jaxmlp.engine.history import EpochRecord
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.lanes import Lane
from jaxmlp.sweep.over_lanes import ROWS, WHOLE, put
from jaxmlp.sweep.progress import SweepProgress
from jaxmlp.sweep.values import Batching
from jaxmlp.system.signals import Stop


class LaneHook(Protocol):
    """A function that is called after each epoch of a lane."""

    def __call__(self, lane: Lane, record: EpochRecord, state: train.TrainState) -> object:
        """Receive the lane, the epoch's record, and the state, which is on the host.

        Returns:
            True ends the lane after this epoch. Any other value is ignored.
        """


@dataclass
class Job:
    """One call of `sweep`, with its arguments."""

    dataset: data.Dataset
    mesh: Mesh
    batching: Batching
    keep_runs: bool
    directory: SweepDirectory | None
    """The sweep's directory, in the first process."""
    progress: SweepProgress
    stop: Stop
    checkpoint_s: float
    total: int
    """Number of lanes in the whole sweep."""
    resident_bytes: int = RESIDENT_BYTES
    """Largest size in bytes of a split's inputs that stay on the devices."""
    hooks: Sequence[LaneHook] = ()
    """Functions to call after each epoch of each lane."""
    digest_every: int | None = None
    """Number of updates between two digests in the traces of kept runs."""
    compile_s: float = 0.0

    def __post_init__(self) -> None:
        self.examples = len(self.dataset.train.targets)
        self.splits = [name for name in ("train", "validation", "test") if self.dataset.split(name)]
        self._feeds: dict[Any, Feed] = {}
        self._compiled: dict[Any, Any] = {}

    def steps_per_epoch(self, lane: Lane) -> int:
        """Number of updates in an epoch."""
        return -(-self.examples // lane.config.batch_size)

    def on_data(self, lane: Lane) -> ExperimentConfig:
        """The lane's config as compiled functions take it."""
        return lane.config.on_data(self.dataset.num_classes, self.steps_per_epoch(lane))

    def feed(self, name: str, config: ExperimentConfig, slots: int) -> Feed:
        """A split for lanes of these programs. A split that is shared or resident is on the devices only once."""
        split: data.Split = self.dataset.split(name)  # type: ignore[assignment]
        key = id(split), config.batch_size, config.grad_shards, config.eval_rows, slots
        if key not in self._feeds:
            resident = next((feed.resident for feed in self._feeds.values() if feed.split is split), None)
            self._feeds[key] = Feed(
                split,
                config,
                lambda tree: put(tree, self.mesh, WHOLE),
                put_rows=lambda tree: put(tree, self.mesh, ROWS),
                lanes=slots,
                resident_bytes=self.resident_bytes,
                resident=resident,
            )
        return self._feeds[key]

    def compiled(self, function: Any, *arguments: Any) -> Any:
        """A function of `over_lanes`, compiled once for arguments of these shapes. Their values are not used."""
        leaves, structure = jax.tree.flatten(arguments)
        key = function, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments, mesh=self.mesh, batching=self.batching).compile()
        return self._compiled[key]
