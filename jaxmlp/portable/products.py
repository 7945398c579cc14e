"""How are products of matrices, and convolutions, summed to the same bits by every library?

Each row of a factor is scaled by a power of two and rounded to whole numbers of 8 bits a slice; the slices are
multiplied as int8 and summed as int32, which is exact in any order. Only then floats come in again, three at most.

Source: Ozaki, Ogita, Oishi, Rump, Error-free transformations of matrix multiplication, 2012.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable.arithmetic import (
    FRACTION,
    HIDDEN,
    INFINITY,
    MAGNITUDE,
    NAN,
    SIGN,
    Arithmetic,
    Array,
    bits,
    exponent,
    floats,
    power_of_two,
    select,
)
from jaxmlp.portable.sums import reduce

SLICES = (1, 2, 3)
BLOCK = 2**15
"""Terms of an int32 sum: three products of slices are at most 3 * 2^14 a term."""
FLOAT_BLOCK = 2**10
"""Terms of a float32 sum of one such product: whole numbers up to 2^24."""
UNROLLED = 32
"""Windows of a convolution that are laid side by side; more are gone through in a loop."""


class Rows(NamedTuple):
    """A factor, cut: x is about 2^-shift * sum of slices[i] * 256^(last - i)."""

    slices: list[Array]
    """Most significant first, in [-128, 127]; int8, `[..., row, contracted]`."""
    shift: Array
    """int32, `[..., row]`."""
    bad: Array
    """Whether the row has an infinity or a NaN."""


def shift_of(largest: Array, count: int) -> Array:
    """The largest shift with which a row whose largest size has these bits fits into the slices; at most 126."""
    limit = sum(127 * 256**i for i in range(count))
    room = (largest & FRACTION) | HIDDEN
    over = room > np.int32(min(limit * 2.0 ** (25 - 8 * count), 2**24))
    shift = np.int32(8 * count - 1 + 126) - exponent(largest) - over.astype(np.int32)
    return select(shift > 126, np.int32(126), shift)


def cut(x: Array, shift: Array, count: int) -> list[Array]:
    """The slices of x * 2^shift, rounded to the nearest whole number."""
    half = floats((bits(x) & SIGN) | np.float32(0.5).view(np.int32))
    # The product is exact, so it may be contracted with the sum.
    whole = (x * power_of_two(shift) + half).astype(np.int32)
    slices = []
    for _ in range(count - 1):
        slices.append(((whole << 24) >> 24).astype(np.int8))
        whole = (whole + 128) >> 8
    return [whole.astype(np.int8), *reversed(slices)]


def known_whole(a: Arithmetic, x: Array) -> Array:
    """Notes that x has zeros and ones only: its slices but the first are 0, and products do no work for them."""
    a.memory[id(x), "whole"] = ((), x)
    return x


def known_transposed(a: Arithmetic, x: Array, source: Array, permutation: Sequence[int]) -> Array:
    """Notes what x is a transpose of: XLA multiplies int8 factors that it has to transpose four times as slowly."""
    a.memory[id(x), "transposed"] = ((source, permutation), x)
    return x


def _untransposed(
    a: Arithmetic, x: Array, contracted: Sequence[int], batch: Sequence[int]
) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """The array that x is a transpose of, with the same axes, where the free ones have the same order."""
    known = a.memory.get((id(x), "transposed"))
    if known is None:
        return x, tuple(contracted), tuple(batch)
    source, permutation = known[0]
    free = [permutation[i] for i in range(x.ndim) if i not in (*contracted, *batch)]
    if free != sorted(free):
        return x, tuple(contracted), tuple(batch)
    moved, shared = (tuple(permutation[i] for i in axes) for axes in (contracted, batch))
    return _untransposed(a, source, moved, shared)


def split(a: Arithmetic, x: Array, axes: Sequence[int]) -> Rows:
    """The slices of x, in its own layout; all that is apart along `axes` only shares a shift."""
    largest = jnp.max(bits(x) & MAGNITUDE, axis=tuple(axes), keepdims=True, initial=0)
    shift = shift_of(largest, a.slices)
    return Rows(cut(x, jnp.broadcast_to(shift, x.shape), a.slices), shift, largest >= INFINITY)


def whole_product(a: Arithmetic, x: Array, y: Array, contracted: int) -> Array:
    """X `[batch, rows, k]` times y, slices, k up to `BLOCK`: int32, exact.

    `contracted` is the axis of y that runs over k: 2, or 1 where there is one batch.
    """
    if x.shape[0] == 1:
        return _by_factors(a, x[0], y[0], 1, contracted - 1, ())[None]
    return _by_factors(a, x, y, 2, contracted, (0,))


def _by_factors(a: Arithmetic, x: Array, y: Array, axis_x: int, axis_y: int, batch: tuple[int, ...]) -> Array:
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
    """The product of two cut factors, `[batch, rows, k]` and `[batch, columns, k]`, before scaling: float32.

    With `contracted` = 1, y is `[batch, k, columns]`.

    The products of two low slices, which are less than what rounding to slices lost, are left out.
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


