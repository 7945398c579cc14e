"""Bits compared: what a failure shows, and how far two numbers are apart."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmlp import assert_same_bits
from jaxmlp.proof.bits import SHOWN, ulp_distance


def failure(a: Any, b: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_same_bits(a, b)
    return str(caught.value)


def test_a_failure_shows_leaf_index_values_bits_and_distances() -> None:
    a = {"params": {"kernel": np.float32([[1, 2], [3, 4]]), "bias": np.float32([0])}}
    b = {"params": {"kernel": np.float32([[1, 2.0000002], [3.000001, 4]]), "bias": np.float32([0])}}
    assert failure(a, b) == (
        "1 of 2 leaves differ\n"
        "params/kernel: 2 of 4 values differ, the first at [0, 1]: 2.0 (0x40000000) and 2.0000002 (0x40000001), "
        "1 ULP apart, the furthest at [1, 0]: 3.0 (0x40400000) and 3.000001 (0x40400004), 4 ULP apart"
    )


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.float32(0.0), np.float32(-0.0), "0.0 (0x00000000) and -0.0 (0x80000000), 1 ULP apart"),
        (np.int8([-128]), np.int8([127]), "-128 (0x80) and 127 (0x7f), 255 ULP apart"),
        (np.True_, np.False_, "True (0x01) and False (0x00), 1 ULP apart"),
        (np.complex64(1 + 2j), np.complex64(1 + 3j), "2 values differ, the first at [1]: 2.0"),
        (ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(1.0078125), "1 (0x3f80) and 1.00781 (0x3f81), 1 ULP apart"),
        (np.float32([1]), np.float32([1, 2]), "float32[1] and float32[2]"),
        (np.float32([1]), np.float64([1]), "float32[1] and float64[1]"),
    ],
)
def test_every_kind_of_leaf_is_compared_by_its_bits(a: Any, b: Any, said: str) -> None:
    assert_same_bits({"x": a}, {"x": a})
    assert said in failure({"x": a}, {"x": b})


def test_leaves_that_one_tree_lacks_are_named_and_a_long_list_is_cut() -> None:
    assert failure({"a": np.int32(1)}, {}) == "1 of 1 leaves differ\na: int32[] and absent"
    many = {str(i): np.int32(0) for i in range(SHOWN + 2)}
    assert failure(many, {}).endswith("\n... and 2 more")


def test_nans_of_the_same_bits_are_the_same_and_of_others_are_not() -> None:
    nan = np.float32([np.nan])
    assert_same_bits(nan, nan.copy())
    other = (nan.view(np.uint32) ^ 1).view(np.float32)
    assert "nan (0x7fc00000) and nan (0x7fc00001), 1 ULP apart" in failure(nan, other)


@given(st.floats(-(2.0**126), 2.0**126, width=32), st.integers(0, 50))
def test_the_distance_counts_the_steps_of_nextafter(value: float, steps: int) -> None:
    a = b = np.float32(value)
    for _ in range(steps):
        b = np.nextafter(b, np.float32(np.inf))
    through_zero = a < 0 <= b or (a == 0 and np.signbit(a) and steps > 0)
    # nextafter goes through one of the two zeros.
    assert int(ulp_distance(np.asarray(a), np.asarray(b))) - steps in ((0, 1) if through_zero else (0,))
