"""The compiled programs: those of `train.py`, over lanes. Every array of a lane is a row; the devices share the rows.

With `map` a device trains its lanes one after another, each by the very program of a run on one device, so to the
same bits. With `vmap` it trains them at once: products of matrices become batched ones, which add in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxmlp import shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.sweep.lanes import Batching

AXIS = "lane"
ROWS, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of one axis over the devices, which share the lanes."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def put[T](tree: T, mesh: Mesh, spec: PartitionSpec) -> T:
    """The host's arrays on the mesh; every process has them all, and places those of its devices."""

    def placed(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    on_mesh: T = jax.tree.map(placed, tree)
    return on_mesh


def to_host[T](tree: T, mesh: Mesh) -> T:
    """The arrays of all lanes as NumPy's, on every process."""
    if jax.process_count() > 1:
        # Leaf by leaf, because for a moment each device holds all lanes' rows.
        tree = jax.tree.map(lambda leaf: np.asarray(_gathered(leaf, mesh=mesh)), tree)
    on_host: T = jax.device_get(tree)
    return on_host


@partial(jax.jit, static_argnames="mesh")
def _gathered(leaf: Array, *, mesh: Mesh) -> Array:
    gather = partial(lax.all_gather, axis_name=AXIS, tiled=True)
    whole: Array = jax.shard_map(gather, mesh=mesh, in_specs=ROWS, out_specs=WHOLE, check_vma=False)(leaf)
    return whole


def _over_lanes(function: Callable[..., Any], lanes: Any, whole: Any, *, mesh: Mesh, batching: Batching) -> Any:
    """The rows of `function(lane, whole)`, each computed where the lane is."""

    def on_device(lanes: Any, whole: Any) -> Any:
        def one(lane: Any) -> Any:
            return function(lane, whole)

        return lax.map(one, lanes) if batching == "map" else jax.vmap(one)(lanes)

    return jax.shard_map(on_device, mesh=mesh, in_specs=(ROWS, WHOLE), out_specs=ROWS, check_vma=False)(lanes, whole)


def _solo_mesh() -> Mesh:
    """Tells `train.py` that one device computes a whole batch: the one that has the lane."""
    return shards.make_mesh(jax.devices()[:1])


@partial(jax.jit, static_argnames=("config", "module", "image_shape", "mesh"))
def init_lanes(
    hyper: train.Hyper, *, config: ExperimentConfig, module: nn.Module, image_shape: tuple[int, ...], mesh: Mesh
) -> train.TrainState:
    """The lanes' states before their first updates."""
    init = partial(train.init_state, config=config, module=module, image_shape=image_shape)
    states: train.TrainState = _over_lanes(lambda hyper, _: init(hyper), hyper, (), mesh=mesh, batching="map")
    return states


@partial(jax.jit, static_argnames=("examples", "batch_size", "shuffle", "mesh"))
def epoch_orders(
    seeds: Int[Array, " lanes"], epoch: Int[Array, ""], *, examples: int, batch_size: int, shuffle: bool, mesh: Mesh
) -> Int[Array, "lanes padded"]:
    """The lanes' orders of examples in an epoch."""
    order = partial(train.epoch_order, examples=examples, batch_size=batch_size, shuffle=shuffle)
    orders: Int[Array, "lanes padded"] = _over_lanes(order, seeds, epoch, mesh=mesh, batching="map")
    return orders


@partial(jax.jit, static_argnames=("config", "module", "mesh", "batching"), donate_argnames=("states", "sums"))
def train_lanes(
    states: train.TrainState,
    sums: train.Sums,
    orders: Int[Array, "lanes padded"],
    hyper: train.Hyper,
    active: Bool[Array, " lanes"],
    split: train.Split,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    config: ExperimentConfig,
    module: nn.Module,
    mesh: Mesh,
    batching: Batching,
) -> tuple[train.TrainState, train.Sums, train.Health]:
    """As `train.train_steps`, for each lane: its epoch's updates `start` to `stop`.

    Args:
        states: Before update `start`; donated.
        sums: Of the epoch so far; donated.
        orders: From `epoch_orders`.
        hyper: The lanes' own, from `train.make_hyper`.
        active: A lane without stays as it is with `map`; with `vmap`, which waits for the longest, it trains on.
        split: The training examples, all lanes'.
        start: First update, counted within the epoch.
        stop: One past the last.
        config: `ExperimentConfig.program()`, the same of all lanes.
        module: Maps scaled images to logits.
        mesh: Whose devices share the lanes.
        batching: How a device trains its lanes.
    """

    def one(lane: Any, whole: Any) -> Any:
        state, sums, order, hyper, active = lane
        split, start, stop = whole
        if batching == "map":
            stop = jnp.where(active, stop, start)
        return train.train_steps(
            state, sums, split, order, start, stop, hyper, config=config, module=module, mesh=_solo_mesh()
        )

    lanes, whole = (states, sums, orders, hyper, active), (split, start, stop)
    trained: tuple[train.TrainState, train.Sums, train.Health]
    trained = _over_lanes(one, lanes, whole, mesh=mesh, batching=batching)
    return trained


@partial(jax.jit, static_argnames=("config", "module", "mesh", "batching"))
def evaluate_lanes(
    params: Any, split: train.Split, *, config: ExperimentConfig, module: nn.Module, mesh: Mesh, batching: Batching
) -> train.Sums:
    """The lanes' sums over all examples of `split`, dropout off."""

    def one(params: Any, split: train.Split) -> train.Sums:
        zero = train.Sums.zero()
        sums: train.Sums = train.evaluate(params, split, zero, config=config, module=module, mesh=_solo_mesh())
        return sums

    sums: train.Sums = _over_lanes(one, params, split, mesh=mesh, batching=batching)
    return sums


@partial(jax.jit, static_argnames=("config", "mesh"))
def learning_rates(
    steps: Int[Array, " lanes"], hyper: train.Hyper, *, config: ExperimentConfig, mesh: Mesh
) -> Float[Array, " lanes"]:
    """The lanes' rates of their last updates."""
    rates: Float[Array, " lanes"] = _over_lanes(
        lambda lane, _: train.learning_rate(lane[0] - 1, lane[1], config=config),
        (steps, hyper), (), mesh=mesh, batching="map",
    )  # fmt: skip
    return rates