def scaled(a: Arithmetic, total: Array, x: Rows, y: Rows) -> Array:
    """The product itself: `total` by the shifts of its row and column, `[..., row, 1]` and `[..., 1, column]`."""
    power = jnp.broadcast_to(np.int32(16 * (a.slices - 1)) - x.shift - y.shift, total.shape)
    bad = jnp.broadcast_to(x.bad | y.bad, total.shape)
    return floats(select(bad, NAN, bits(a.scale(total, power))))


def _factor(a: Arithmetic, x: Array, batch: Sequence[int], contracted: Sequence[int], right: bool) -> Rows:
    """The factor's slices as `[batch, row, k]`, kept for another product that contracts it likewise.

    A right factor stays `[1, k, row]` where it lies so.
    """
    key = (id(x), ("factor", tuple(batch), tuple(contracted), right))
    known = a.memory.get(key)
    if known is None:
        free = [i for i in range(x.ndim) if i not in batch and i not in contracted]
        # In memory, or every slice would compute anew what it is cut from.
        rows = split(a, lax.optimization_barrier(x), contracted)
        if (id(x), "whole") in a.memory:
            rows = rows._replace(slices=rows.slices[:1])
        sizes = [math.prod(x.shape[i] for i in axes) for axes in (batch, free, contracted)]
        order = (*batch, *free, *contracted)
        shift, bad = (lax.transpose(part, order).reshape(sizes[:2]) for part in (rows.shift, rows.bad))
        if right and _lies_turned(x, batch, contracted):
            slices = [part.reshape(1, sizes[2], sizes[1]) for part in rows.slices]
        else:
            slices = [_in_memory(part, order).reshape(sizes) for part in rows.slices]
        known = a.memory[key] = Rows(list(lax.optimization_barrier(tuple(slices))), shift, bad), x
    return known[0]


def _lies_turned(x: Array, batch: Sequence[int], contracted: Sequence[int]) -> bool:
    """Whether a factor without a batch has its contracted axes before the others."""
    return not batch and list(contracted) == list(range(len(contracted))) and len(contracted) < x.ndim


def _in_memory(x: Array, order: Sequence[int]) -> Array:
    """The transposed slices in memory of their own.

    XLA folds a plain transpose back into the product, and multiplies such int8 factors slowly, on CPU. It does not
    fold an update whose place is not known.
    """
    if list(order) == sorted(order):
        return x
    turned = lax.transpose(x, order)
    zero = lax.optimization_barrier(jnp.zeros((), np.int32))
    return lax.dynamic_update_slice(jnp.zeros(turned.shape, turned.dtype), turned, (zero,) * turned.ndim)


def dot_general(a: Arithmetic, x: Array, y: Array, dimension_numbers: Any) -> Array:
    """`lax.dot_general` of float32."""
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
    left = _factor(a, x, batch_x, contracted_x, False)
    right = _factor(a, y, batch_y, contracted_y, True)
    total = sum_of_slices(a, left.slices, right.slices, 1 if _lies_turned(y, batch_y, contracted_y) else 2)
    left = left._replace(shift=left.shift[:, :, None], bad=left.bad[:, :, None])
    right = right._replace(shift=right.shift[:, None], bad=right.bad[:, None])
    result: Array = lax.optimization_barrier(scaled(a, total, left, right).reshape(shape))
    return result


def _of_vectors(a: Arithmetic, x: Array, y: Array, dimension_numbers: Any) -> Array:
    """Products of one row and one column: nothing is gained by slices, so these are float32 products and a tree."""
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
    """`lax.conv_general_dilated` of float32, in any number of dimensions.

    An image shares one shift, and so does a filter. The windows are laid side by side, and it is a product.
    """
    numbers = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    x, y = lax.transpose(x, numbers.lhs_spec), lax.transpose(y, numbers.rhs_spec)
    # One axis of groups, whichever side they come from: [groups, images, channels, *space], [groups, filters, ...].
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
    """Every `steps`-th place of x's space, from `start` on."""
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
    """One place of the window after the other, each on all outputs."""
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
    """One output after the other, each of the whole window: for few outputs of large windows, as in gradients."""
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
        total = _mapped(lambda start: at(tuple(start)), jnp.asarray(starts))
    return jnp.moveaxis(total, 0, -1).reshape(groups, images, filters, *out)


def _mapped(function: Callable[[Array], Array], values: Array) -> Array:
    return lax.scan(lambda carry, value: (carry, function(value)), (), values)[1]
