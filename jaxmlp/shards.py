"""The devices, and sums over a batch's shards whose bits no number of devices changes.

A batch is cut into shards; the number of shards is part of the experiment, the number of devices is not. Every shard
is computed by the same program, all shards are gathered on every device, and added there in one fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Num

from jaxmlp.errors import ConfigError, DeviceError

AXIS = "shard"


def pick_devices(grad_shards: int, wanted: int | None = None) -> list[jax.Device]:
    """The devices that share a batch.

    Args:
        grad_shards: Of the config; the number of devices divides it.
        wanted: How many; by default the largest number of those there are that divides `grad_shards`.

    Returns:
        As many devices of each process.

    Raises:
        ConfigError: `wanted` does not divide `grad_shards`, or is no multiple of the processes.
        DeviceError: There are fewer devices than `wanted`.
    """
    there, processes = jax.devices(), jax.process_count()
    works = [count for count in range(processes, grad_shards + 1, processes) if grad_shards % count == 0]
    if not works:
        raise ConfigError("grad_shards", f"must be a multiple of the {processes} processes, got {grad_shards}")
    if wanted is None:
        return of_each_process(max(count for count in works if count <= len(there)))
    if wanted not in works:
        near = sorted(sorted(works, key=lambda count: abs(count - wanted))[:2])
        nearest = " and ".join(map(str, near))
        rule = f"divide grad_shards {grad_shards}"
        if processes > 1:
            rule += f", and be a multiple of the {processes} processes"
        raise ConfigError("devices", f"must {rule}, got {wanted}. The nearest: {nearest}")
    if wanted > len(there):
        kind = there[0].platform
        raise DeviceError(
            f"device: {wanted} devices were asked for, but JAX finds {len(there)} of {kind}. Leave out --devices"
        )
    return of_each_process(wanted)


def of_each_process(count: int) -> list[jax.Device]:
    """`count` devices, the first of each process, as many of each; `count` is a multiple of the processes."""
    processes = jax.process_count()
    each = count // processes
    return [device for index in range(processes) for device in jax.local_devices(index)[:each]]


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of one axis over the devices."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicate[T](tree: T, mesh: Mesh) -> T:
    """The tree's arrays, whole on every device of the mesh."""
    placed: T = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    return placed


def pairwise_sum(parts: Num[Array, "shards *shape"]) -> Num[Array, " *shape"]:
    """The sum over the first axis: neighbours first, then neighbouring sums, an odd last one carried along."""
    while (count := parts.shape[0]) > 1:
        pairs = parts[0 : count - 1 : 2] + parts[1:count:2]
        parts = jnp.concatenate([pairs, parts[-1:]]) if count % 2 else pairs
    return parts[0]


def _only_turn(function: Callable[[Any], Any], rows: Any) -> Any:
    """`lax.map` over the one row of a device, in the loop over two rows that ends after one.

    XLA opens a loop of one turn, and then contracts other products and sums into multiply-adds than in the loops of
    devices that have several shards. So it must know neither the number of turns nor which of the rows is taken.
    """
    shape = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], rows))
    rows = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), rows)
    parts = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape), leaf.dtype), shape)
    # The number of a device is below 2^16, so that this is 1; XLA does not know it.
    turns = 1 + (lax.axis_index(AXIS) >> 16)

    def turn(index: Int[Array, ""], parts: Any) -> Any:
        found = function(jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), rows))
        return jax.tree.map(lambda part, leaf: lax.dynamic_update_index_in_dim(part, leaf, index, 0), parts, found)

    return jax.tree.map(lambda leaf: leaf[:1], lax.fori_loop(0, turns, turn, parts))


def sum_over_shards(
    function: Callable[[Any, Any, Int[Array, ""]], Any],
    whole: Any,
    batch: Any,
    *,
    num_shards: int,
    mesh: Mesh | None = None,
) -> Any:
    """The sum over all shards of `function(whole, shard, index)`, the same bits on any mesh that divides the shards.

    Args:
        function: What one shard adds: a tree of arrays.
        whole: Arguments that every shard sees whole.
        batch: Arrays `[batch, ...]`; shard `index` holds rows `index * batch / num_shards` and on.
        num_shards: Divides the batch, and is divided by the number of devices.
        mesh: From `make_mesh`; by default one device computes all.
    """
    devices = mesh.size if mesh else 1
    if num_shards == 1:
        return function(whole, batch, jnp.int32(0))

    def part(arguments: Any) -> Any:
        return lax.optimization_barrier(function(*lax.optimization_barrier(arguments)))

    def sum_on_device(whole: Any, shards: Any, indices: Int[Array, " shards"]) -> Any:
        if len(indices) == 1:
            parts = _only_turn(lambda shard: part((whole, *shard)), (shards, indices))
        else:
            parts = lax.map(lambda shard: part((whole, *shard)), (shards, indices))
        if len(indices).bit_count() == 1:
            # A power of two of neighbours is a subtree of the whole sum: add it here, gather less.
            parts = jax.tree.map(lambda part: pairwise_sum(part)[None], parts)
        if devices > 1:
            parts = lax.all_gather(parts, AXIS, tiled=True)
        return jax.tree.map(pairwise_sum, parts)

    shards = jax.tree.map(lambda rows: rows.reshape(num_shards, -1, *rows.shape[1:]), batch)
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    if devices > 1:  # One device needs none, and a sweep, inside one over its lanes, could not have another.
        sum_on_device = jax.shard_map(
            sum_on_device, mesh=mesh, in_specs=(everywhere, split, split), out_specs=everywhere, check_vma=False
        )
    total = sum_on_device(whole, shards, jnp.arange(num_shards))
    # What follows must compile apart from the sum, whose last additions depend on the number of devices: fused with
    # them, XLA contracts other pairs of the optimizer's products and sums into multiply-adds, and last bits change.
    return lax.optimization_barrier(total)
