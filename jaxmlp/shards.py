"""How do devices split a batch, and add in one order? Sums over shards have the same bits on any number of devices.

A batch consists of shards. The number of shards is part of the experiment, the number of devices is not. All shards
run the same program. Each device adds one slice of all shards' results in a fixed order, and gathers the other slices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Num, Shaped, UInt32

from jaxmlp.errors import ConfigError, DeviceError

AXIS = "shard"
MESSAGE_MULTIPLE = 128
"""Each device's message is padded to a multiple of this many words. For messages of other lengths, XLA's compiler for
TPUs would use an all-reduce, as it does on 64 devices for any length."""


def pick_devices(grad_shards: int, wanted: int | None = None) -> list[jax.Device]:
    """Choose the devices that split each batch.

    Args:
        grad_shards: The config's number of shards. The number of devices divides it.
        wanted: Number of devices. Default: the largest available number that divides `grad_shards`.

    Returns:
        The devices, equally many of each process.

    Raises:
        ConfigError: `wanted` does not divide `grad_shards`, or one of the two is not a multiple of the number of
            processes.
        DeviceError: Fewer than `wanted` devices are available.
    """
    available, processes = jax.devices(), jax.process_count()
    possible = [count for count in range(processes, grad_shards + 1, processes) if grad_shards % count == 0]
    if not possible:
        raise ConfigError("grad_shards", f"must be a multiple of the {processes} processes, got {grad_shards}")
    if wanted is None:
        return of_each_process(max(count for count in possible if count <= len(available)))
    if wanted not in possible:
        near = sorted(sorted(possible, key=lambda count: abs(count - wanted))[:2])
        nearest = " and ".join(map(str, near))
        rule = f"divide grad_shards {grad_shards}"
        if processes > 1:
            rule += f", and be a multiple of the {processes} processes"
        raise ConfigError("devices", f"must {rule}, got {wanted}. The nearest: {nearest}")
    if wanted > len(available):
        kind = available[0].platform
        raise DeviceError(
            f"device: {wanted} devices were asked for, but JAX finds {len(available)} of {kind}. Leave out --devices"
        )
    return of_each_process(wanted)


def of_each_process(count: int) -> list[jax.Device]:
    """The first `count` / processes devices of each process. `count` is a multiple of the number of processes."""
    processes = jax.process_count()
    each = count // processes
    return [device for index in range(processes) for device in jax.local_devices(index)[:each]]


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh with one axis over the devices."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def is_joined_by_gloo(mesh: Mesh) -> bool:
    """Whether the mesh has CPUs of several processes, which JAX joins by gloo."""
    devices = list(mesh.devices.flat)
    return devices[0].platform == "cpu" and len({device.process_index for device in devices}) > 1


def replicate[T](tree: T, mesh: Mesh) -> T:
    """Copy the tree's arrays, whole, to every device of the mesh."""
    placed: T = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    return placed


def pairwise_sum(parts: Num[Array, "shards *shape"]) -> Num[Array, " *shape"]:
    """The sum over the first axis: neighbours first, then neighbouring sums. An odd last term joins the next round."""
    while (count := parts.shape[0]) > 1:
        pairs = parts[0 : count - 1 : 2] + parts[1:count:2]
        parts = jnp.concatenate([pairs, parts[-1:]]) if count % 2 else pairs
    return parts[0]


def _only_turn(function: Callable[[Any], Any], rows: Any) -> Any:
    """`lax.map` over a device's only shard (`rows` has one row), as a loop over two copies that ends after the first.

    XLA unrolls a loop of one iteration, and then contracts other products and sums into multiply-adds than it does in
    the loop of a device with several shards. So XLA must know neither the number of iterations nor the index.
    """
    shape = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], rows))
    rows = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), rows)
    parts = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape), leaf.dtype), shape)
    # The number of a device is below 2^16, so this is 1. XLA does not know that.
    turns = 1 + (lax.axis_index(AXIS) >> 16)

    def turn(index: Int[Array, ""], parts: Any) -> Any:
        found = function(jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), rows))
        return jax.tree.map(lambda part, leaf: lax.dynamic_update_index_in_dim(part, leaf, index, 0), parts, found)

    return jax.tree.map(lambda leaf: leaf[:1], lax.fori_loop(0, turns, turn, parts))


