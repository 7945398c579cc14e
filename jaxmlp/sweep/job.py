"""What the groups of a sweep share: the data on the devices, the pace, the directory, and who is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxmlp import data, train
from jaxmlp.signals import Stop
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.lanes import Batching, Lane
from jaxmlp.sweep.over_lanes import WHOLE, put
from jaxmlp.sweep.progress import SweepProgress


@dataclass
class Job:
    """One call of `sweep`, whose arguments it has."""

    dataset: data.Dataset
    module: nn.Module | None
    mesh: Mesh
    batching: Batching
    keep_runs: bool
    directory: SweepDirectory | None
    """In the first process."""
    progress: SweepProgress
    stop: Stop
    checkpoint_s: float
    total: int
    """Lanes of the whole sweep."""
    splits: dict[str, train.Split] = field(default_factory=dict)
    """On the devices: train, test, and validation, if there is one."""
    compiled: dict[Any, Any] = field(default_factory=dict)
    compile_s: float = 0.0
    stopping: bool = False
    """Whether all processes know that one has a stop signal."""

    def __post_init__(self) -> None:
        self.examples = len(self.dataset.train.labels)
        for name in ("train", "validation", "test"):
            if split := getattr(self.dataset, name):
                shared = [other for other in self.splits if getattr(self.dataset, other) is split]
                self.splits[name] = self.splits[shared[0]] if shared else put(train.Split(*split), self.mesh, WHOLE)

    def steps_per_epoch(self, lane: Lane) -> int:
        """Updates."""
        return -(-self.examples // lane.config.batch_size)

    def hyper(self, lanes: Sequence[Lane]) -> train.Hyper:
        """The lanes' traced values, a row a lane, on the host."""
        rows = [jax.device_get(train.make_hyper(lane.config, self.steps_per_epoch(lane))) for lane in lanes]
        stacked: train.Hyper = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        return stacked
