"""In which order are floats added where a compiler would choose one?

A sum along an axis is a tree of halves: x[i] + x[i + n / 2]. Sums into one position, as for the rows of an embedding's
gradient, are taken in the order of the updates. Both orders depend only on shapes and indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable.arithmetic import NAN, Arithmetic, Array, bits, floats, from_order, order, select

NAN_BELOW = np.int32(-(2**31))
"""Key of NaN where it is below everything."""
Combine = Callable[[Array, Array], Array]


def reduce(combine: Combine, x: Array, axes: Sequence[int], empty: float) -> Array:
    """The tree of halves along each axis, the last axis first. An odd last element is carried along."""
    x = lax.optimization_barrier(x)  # Stored in memory: else every branch of the tree computes x again.
    for axis in sorted(axes, reverse=True):
        while (size := x.shape[axis]) > 1:
            half = size // 2
            low, high = (lax.slice_in_dim(x, start, start + half, axis=axis) for start in (0, half))
            pairs = combine(low, high)
            rest = lax.slice_in_dim(x, 2 * half, size, axis=axis)
            x = lax.concatenate([pairs, rest], axis) if size % 2 else pairs
        if x.shape[axis] == 0:
            x = jnp.full((*x.shape[:axis], *x.shape[axis + 1 :]), empty, x.dtype)
        else:
            x = lax.squeeze(x, (axis,))
    return x


def cumulative(combine: Combine, x: Array, params: dict[str, Any]) -> Array:
    """Running sums or products, paired as in `lax.associative_scan`."""
    result: Array = lax.associative_scan(combine, x, reverse=params["reverse"], axis=params["axis"])
    return result


def _windows(x: Array, params: dict[str, Any], fill: Any) -> tuple[Array, list[int]]:
    """The array x, padded with `fill` and dilated, and the number of windows on each axis."""
    spread = [(*pad, dilation - 1) for pad, dilation in zip(params["padding"], params["base_dilation"], strict=True)]
    x = lax.pad(x, np.asarray(fill, x.dtype), spread)
    wide = [(size - 1) * step + 1 for size, step in _sizes_and_dilations(params)]
    counts = [
        max(0, (size - reach) // stride + 1)
        for size, reach, stride in zip(x.shape, wide, params["window_strides"], strict=True)
    ]
    return x, counts


def _sizes_and_dilations(params: dict[str, Any]) -> list[tuple[int, int]]:
    """A window's size and dilation on each axis."""
    dilations = params.get("window_dilation") or (1,) * len(params["window_dimensions"])
    return list(zip(params["window_dimensions"], dilations, strict=True))


def window_sum(a: Arithmetic, x: Array, params: dict[str, Any]) -> Array:
    """The sum of each window, one axis after the other, the last axis first."""
    x, counts = _windows(x, params, 0)
    for axis in reversed(range(x.ndim)):
        size, dilation = _sizes_and_dilations(params)[axis]
        stride, count = params["window_strides"][axis], counts[axis]
        if size == 1 and stride == 1:
            continue
        reach = (count - 1) * stride + 1
        parts = [
            lax.slice_in_dim(x, i * dilation, i * dilation + reach, stride, axis)
            if count
            else lax.slice_in_dim(x, 0, 0, 1, axis)
            for i in range(size)
        ]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [a.add(parts[i], parts[i + half]) for i in range(half)] + parts[2 * half :]
        x = parts[0]
    return x


def _window_keys(operand: Array, params: dict[str, Any]) -> tuple[Array, list[int]]:
    """`_windows` of integers, whose largest is what a pooling selects: the floats' order, negated for a minimum."""
    key = order(operand)
    selects_smallest = params["select_prim"].name in ("le", "le_to", "lt")
    return _windows(-key if selects_smallest else key, params, -(2**31))