def on_devices[**P, R](function: Callable[P, R], mesh: Mesh | None) -> Callable[P, R]:
    """Run the function on each device of the mesh. Arguments and results are whole on every device.

    This leaves nothing to XLA's partitioner, which would add collectives. One device needs no map; and a sweep, which
    already maps over its devices, could not nest another.
    """
    if not mesh or mesh.size == 1:
        return function
    everywhere = PartitionSpec()
    return jax.shard_map(function, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)


def own_rows(rows: Num[Array, "batch ..."], mesh: Mesh | None) -> Num[Array, "own ..."]:
    """The rows of a batch that belong to this device's shards. Call it inside `on_devices`."""
    if not mesh or mesh.size == 1:
        return rows
    own = rows.shape[0] // mesh.size
    return lax.dynamic_slice_in_dim(rows, lax.axis_index(AXIS) * own, own)


def own_slice(leaf: Num[Array, "..."], mesh: Mesh) -> Num[Array, " own"]:
    """This device's slice of an array, as `sum_over_shards` cuts it. Call it inside `on_devices`."""
    return _slices(leaf[None], mesh.size)[0, lax.axis_index(AXIS)]


def gathered(own: Any, like: Any) -> Any:
    """Gather arrays with the shapes of `like` from the devices' slices `own`. Call it inside `on_devices`."""
    slices, structure = jax.tree.flatten(own)
    return jax.tree.unflatten(structure, _gathered(slices, jax.tree.leaves(like))) if slices else own


