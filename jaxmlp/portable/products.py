"""How do matrix products and convolutions get the same bits from every library?

Each row of a factor is scaled by a power of two, rounded to an integer, and cut into slices of 8 bits. The slices are
multiplied as int8 and summed as int32, which is exact in any order. Only then are sums added as floats, at most
three for each block of `BLOCK` terms.

Source: Ozaki, Ogita, Oishi, Rump, Error-free transformations of matrix multiplication, 2012.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable.arithmetic import (
    INFINITY,
    MAGNITUDE,
    NAN,
    SIGN,
    Arithmetic,
    Array,
    bits,
    bits_of,
    exponent,
    floats,
    power_of_two,
    select,
    significand,
)
from jaxmlp.portable.sums import reduce

SLICES = (1, 2, 3)
BLOCK = 2**15
"""Largest number of terms of an int32 sum. A term is up to three products of two slices, so it is at most 3 * 2^14, and
the sum at most 3 * 2^29."""
FLOAT_BLOCK = 2**10
"""Largest number of terms of a float32 sum. A term is a product of two slices, so the sum is at most 2^24: float32
holds such integers exactly."""
UNROLLED = 32
"""Largest number of places of a window, or of outputs, that a convolution unrolls. It loops over more."""


class SlicedFactor(NamedTuple):
    """A factor cut into slices: x is about 2^-shift * sum of slices[i] * 256^(last - i)."""

    slices: list[Array]
    """Slices, the most significant first: int8 `[..., row, contracted]`, in [-128, 127]."""
    shift: Array
    """Shift of each row: int32 `[..., row]`."""
    bad: Array
    """Whether each row has an infinity or a NaN."""


def shift_of(largest: Array, count: int) -> Array:
    """The largest shift, at most 126, with which a row fits into `count` slices.

    Args:
        largest: Bits of the largest magnitude in the row.
        count: Number of slices.
    """
    # The magnitude is significand * 2^(exponent - 150). If the shift is 8 count + 125 - exponent, it becomes
    # significand * 2^(8 count - 25), less than 2^(8 count - 1). The largest integer whose slices are all at most 127 is
    # a little less than that too. If the magnitude is above this limit, the shift must be one less.
    limit = sum(127 * 256**i for i in range(count))
    is_above = significand(largest) > np.int32(limit * 2.0 ** (25 - 8 * count))
    shift = np.int32(8 * count + 125) - exponent(largest) - is_above.astype(np.int32)
    return select(shift > 126, np.int32(126), shift)


def cut(x: Array, shift: Array, count: int) -> list[Array]:
    """Round x * 2^shift to the nearest integer, and cut it into `count` slices.

    Ties go away from 0. The float before a half becomes 1, because its sum with the half rounds.
    """
    half = floats((bits(x) & SIGN) | bits_of(0.5))
    # The product is exact, so a fused multiply-add gives the same bits.
    whole = (x * power_of_two(shift) + half).astype(np.int32)
    slices = []
    for _ in range(count - 1):
        slices.append(((whole << 24) >> 24).astype(np.int8))
        whole = (whole + 128) >> 8
    return [whole.astype(np.int8), *reversed(slices)]


def known_whole(a: Arithmetic, x: Array) -> Array:
    """Note that x has only zeros and ones. Its slices after the first are 0, and products skip them."""
    a.memory[id(x), "whole"] = ((), x)
    return x


def known_transposed(a: Arithmetic, x: Array, source: Array, permutation: Sequence[int]) -> Array:
    """Note that x is a transpose of `source`, which products take instead: XLA transposes int8 factors slowly."""
    a.memory[id(x), "transposed"] = ((source, permutation), x)
    return x


def _untransposed(
    a: Arithmetic, x: Array, contracted: Sequence[int], batch: Sequence[int]
) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """The array that x is a transpose of, with its contracted and batch axes. x itself if free axes change order."""
    known = a.memory.get((id(x), "transposed"))
    if known is None:
        return x, tuple(contracted), tuple(batch)
    source, permutation = known[0]
    free = [permutation[i] for i in range(x.ndim) if i not in (*contracted, *batch)]
    if free != sorted(free):
        return x, tuple(contracted), tuple(batch)
    moved, shared = (tuple(permutation[i] for i in axes) for axes in (contracted, batch))
    return _untransposed(a, source, moved, shared)


def split(a: Arithmetic, x: Array, axes: Sequence[int]) -> SlicedFactor:
    """Cut x into slices of the same layout. Elements that differ only in their place along `axes` share a shift."""
    largest = jnp.max(bits(x) & MAGNITUDE, axis=tuple(axes), keepdims=True, initial=0)
    shift = shift_of(largest, a.slices)
    return SlicedFactor(cut(x, jnp.broadcast_to(shift, x.shape), a.slices), shift, largest >= INFINITY)


def whole_product(a: Arithmetic, x: Array, y: Array, contracted: int) -> Array:
    """The exact int32 product of two slices, x `[batch, rows, k]` and y, with k up to `BLOCK`.

    `contracted` is the axis of y that runs over k: 2, or 1 if batch is 1.
    """
    if x.shape[0] == 1:
        return _by_factors(a, x[0], y[0], 1, contracted - 1, ())[None]
    return _by_factors(a, x, y, 2, contracted, (0,))


def _by_factors(a: Arithmetic, x: Array, y: Array, axis_x: int, axis_y: int, batch: tuple[int, ...]) -> Array:
    """The exact int32 product, multiplied in the type `a.factors`. Floats need blocks of `FLOAT_BLOCK` terms."""
    numbers = (((axis_x,), (axis_y,)), (batch, batch))
    if a.factors == "int8":
        return lax.dot_general(x, y, numbers, preferred_element_type=np.int32)
    dtype = jnp.dtype(a.factors)
    total: Array | None = None
    for start in range(0, x.shape[axis_x], FLOAT_BLOCK):
        stop = min(start + FLOAT_BLOCK, x.shape[axis_x])
        left, right = (
            lax.slice_in_dim(value, start, stop, axis=axis).astype(dtype) for value, axis in ((x, axis_x), (y, axis_y))
        )
        precision = lax.Precision.HIGHEST if a.factors == "float32" else None
        part = lax.dot_general(left, right, numbers, precision=precision, preferred_element_type=np.float32)
        total = part.astype(np.int32) if total is None else total + part.astype(np.int32)
    assert total is not None
    return total


def sum_of_slices(a: Arithmetic, x: Sequence[Array], y: Sequence[Array], contracted: int = 2) -> Array:
    """The float32 product of two cut factors, `[batch, rows, k]` and `[batch, columns, k]`, before scaling.

    With `contracted` = 1, y is `[batch, k, columns]`. Products of two low slices are left out: they are smaller than
    the error of rounding to slices.
    """
    length = x[0].shape[-1]
    totals = []
    for start in range(0, max(length, 1), BLOCK):
        stop = min(start + BLOCK, length)
        xs, ys = (
            [lax.slice_in_dim(value, start, stop, axis=axis) for value in values]
            for values, axis in ((x, 2), (y, contracted))
        )
        total: Array | None = None
        for order in reversed(range(a.slices)):
            whole: Array | None = None
            for i in range(order + 1):
                if i < len(xs) and order - i < len(ys):
                    part = whole_product(a, xs[i], ys[order - i], contracted)
                    whole = part if whole is None else whole + part
            if whole is None:
                continue
            floating = whole.astype(np.float32)
            total = floating if total is None else a.guard(floating + total * np.float32(2.0**-8))
        assert total is not None
        totals.append(total)
    while len(totals) > 1:
        rest = totals[len(totals) // 2 * 2 :]
        totals = [a.guard(one + other) for one, other in zip(totals[::2], totals[1::2], strict=False)] + rest
    return totals[0]


def scaled(a: Arithmetic, total: Array, x: SlicedFactor, y: SlicedFactor) -> Array:
    """Scale `total` by the shifts of its rows `[..., row, 1]` and columns `[..., 1, column]`. Bad rows give NaN."""
    power = jnp.broadcast_to(np.int32(16 * (a.slices - 1)) - x.shift - y.shift, total.shape)
    bad = jnp.broadcast_to(x.bad | y.bad, total.shape)
    return floats(select(bad, NAN, bits(a.scale(total, power))))


def _factor(a: Arithmetic, x: Array, batch: Sequence[int], contracted: Sequence[int], as_is: bool) -> SlicedFactor:
    """Cut a factor into slices, and remember them for products that contract the same axes.

    The slices are `[batch, row, k]`. With `as_is` the axes keep their order, and the slices are `[1, k, row]`.
    """
    key = (id(x), ("factor", tuple(batch), tuple(contracted), as_is))
    known = a.memory.get(key)
    if known is None:
        free = [i for i in range(x.ndim) if i not in batch and i not in contracted]
        # The barrier keeps x in memory. Otherwise XLA computes x again for every slice.
        rows = split(a, lax.optimization_barrier(x), contracted)
        if (id(x), "whole") in a.memory:
            rows = rows._replace(slices=rows.slices[:1])
        sizes = [math.prod(x.shape[i] for i in axes) for axes in (batch, free, contracted)]
        order = (*batch, *free, *contracted)
        shift, bad = (lax.transpose(part, order).reshape(sizes[:2]) for part in (rows.shift, rows.bad))
        if as_is:
            slices = [part.reshape(1, sizes[2], sizes[1]) for part in rows.slices]
        else:
            slices = [_in_memory(part, order).reshape(sizes) for part in rows.slices]
        known = a.memory[key] = SlicedFactor(list(lax.optimization_barrier(tuple(slices))), shift, bad), x
    return known[0]


def _in_memory(x: Array, order: Sequence[int]) -> Array:
    """Transpose x into new memory, unless the order changes nothing.

    On CPU, XLA folds a plain transpose into the product and then multiplies int8 factors slowly. It does not fold an
    update of a slice at a place that is unknown at compile time.
    """
    if list(order) == sorted(order):
        return x
    turned = lax.transpose(x, order)
    zero = lax.optimization_barrier(jnp.zeros((), np.int32))
    return lax.dynamic_update_slice(jnp.zeros(turned.shape, turned.dtype), turned, (zero,) * turned.ndim)


def dot_general(a: Arithmetic, x: Array, y: Array, dimension_numbers: Any) -> Array:
    """`lax.dot_general` of float32 arrays, with the same bits on every device."""
    (contracted_x, contracted_y), (batch_x, batch_y) = dimension_numbers
    x, contracted_x, batch_x = _untransposed(a, x, contracted_x, batch_x)
    y, contracted_y, batch_y = _untransposed(a, y, contracted_y, batch_y)
    dimension_numbers = (contracted_x, contracted_y), (batch_x, batch_y)
    rows, columns = (
        [size for i, size in enumerate(value.shape) if i not in (*batch, *contracted)]
        for value, batch, contracted in ((x, batch_x, contracted_x), (y, batch_y, contracted_y))
    )
    shape = [*(x.shape[i] for i in batch_x), *rows, *columns]
    if math.prod(shape) == 0 or math.prod(x.shape[i] for i in contracted_x) == 0:
        return jnp.zeros(shape, np.float32)
    if math.prod(rows) == math.prod(columns) == 1:
        return _of_vectors(a, x, y, dimension_numbers).reshape(shape)
    # The right factor needs no transpose if its contracted axes come first.
    as_is = not batch_y and list(contracted_y) == list(range(len(contracted_y))) and len(contracted_y) < y.ndim
    left = _factor(a, x, batch_x, contracted_x, False)
    right = _factor(a, y, batch_y, contracted_y, as_is)
    total = sum_of_slices(a, left.slices, right.slices, 1 if as_is else 2)
    left = left._replace(shift=left.shift[:, :, None], bad=left.bad[:, :, None])
    right = right._replace(shift=right.shift[:, None], bad=right.bad[:, None])
    result: Array = lax.optimization_barrier(scaled(a, total, left, right).reshape(shape))
    return result


def _of_vectors(a: Arithmetic, x: Array, y: Array, dimension_numbers: Any) -> Array:
    """Products of one row and one column, as float32 products and a tree of sums: slices would gain nothing."""
    (contracted_x, contracted_y), (batch_x, batch_y) = dimension_numbers
    length = math.prod(x.shape[i] for i in contracted_x)
    left, right = (
        lax.transpose(
            value, (*batch, *contracted, *(i for i in range(value.ndim) if i not in (*batch, *contracted)))
        ).reshape(-1, length)
        for value, batch, contracted in ((x, batch_x, contracted_x), (y, batch_y, contracted_y))
    )
    return reduce(a.add, a.mul(left, right), (1,), 0.0)


def convolution(a: Arithmetic, x: Array, y: Array, params: dict[str, Any]) -> Array:
    """`lax.conv_general_dilated` of float32 arrays, in any number of dimensions, with the same bits on every device.

    Each image has one shift per group, and each filter has one shift. The convolution becomes products of matrices.
    """
    numbers = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    x, y = lax.transpose(x, numbers.lhs_spec), lax.transpose(y, numbers.rhs_spec)
    # Both kinds of groups become one axis: [groups, images, channels, *space] and [groups, filters, ...].
    if batch_groups > 1:
        x = x.reshape(batch_groups, -1, *x.shape[1:])
    else:
        x = jnp.moveaxis(x.reshape(x.shape[0], groups, -1, *x.shape[2:]), 1, 0)
    y = y.reshape(groups * batch_groups, -1, *y.shape[1:])
    x, y = lax.optimization_barrier((x, y))
    left, right = split(a, x, range(2, x.ndim)), split(a, y, range(2, y.ndim))
    edges = [(0, 0, 0)] * 3
    space = [(*pad, dilation - 1) for pad, dilation in zip(params["padding"], params["lhs_dilation"], strict=True)]
    padded = [lax.pad(part, np.int8(0), [*edges, *space]) for part in left.slices]
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    window = y.shape[3:]
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(window, dilations, strict=True)]
    out = [
        max(0, (size - wide) // stride + 1)
        for size, wide, stride in zip(padded[0].shape[3:], reach, strides, strict=True)
    ]
    shape = (x.shape[0], x.shape[1], y.shape[1], *out)
    if math.prod(shape) == 0 or math.prod(y.shape) == 0:
        total = jnp.zeros(shape, np.float32)
    elif math.prod(window) <= math.prod(out):
        total = _by_window(a, padded, right.slices, out, strides, dilations)
    else:
        total = _by_output(a, padded, right.slices, out, strides, dilations)
    ones = (1,) * len(out)
    left, right = (
        part._replace(shift=part.shift.reshape(*lead, *ones), bad=part.bad.reshape(*lead, *ones))
        for part, lead in ((left, (*x.shape[:2], 1)), (right, (y.shape[0], 1, y.shape[1])))
    )
    result = scaled(a, total, left, right)
    # [groups, images, filters, *space] to [images, groups * filters, *space]
    result = jnp.moveaxis(result, 0, 1).reshape(x.shape[1], -1, *out)
    turned: Array = lax.optimization_barrier(lax.transpose(result, np.argsort(numbers.out_spec)))
    return turned


def _taken(x: Array, start: Sequence[Any], sizes: Sequence[int], steps: Sequence[int]) -> Array:
    """Take `sizes` places from the space of x, at `start` and every `steps`-th place after it."""
    lead = x.shape[:3]
    reach = [(size - 1) * step + 1 for size, step in zip(sizes, steps, strict=True)]
    if all(isinstance(place, int) for place in start):
        limits = [place + wide for place, wide in zip(start, reach, strict=True)]
        return lax.slice(x, (0, 0, 0, *start), (*lead, *limits), (1, 1, 1, *steps))
    zero = jnp.zeros((), np.int32)
    part = lax.dynamic_slice(x, (zero, zero, zero, *start), (*lead, *reach))
    return lax.slice(part, (0,) * x.ndim, part.shape, (1, 1, 1, *steps))


def _by_window(
    a: Arithmetic, x: list[Array], y: list[Array], out: list[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """Multiply each place of the window with all outputs at once."""
    groups, images, channels = x[0].shape[:3]
    filters, window = y[0].shape[1], y[0].shape[3:]
    places = list(itertools.product(*(range(size) for size in window)))

    def rows(part: Array, start: Sequence[Any]) -> Array:
        taken = _taken(part, start, out, strides)
        return jnp.moveaxis(taken, 2, -1).reshape(groups, images * math.prod(out), channels)

    if len(places) <= UNROLLED:
        starts = [[at * step for at, step in zip(place, dilations, strict=True)] for place in places]
        xs = [jnp.concatenate([rows(part, start) for start in starts], axis=-1) for part in x]
        ys = [jnp.moveaxis(part, 2, -1).reshape(groups, filters, -1) for part in y]
        total = sum_of_slices(a, xs, ys)
    else:
        ys = [jnp.moveaxis(part.reshape(*part.shape[:3], -1), -1, 0) for part in y]
        starts_array = jnp.asarray(np.asarray(places, np.int32) * np.asarray(dilations, np.int32))

        def body(total: Array, place: tuple[Array, list[Array]]) -> tuple[Array, None]:
            start, filters_here = place
            here = sum_of_slices(a, [rows(part, tuple(start)) for part in x], filters_here)
            return a.guard(total + here), None

        start = jnp.zeros((groups, images * math.prod(out), filters), np.float32)
        total, _ = lax.scan(body, start, (starts_array, ys))
    return jnp.moveaxis(total.reshape(groups, images, *out, filters), -1, 2)


def _by_output(
    a: Arithmetic, x: list[Array], y: list[Array], out: list[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """Compute each output from its whole window. For few outputs of large windows, as in gradients."""
    groups, images = x[0].shape[:2]
    filters, window = y[0].shape[1], y[0].shape[3:]
    places = list(itertools.product(*(range(size) for size in out)))
    ys = [part.reshape(groups, filters, -1) for part in y]

    def at(start: Sequence[Any]) -> Array:
        xs = [_taken(part, start, window, dilations).reshape(groups, images, -1) for part in x]
        return sum_of_slices(a, xs, ys)

    starts = np.asarray(places, np.int32).reshape(len(places), -1) * np.asarray(strides, np.int32)
    if len(places) <= UNROLLED:
        total = jnp.stack([at([int(place) for place in start]) for start in starts])
    else:
        _, total = lax.scan(lambda carry, start: (carry, at(tuple(start))), (), jnp.asarray(starts))
    return jnp.moveaxis(total, 0, -1).reshape(groups, images, filters, *out)