def select_and_scatter_add(a: Arithmetic, source: Array, operand: Array, params: dict[str, Any]) -> Array:
    """Add each window's source to the position of its extreme element (the first of equals), in a fixed order."""
    keys, counts = _window_keys(operand, params | {"base_dilation": (1,) * operand.ndim})
    window, strides = params["window_dimensions"], params["window_strides"]
    places = list(np.ndindex(*window))

    def at(x: Array, place: Sequence[int]) -> Array:
        limits = [start + (count - 1) * stride + 1 for start, count, stride in zip(place, counts, strides, strict=True)]
        return lax.slice(x, tuple(place), limits, tuple(strides))

    best = at(keys, places[0])
    chosen = jnp.zeros(best.shape, np.int32)
    for i, place in enumerate(places[1:], 1):
        candidate = at(keys, place)
        better = candidate > best
        best, chosen = select(better, candidate, best), select(better, np.int32(i), chosen)
    total: Array | None = None
    for i, place in enumerate(places):
        part = select(chosen == i, source, np.float32(0))
        spread = [
            (start, size - start - (count - 1) * stride - 1, stride - 1)
            for start, size, count, stride in zip(place, keys.shape, counts, strides, strict=True)
        ]
        part = lax.pad(part, np.float32(0), spread)
        total = part if total is None else a.add(total, part)
    assert total is not None
    back = [(-low, -high, 0) for low, high in params["padding"]]
    return lax.pad(total, np.float32(0), back)


def select_and_gather_add(tangents: Array, operand: Array, params: dict[str, Any]) -> Array:
    """The tangent at the position of each window's extreme element."""
    keys, counts = _window_keys(operand, params)
    values, _ = _windows(tangents, params, 0)
    dilations = [step for _, step in _sizes_and_dilations(params)]
    best: Array | None = None
    chosen = values
    for place in np.ndindex(*params["window_dimensions"]):
        start = [i * step for i, step in zip(place, dilations, strict=True)]
        limits = [
            low + (count - 1) * stride + 1
            for low, count, stride in zip(start, counts, params["window_strides"], strict=True)
        ]
        candidate, value = (lax.slice(x, start, limits, params["window_strides"]) for x in (keys, values))
        if best is None:
            best, chosen = candidate, value
        else:
            better = candidate > best
            best, chosen = select(better, candidate, best), select(better, value, chosen)
    return chosen


def _targets(operand: Array, indices: Array, updates: Array, params: dict[str, Any]) -> Array:
    """The index in the flat operand to which each element of the updates goes, or -1, in the updates' shape."""
    numbers = params["dimension_numbers"]
    window = iter(updates.shape[i] for i in numbers.update_window_dims)
    outside = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    sizes = [1 if i in outside else next(window) for i in range(operand.ndim)]
    gather = lax.GatherDimensionNumbers(
        offset_dims=numbers.update_window_dims,
        collapsed_slice_dims=numbers.inserted_window_dims,
        start_index_map=numbers.scatter_dims_to_operand_dims,
        operand_batching_dims=numbers.operand_batching_dims,
        start_indices_batching_dims=numbers.scatter_indices_batching_dims,
    )
    places = jnp.arange(operand.size, dtype=np.int32).reshape(operand.shape)
    mode = lax.GatherScatterMode.from_any(params["mode"])
    if mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        mode = lax.GatherScatterMode.FILL_OR_DROP
    return lax.gather(places, indices, gather, slice_sizes=sizes, mode=mode, fill_value=-1)


def _by_rows(operand: Array, updates: Array, targets: Array, params: dict[str, Any]) -> tuple[Array, Array, Any]:
    """Updates `[n, w]`, the first target of each row, and a function back to the updates' shape.

    The updates form rows if two rows either share all positions or none. Otherwise each element is a row.
    """
    numbers = params["dimension_numbers"]
    outside = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    inside = [i for i in range(operand.ndim) if i not in outside]
    moving = [
        axis
        for axis, i in zip(numbers.update_window_dims, inside, strict=True)
        if i in numbers.scatter_dims_to_operand_dims and updates.shape[axis] > 1
    ]
    batch = [i for i in range(updates.ndim) if i not in numbers.update_window_dims]
    if moving:
        return updates.reshape(-1, 1), targets.reshape(-1), lambda rows: rows.reshape(updates.shape)
    axes = (*batch, *numbers.update_window_dims)
    turned = lax.transpose(updates, axes)
    count = math.prod(updates.shape[i] for i in batch)
    first = lax.transpose(targets, axes).reshape(count, -1)[:, 0]
    return (
        turned.reshape(count, -1),
        first,
        lambda rows: lax.transpose(rows.reshape(turned.shape), np.argsort(axes)),
    )


