"""The compiled programs of lanes that can share them, and how many of these lanes train at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlp import distributed, model, train
from jaxmlp.sweep import kept, memory
from jaxmlp.sweep.job import Job
from jaxmlp.sweep.lanes import MAX_LANES, Lane
from jaxmlp.sweep.over_lanes import ROWS, WHOLE, evaluate_lanes, init_lanes, train_lanes


def side_by_side(lane: Lane) -> Any:
    """Equal for lanes that can train side by side: one program, one length, one way to order examples."""
    return _program_key(lane), lane.config.epochs, lane.config.shuffle


def _program_key(lane: Lane) -> Any:
    # A piecewise schedule has as many traced values as it has pieces.
    return lane.config.program(), jax.tree.structure(lane.config.optimizer.hyperparameters())


@dataclass(frozen=True)
class Program:
    """What trains lanes of one `side_by_side`."""

    static: dict[str, Any]
    states: train.TrainState
    """Shapes, a row a lane."""
    sums: train.Sums
    slots: int
    """Rows: lanes at once, a multiple of the devices."""
    train: Callable[..., Any]
    """`train_lanes`, compiled."""
    evaluate: dict[str, Callable[..., Any]]
    """`evaluate_lanes`, compiled, by split."""

    def groups(self, lanes: Sequence[Lane]) -> list[Sequence[Lane]]:
        """The lanes in as few groups as there must be, of about equal size."""
        count = -(-len(lanes) // self.slots)
        cuts = [len(lanes) * number // count for number in range(count + 1)]
        return [lanes[first:last] for first, last in itertools.pairwise(cuts)]


def make_program(job: Job, lanes: Sequence[Lane], *, together: bool = False) -> Program:
    """Compile what trains these lanes, in groups that the devices' free memory, and the files of kept runs, hold.

    Args:
        job: The sweep.
        lanes: Of one `side_by_side`.
        together: All in one group, because they have begun.
    """
    began = time.perf_counter()
    config, devices = lanes[0].config, job.mesh.size
    if job.module:
        model.check_logits(job.module, job.dataset.train.images.shape[1:], job.dataset.num_classes)
    module = job.module or model.make_mlp(config.model, job.dataset.num_classes, config.precision)
    static: dict[str, Any] = {"config": config.program(), "module": module, "mesh": job.mesh}
    budget = int(memory.SHARE * memory.free_bytes(job.mesh)) >> 20
    most_lanes = kept.most_at_once() if job.keep_runs else MAX_LANES
    if jax.process_count() > 1:
        budget, most_lanes = distributed.gather([budget, most_lanes]).min(axis=0).tolist()
    each = memory.lane_bytes(*_shapes(job, static, lanes[0], devices)[::2][:2])
    fits = max(1, min((budget << 20) // each, most_lanes // devices))
    while True:
        most = len(lanes) if together else min(len(lanes), fits * devices)
        groups = -(-len(lanes) // most)
        per_device = -(-len(lanes) // (groups * devices))
        shapes = _shapes(job, static, lanes[0], per_device * devices)
        training = _compiled_training(job, static, lanes[0], shapes)
        taken = memory.program_bytes(training) - sum(leaf.nbytes for leaf in job.splits["train"])
        if together or per_device == 1 or taken <= budget << 20:
            break
        # What computing takes comes on top of what the lanes are; with vmap that is much.
        fits = max(1, min(per_device - 1, per_device * (budget << 20) // taken))
    evaluation = {name: _compiled_evaluation(job, static, shapes[0].params, name) for name in job.splits}
    job.compile_s += time.perf_counter() - began
    told = f"{len(lanes)} lanes in {groups} {'group' if groups == 1 else 'groups'} of up to {per_device * devices}"
    took = f"{taken / per_device / 1e6:,.1f} MB a lane, {(budget << 20) / 1e9:,.1f} GB for lanes on each device"
    job.progress.note(f"{told} on {devices} {'device' if devices == 1 else 'devices'}: {took}")
    return Program(static, shapes[0], shapes[1], per_device * devices, training, evaluation)


def _shapes(job: Job, static: dict[str, Any], lane: Lane, slots: int) -> list[Any]:
    """Of the arguments of `train_lanes` that have a row a lane: states, sums, orders, hyper, active."""
    hyper = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (slots, *leaf.shape[1:])), job.hyper([lane]))
    image_shape = job.dataset.train.images.shape[1:]
    states = jax.eval_shape(partial(init_lanes, **static, image_shape=image_shape), hyper)
    padded = job.steps_per_epoch(lane) * lane.config.batch_size
    orders, active = jax.ShapeDtypeStruct((slots, padded), jnp.int32), jax.ShapeDtypeStruct((slots,), jnp.bool_)
    sums = jax.eval_shape(jax.vmap(lambda _: train.Sums.zero()), active)
    return [_placed(job, tree, ROWS) for tree in (states, sums, orders, hyper, active)]


def _placed(job: Job, tree: Any, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(job.mesh, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def _compiled_training(job: Job, static: dict[str, Any], lane: Lane, shapes: list[Any]) -> Any:
    key = _program_key(lane), len(shapes[-1])
    if key not in job.compiled:
        bound = _placed(job, np.int32(0), WHOLE)
        lowered = train_lanes.lower(*shapes, job.splits["train"], bound, bound, **static, batching=job.batching)
        job.compiled[key] = lowered.compile()
    return job.compiled[key]


def _compiled_evaluation(job: Job, static: dict[str, Any], params: Any, name: str) -> Any:
    split = job.splits[name]
    key = static["config"], len(jax.tree.leaves(params)[0]), split.images.shape
    if key not in job.compiled:
        lowered = evaluate_lanes.lower(params, split, **static, batching=job.batching)
        job.compiled[key] = lowered.compile()
    return job.compiled[key]
