"""What the groups of a sweep share, and the programs that are compiled once for all lanes that can share them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmlp import data, distributed, model, train
from jaxmlp.pace import Pace
from jaxmlp.sweep import memory
from jaxmlp.sweep.directory import SweepDirectory
from jaxmlp.sweep.lanes import Batching, Lane
from jaxmlp.sweep.programs import ROWS, WHOLE, init_lanes, put, train_lanes
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
    pace: Pace
    checkpoint_s: float
    total: int
    """Lanes of the whole sweep."""
    compile_s: float = 0.0
    splits: dict[str, train.Split] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.examples = len(self.dataset.train.labels)
        for name in ("train", "validation", "test"):
            if split := getattr(self.dataset, name):
                shared = [other for other in self.splits if getattr(self.dataset, other) is split]
                self.splits[name] = self.splits[shared[0]] if shared else put(train.Split(*split), self.mesh, WHOLE)

    def updates(self, lane: Lane) -> int:
        """How many a lane makes."""
        return lane.config.epochs * -(-self.examples // lane.config.batch_size)


def program_key(lane: Lane) -> Any:
    """Equal for lanes that can train side by side: one program, one length, one way to order examples."""
    config = lane.config
    shapes = jax.tree.structure(config.optimizer.hyperparameters())
    return config.program(), config.epochs, config.shuffle, shapes


@dataclass
class Program:
    """The compiled training of lanes with one `program_key`."""

    static: dict[str, Any]
    states: Any
    """Shapes of the lanes' states."""
    sums: Any
    slots: int
    """Lanes at once: a multiple of the devices."""
    train: Any
    """`train_lanes`, compiled."""

    def groups(self, lanes: Sequence[Lane]) -> list[Sequence[Lane]]:
        """The lanes in as few groups as hold them, of about equal size."""
        count = -(-len(lanes) // self.slots)
        cuts = [len(lanes) * number // count for number in range(count + 1)]
        return [lanes[first:last] for first, last in itertools.pairwise(cuts)]


def stacked_hyper(job: Job, lanes: Sequence[Lane]) -> train.Hyper:
    """The lanes' traced values, a row a lane, on the host."""
    steps_per_epoch = -(-job.examples // lanes[0].config.batch_size)
    rows = [jax.device_get(train.make_hyper(lane.config, steps_per_epoch)) for lane in lanes]
    stacked: train.Hyper = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return stacked


def compile_program(job: Job, lanes: Sequence[Lane], *, together: bool = False) -> Program:
    """Compile the training of these lanes, in groups that fit the devices' free memory.

    Args:
        job: The sweep.
        lanes: Of one `program_key`.
        together: All in one group: lanes whose training has begun.
    """
    began = time.perf_counter()
    config = lanes[0].config
    module = job.module or model.make_mlp(config.model, job.dataset.num_classes, config.precision)
    static: dict[str, Any] = {"config": config.program(), "module": module, "mesh": job.mesh}
    devices, padded = job.mesh.size, -(-job.examples // config.batch_size) * config.batch_size
    one = stacked_hyper(job, lanes[:1])

    def shaped(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(job.mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    def rows(slots: int) -> list[Any]:
        """Shapes of `train_lanes`'s first arguments, which have a row a lane."""
        hyper = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (slots, *leaf.shape[1:])), one)
        states = jax.eval_shape(init, hyper)
        orders = jax.ShapeDtypeStruct((slots, padded), jnp.int32)
        sums = jax.eval_shape(jax.vmap(lambda _: train.Sums.zero()), orders)
        return [shaped(tree, ROWS) for tree in (states, sums, orders, hyper, np.empty(slots, np.bool_))]

    init = partial(init_lanes, **static, image_shape=job.dataset.train.images.shape[1:])
    bounds = shaped(np.int32(0), WHOLE)
    budget = int(memory.SHARE * memory.free_bytes(job.mesh)) >> 20
    if jax.process_count() > 1:
        budget = int(distributed.gather([budget]).min())
    fits = max(1, (budget << 20) // memory.lane_bytes(*rows(devices)[::2][:2]))
    while True:
        most = len(lanes) if together else min(len(lanes), fits * devices)
        count = -(-len(lanes) // most)
        slots = -(-len(lanes) // (count * devices)) * devices
        shapes, split = rows(slots), job.splits["train"]
        lowered = train_lanes.lower(*shapes, split, bounds, bounds, **static, batching=job.batching)
        compiled = lowered.compile()
        taken = memory.program_bytes(compiled) - sum(leaf.nbytes for leaf in split)
        per_device = slots // devices
        if together or per_device == 1 or taken <= budget << 20:
            break
        # What a batch of lanes takes to compute comes on top of what the lanes are.
        fits = max(1, min(per_device - 1, per_device * (budget << 20) // taken))
    job.compile_s += time.perf_counter() - began
    told = f"{len(lanes)} lanes in {count} {'group' if count == 1 else 'groups'} of up to {slots}"
    took = f"{taken / per_device / 1e6:,.1f} MB a lane, {(budget << 20) / 1e9:,.1f} GB for lanes on each device"
    job.progress.note(f"{told} on {devices} {'device' if devices == 1 else 'devices'}: {took}")
    return Program(static, shapes[0], shapes[1], slots, compiled)