def _in_groups(targets: Array) -> tuple[Array, Array, Array]:
    """A stable order that groups equal targets, its inverse, and for each position whether a group ends there."""
    places = jnp.arange(targets.shape[0], dtype=np.int32)
    sorted_targets, there = lax.sort((targets, places), num_keys=1, is_stable=True)
    _, back = lax.sort((there, places), num_keys=1, is_stable=True)
    ends = jnp.concatenate([sorted_targets[1:] != sorted_targets[:-1], jnp.ones(1, bool)])
    return there, back, ends


def _placed(operand: Array, indices: Array, updates: Array, params: dict[str, Any]) -> Array:
    """Integers at their positions, 0 elsewhere. At most one update per position is not 0, so a sum places it."""
    zeros = jnp.zeros(operand.shape, updates.dtype)
    numbers, mode = params["dimension_numbers"], params["mode"]
    return lax.scatter_add(zeros, indices, updates, numbers, mode=mode)


def scatter_add(a: Arithmetic, operand: Array, indices: Array, updates: Array, params: dict[str, Any]) -> Array:
    """The operand plus the sum of the updates for each position, added in the order of the updates."""
    if updates.size == 0 or operand.size == 0:
        return operand
    targets = _targets(operand, indices, updates, params)
    rows, first, unmade = _by_rows(operand, updates, targets, params)
    if rows.shape[0] > 1:
        there, back, ends = _in_groups(first)
        starts = jnp.concatenate([jnp.ones(1, bool), ends[:-1]])

        def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
            fresh = jnp.broadcast_to(right[1], right[0].shape)
            return select(fresh, right[0], a.add(left[0], right[0])), left[1] | right[1]

        sums, _ = lax.associative_scan(combine, (rows[there], starts[:, None]))
        rows = select(jnp.broadcast_to(ends[:, None], sums.shape), sums, np.float32(0))[back]
    total = floats(_placed(operand, indices, bits(unmade(rows)), params))
    return a.add(operand, total)


def scatter(operand: Array, indices: Array, updates: Array, params: dict[str, Any]) -> Array:
    """The operand with the updates in place. Of several updates for one position, the last wins."""
    if updates.size == 0 or operand.size == 0:
        return operand
    if operand.dtype.itemsize < 4:
        return scatter(operand.astype(np.int32), indices, updates.astype(np.int32), params).astype(operand.dtype)
    rows, first, unmade = _by_rows(operand, updates, _targets(operand, indices, updates, params), params)
    kept = jnp.ones(rows.shape, bool)
    if rows.shape[0] > 1:
        _, back, ends = _in_groups(first)
        kept = jnp.broadcast_to(ends[back][:, None], rows.shape)
    whole = select(kept, lax.bitcast_convert_type(rows, np.int32), np.int32(0))
    values = lax.bitcast_convert_type(_placed(operand, indices, unmade(whole), params), operand.dtype)
    hit = _placed(operand, indices, unmade(kept.astype(np.int32)), params)
    return select(hit > 0, values, operand)


def scatter_extreme(primitive: Any, operand: Array, indices: Array, updates: Array, params: dict[str, Any]) -> Array:
    """The largest or smallest values into positions, compared as integers. The order of the updates does not matter."""
    into = lax.scatter_min if "min" in primitive.name else lax.scatter_max
    keys = extreme_key(operand, primitive), extreme_key(updates, primitive)
    placed = into(keys[0], indices, keys[1], params["dimension_numbers"], mode=params["mode"])
    return from_extreme_key(placed)


def extreme_key(x: Array, primitive: Any) -> Array:
    """`order`, but for a minimum NaN is below everything. So a NaN is the extreme of any values."""
    key = order(x)
    return select(key == NAN, NAN_BELOW, key) if "min" in primitive.name else key


def from_extreme_key(key: Array) -> Array:
    """The inverse of `extreme_key`."""
    return from_order(select(key == NAN_BELOW, NAN, key))


def extreme(primitive: Any, x: Array, params: dict[str, Any]) -> Array:
    """The largest or smallest element, by a primitive that also exists for integers."""
    return from_extreme_key(primitive.bind(extreme_key(x, primitive), **params))
