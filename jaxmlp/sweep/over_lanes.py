"""How do the programs of `train.py` run over lanes? Every array has a row per lane; the devices share the rows.

With `map`, a device trains its lanes one after another, each with the same program as a run on one device, and so to
the same bits. With `vmap` it trains them together: matrix products become batched products, which add in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxmlp import train
from jaxmlp.experiment import controllers
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.sweep.values import Batching

AXIS = "lane"
ROWS, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with one axis over the devices, which share the lanes."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def put[T](tree: T, mesh: Mesh, spec: PartitionSpec) -> T:
    """Copy the host's arrays to the mesh. Every process has all arrays and copies the parts for its devices."""

    def placed(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    with jax.transfer_guard_host_to_device("allow"):  # JAX treats a callback's arrays as implicit transfers.
        on_mesh: T = jax.tree.map(placed, jax.device_get(tree))
    return on_mesh


def to_host[T](tree: T, mesh: Mesh) -> T:
    """The arrays of all lanes as NumPy arrays, on every process."""
    if jax.process_count() > 1:
        # Leaf by leaf, because each device briefly holds the rows of all lanes.
        tree = jax.tree.map(lambda leaf: jax.device_get(_gathered(leaf, mesh=mesh)), tree)
    on_host: T = jax.device_get(tree)
    return on_host


@partial(jax.jit, static_argnames="mesh")
def _gathered(leaf: Array, *, mesh: Mesh) -> Array:
    gather = partial(lax.all_gather, axis_name=AXIS, tiled=True)
    whole: Array = jax.shard_map(gather, mesh=mesh, in_specs=ROWS, out_specs=WHOLE, check_vma=False)(leaf)
    return whole


def _over_lanes(function: Callable[..., Any], lanes: Any, whole: Any, *, mesh: Mesh, batching: Batching) -> Any:
    """The rows of `function(lane, whole)`. Each is computed on the device that has the lane."""

    def on_device(lanes: Any, whole: Any) -> Any:
        def one(lane: Any) -> Any:
            return function(lane, whole)

        return lax.map(one, lanes) if batching == "map" else jax.vmap(one)(lanes)

    return jax.shard_map(on_device, mesh=mesh, in_specs=(ROWS, WHOLE), out_specs=ROWS, check_vma=False)(lanes, whole)


@partial(jax.jit, static_argnames="mesh")
def init_lanes(configs: ExperimentConfig, inputs: Any, *, mesh: Mesh) -> train.TrainState:
    """The lanes' states before their first updates."""
    states: train.TrainState = _over_lanes(train.init_state, configs, inputs, mesh=mesh, batching="map")
    return states


@partial(jax.jit, static_argnames=("examples", "mesh"))
def epoch_orders(
    configs: ExperimentConfig, epoch: Int[Array, ""], *, examples: int, mesh: Mesh
) -> Int[Array, "lanes padded"]:
    """The lanes' orders of examples in an epoch."""
    order = partial(train.epoch_order, examples=examples)
    orders: Int[Array, "lanes padded"] = _over_lanes(order, configs, epoch, mesh=mesh, batching="map")
    return orders


@partial(jax.jit, static_argnames=("mesh", "batching"), donate_argnames=("states", "sums"))
def train_lanes(
    configs: ExperimentConfig,
    states: train.TrainState,
    sums: train.Sums,
    active: Bool[Array, " lanes"],
    orders: Int[Array, "lanes padded"],
    own: train.DeviceSplit | None,
    shared: train.DeviceSplit | None,
    start: Int[Array, ""],
    stop: Int[Array, ""],
    *,
    mesh: Mesh,
    batching: Batching,
) -> tuple[train.TrainState, train.Sums, train.Health]:
    """`train.train_steps` for each lane: updates `start` to `stop` of the epoch.

    Args:
        configs: Configs of the lanes, from `ExperimentConfig.on_data`, with a row per lane in each leaf.
        states: States before update `start`; donated.
        sums: Sums over the epoch so far; donated.
        active: Lanes that train. The states of the other lanes do not change.
        orders: Orders of examples, from `epoch_orders`.
        own: Training examples of each lane, if they are streamed.
        shared: Training examples of all lanes, if they are resident.
        start: First update, counted within the epoch.
        stop: One past the last update.
        mesh: Mesh whose devices share the lanes.
        batching: How a device trains its lanes.
    """

    def one(lane: Any, whole: Any) -> Any:
        config, state, sums, active, order, own = lane
        shared, start, stop = whole
        if batching == "map":
            stop = jnp.where(active, stop, start)
        trained = train.train_steps(config, state, sums, own or shared, order, start, stop)
        if batching == "vmap":  # Under vmap all lanes train; results of inactive lanes are discarded.
            kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), trained[0], state)
            return kept, *trained[1:]
        return trained

    lanes, whole = (configs, states, sums, active, orders, own), (shared, start, stop)
    trained: tuple[train.TrainState, train.Sums, train.Health]
    trained = _over_lanes(one, lanes, whole, mesh=mesh, batching=batching)
    return trained


@partial(jax.jit, static_argnames=("mesh", "batching"))
def evaluate_lanes(
    configs: ExperimentConfig,
    params: Any,
    variables: dict[str, Any],
    sums: train.Sums,
    split: train.DeviceSplit,
    *,
    mesh: Mesh,
    batching: Batching,
) -> train.Sums:
    """For each lane, `sums` plus the sums over all examples of `split`, with dropout off."""

    def one(lane: Any, split: train.DeviceSplit) -> Any:
        config, params, variables, sums = lane
        return train.evaluate(config, params, variables, split, sums)

    lanes = (configs, params, variables, sums)
    total: train.Sums = _over_lanes(one, lanes, split, mesh=mesh, batching=batching)
    return total


@partial(jax.jit, static_argnames="mesh")
def learning_rates(
    configs: ExperimentConfig, steps: Int[Array, " lanes"], states: dict[str, Any], *, mesh: Mesh
) -> Float[Array, " lanes"]:
    """Learning rate of each lane's last update before `steps`, with these states of its controllers."""

    def one(lane: Any, _: Any) -> Any:
        config, step, states = lane
        return train.learning_rate(config, step - 1, states)

    rates: Float[Array, " lanes"] = _over_lanes(one, (configs, steps, states), (), mesh=mesh, batching="map")
    return rates


@partial(jax.jit, static_argnames="mesh")
def control_lanes(
    configs: ExperimentConfig, states: train.TrainState, figures: Any, active: Bool[Array, " lanes"], *, mesh: Mesh
) -> train.TrainState:
    """The lanes' states after their controllers have seen an epoch's figures. Inactive lanes do not change."""

    def one(lane: Any, _: Any) -> Any:
        config, state, figures, active = lane
        seen = controllers.after_epoch(config, state, figures)
        return jax.tree.map(lambda new, old: jnp.where(active, new, old), seen, state)

    seen: train.TrainState = _over_lanes(one, (configs, states, figures, active), (), mesh=mesh, batching="map")
    return seen


@partial(jax.jit, static_argnames="mesh")
def swap_best_weights_of_lanes(states: train.TrainState, *, mesh: Mesh) -> train.TrainState:
    """The lanes' states, with the best epoch's weights in each lane whose controller restores them."""

    def one(state: train.TrainState, _: Any) -> Any:
        return controllers.swap_best_weights(state, back=False)

    exchanged: train.TrainState = _over_lanes(one, states, (), mesh=mesh, batching="map")
    return exchanged