def sum_over_shards(
    function: Callable[[Any, Any, Int[Array, ""]], Any],
    whole: Any,
    own: Any,
    *,
    num_shards: int,
    mesh: Mesh | None = None,
    exact: bool = True,
    update: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Any:
    """The sum over all shards of `function(whole, shard, index)`, the same bits on any mesh that divides the shards.

    Call it inside `on_devices`. Each array is cut into D slices of equal length, one per device. A slice has at least
    two numbers, because XLA may compute a single number in another way. If each device has p * 2^k shards, p odd, it
    receives (p + 1)(D - 1) / D times the size of one shard's result, padded to a multiple of D * `MESSAGE_MULTIPLE`
    words. With p = 1 this is less than twice the gradient.

    Args:
        function: Returns what one shard adds: a tree of arrays.
        whole: Arguments that every shard sees whole.
        own: Arrays `[batch / devices, ...]`, this device's rows of the batch, from `own_rows`. Shard `index` begins at
            row `index * batch / num_shards` of the batch.
        num_shards: Number of shards. It divides the batch; the number of devices divides it.
        mesh: From `make_mesh`. Default: one device computes all shards.
        exact: Whether to keep the same bits. If not, each device's rows are one shard, and XLA chooses the order.
        update: Changes the first tree of the sum, such as the gradients, before it is gathered. It gets this device's
            slices of that tree, and returns the slices to gather instead, and what the device keeps. Only for several
            devices with `exact`.

    Returns:
        The sum. With `update`, a pair: the sum, whose first tree is gathered from the updated slices, and what the
        device keeps.
    """
    devices = mesh.size if mesh else 1
    if not exact and devices > 1:
        return lax.psum(function(whole, own, lax.axis_index(AXIS)), AXIS)
    if num_shards == 1 or not exact:
        return function(whole, own, jnp.int32(0))

    def part(shard: Any) -> Any:
        return lax.optimization_barrier(function(*lax.optimization_barrier((whole, *shard))))

    count = num_shards // devices
    indices = jnp.arange(count)
    if devices > 1:
        indices += lax.axis_index(AXIS) * count
    shards = jax.tree.map(lambda rows: rows.reshape(count, len(rows) // count, *rows.shape[1:]), own), indices
    parts = _only_turn(part, shards) if count == 1 else lax.map(part, shards)
    total = _sum_over_devices(parts, devices, update) if devices > 1 else jax.tree.map(pairwise_sum, parts)
    # The last additions of the sum depend on the number of devices. If XLA fused the optimizer with them, it would
    # contract other products and sums into multiply-adds, and last bits would change.
    return lax.optimization_barrier(total)


def _sum_over_devices(parts: Any, devices: int, update: Callable[[Any], tuple[Any, Any]] | None) -> Any:
    """`pairwise_sum` over the parts `[own, ...]` of all devices.

    An all-to-all gives each device one slice of all parts, which it adds. An all-gather gives every device all sums.
    The slices travel as one row of 32-bit words, sorted by type.
    """
    leaves, structure = jax.tree.flatten(parts)
    is_complex = [jnp.iscomplexobj(leaf) for leaf in leaves]
    leaves = [
        jnp.stack((leaf.real, leaf.imag), -1) if pair else leaf for leaf, pair in zip(leaves, is_complex, strict=True)
    ]
    while len(leaves[0]) % 2 == 0:  # Neighbours form a subtree of the whole sum. Adding them here sends less.
        leaves = [leaf[::2] + leaf[1::2] for leaf in leaves]

    by_type = sorted(range(len(leaves)), key=lambda number: str(leaves[number].dtype))
    slices = [_slices(leaf, devices) for leaf in leaves]
    row = _padded(jnp.concatenate([_words(slices[number]) for number in by_type], axis=-1))
    received = lax.all_to_all(row.reshape(len(row), -1), AXIS, split_axis=1, concat_axis=0, tiled=True)
    sum_of: dict[int, Array] = {}
    start = 0
    for dtype, numbers in itertools.groupby(by_type, lambda number: leaves[number].dtype):
        same = list(numbers)
        *ends, size = np.cumsum([slices[number].shape[-1] for number in same])
        total = pairwise_sum(_of_words(received[:, start : start + size], dtype))
        sum_of |= zip(same, jnp.split(total, ends), strict=True)
        start += size
    sums = [sum_of[number] for number in range(len(leaves))]

    kept = None
    if update:
        first, *rest = jax.tree.unflatten(structure, sums)
        first, kept = update(lax.optimization_barrier(first))
        sums = jax.tree.leaves((first, rest))
    leaves = _gathered(sums, [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    leaves = [
        lax.complex(leaf[..., 0], leaf[..., 1]) if pair else leaf for leaf, pair in zip(leaves, is_complex, strict=True)
    ]
    whole = jax.tree.unflatten(structure, leaves)
    return (whole, kept) if update else whole


def _slices(parts: Num[Array, "parts ..."], devices: int) -> Num[Array, "parts devices own"]:
    """Cut arrays into the devices' slices, padded with zeros."""
    rows = parts.reshape(len(parts), -1)
    own = max(2, -(-rows.shape[1] // devices))
    return jnp.pad(rows, [(0, 0), (0, own * devices - rows.shape[1])]).reshape(len(rows), devices, own)


def _gathered(slices: list[Any], like: list[Any]) -> list[Any]:
    """Gather whole arrays, with the shapes and types of `like`, from the devices' slices."""
    words = _padded(jnp.concatenate([_words(leaf) for leaf in slices]))
    whole = lax.all_gather(words, AXIS)
    ends = np.cumsum([leaf.size for leaf in slices])
    return [
        _of_words(whole[:, end - own.size : end].ravel()[: leaf.size], leaf.dtype).reshape(leaf.shape)
        for own, leaf, end in zip(slices, like, ends, strict=True)
    ]


def _padded(words: UInt32[Array, "... own"]) -> UInt32[Array, "... padded"]:
    """The words with zeros at the end, up to a multiple of `MESSAGE_MULTIPLE`."""
    return jnp.pad(words, [*[(0, 0)] * (words.ndim - 1), (0, -words.shape[-1] % MESSAGE_MULTIPLE)])


def _words(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    """Each number as one word: its bits, or 0 and 1 for booleans. A number has at most 32 bits."""
    if x.dtype.kind == "b":
        return x.astype(jnp.uint32)
    return lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)


def _of_words(words: UInt32[Array, "..."], dtype: Any) -> Shaped[Array, "..."]:
    """The inverse of `_words`."""
    if dtype.kind == "b":
        return words.astype(dtype)
    return lax.bitcast_convert_type(words.astype(f"uint{8 * dtype.itemsize}"), dtype)
