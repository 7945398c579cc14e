"""Where do two trees of arrays differ? Leaf, index, both values, and the representable numbers between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt64
from numpy.typing import NDArray

from jaxmlp.run.digest import described, leaves

SHOWN = 10
"""Largest number of leaves that a failure lists."""


class Difference(NamedTuple):
    """One leaf that differs between two trees."""

    leaf: str
    """Path of the leaf, such as `params/Dense_0/kernel`."""
    problem: str
    """What differs, for people."""
    max_ulp: int | None = None
    """Largest distance of two values. None if the leaves have no values to compare."""


def assert_same_bits(a: Any, b: Any) -> None:
    """Fail unless two trees have the same leaves, dtypes, shapes and bits. NaNs with the same bits are equal.

    Args:
        a: Any JAX pytree of arrays. A tree of plain dicts and NumPy arrays is compared without JAX.
        b: The other tree.

    Raises:
        AssertionError: They differ. The message names each leaf with its first differing index, both values and their
            bits, their distance in units in the last place, and the largest distance.
    """
    __tracebackhide__ = True  # pytest then shows the caller's line.
    first, second = leaves(a), leaves(b)
    if found := list(differences(first, second)):
        lines = [f"{each.leaf}: {each.problem}" for each in found[:SHOWN]]
        more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        total = len(first.keys() | second.keys())
        raise AssertionError("\n".join([f"{len(found)} of {total} leaves differ", *lines, *more]))


def differences(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> Iterator[Difference]:
    """The leaves that differ, sorted by path."""
    for path in sorted(a.keys() | b.keys()):
        first, second = (described(tree.get(path)) for tree in (a, b))
        if first != second:
            yield Difference(path, f"{first} and {second}")
        elif found := _difference(path, a[path], b[path]):
            yield found


def ulp_distance(a: Shaped[NDArray[Any], "..."], b: Shaped[NDArray[Any], "..."]) -> UInt64[NDArray[Any], "..."]:
    """Number of steps between representable numbers from one value to the other; for integers, their difference.

    Zero means the same bits, so 0.0 and -0.0 are one step apart. A NaN lies beyond the infinities, by its bits.
    """
    first, second = _ordered(a), _ordered(b)
    return np.maximum(first, second) - np.minimum(first, second)


def _ordered(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Unsigned integers in the order of the values. Neighbouring numbers differ by 1."""
    bits = _bits(values)
    if values.dtype.kind in "ub":
        return bits.astype(np.uint64)
    sign = np.array(1 << (8 * bits.itemsize - 1), bits.dtype)
    flipped = bits ^ sign if values.dtype.kind == "i" else np.where(bits & sign, ~bits, bits | sign)
    return flipped.astype(np.uint64)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").reshape(values.shape)


def _difference(path: str, a: NDArray[Any], b: NDArray[Any]) -> Difference | None:
    if a.dtype.kind == "c":
        a, b = (np.stack([each.real, each.imag], axis=-1) for each in (a, b))
    distance = ulp_distance(a, b)
    at = np.flatnonzero(distance)
    if not len(at):
        return None
    largest = int(at[np.argmax(distance.flat[at])])
    counted = f"{len(at)} of {math.prod(a.shape)} values differ"
    problem = f"{counted}, the first at {_pair(int(at[0]), a, b)}"
    if largest != at[0]:
        problem += f", the furthest at {_pair(largest, a, b)}"
    return Difference(path, problem, int(distance.flat[largest]))


def _pair(at: int, a: NDArray[Any], b: NDArray[Any]) -> str:
    index = [int(i) for i in np.unravel_index(at, a.shape)]
    shown = [f"{each.flat[at]!s} (0x{int(_bits(each).flat[at]):0{2 * each.itemsize}x})" for each in (a, b)]
    return f"{index}: {shown[0]} and {shown[1]}, {int(ulp_distance(a.flat[at], b.flat[at])):,} ULP apart"
