"""Each portable function's largest error, in units in the last place, over its whole range.

PORTABLE_POINTS=3000000 tries more points.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special

from jaxmlp.portable import functions
from jaxmlp.portable.arithmetic import Arithmetic

POINTS = int(os.environ.get("PORTABLE_POINTS", "30000"))
NEAR: dict[str, tuple[float, float]] = {
    "exp": (-90, 90),
    "exp2": (-127, 129),
    "expm1": (-2, 2),
    "log": (0.5, 2),
    "log1p": (-1, 2),
    "log2": (0.5, 2),
    "tanh": (-10, 10),
    "logistic": (-90, 90),
    "erf": (-4.5, 4.5),
    "erfc": (-4.5, 10.5),
    "sin": (-7, 7),
    "cos": (-7, 7),
    "tan": (-7, 7),
    "sinh": (-10, 10),
    "cosh": (-10, 10),
    "cbrt": (-10, 10),
    "rsqrt": (1, 4),
}
"""Where each function bends."""
LARGEST = {"erfc": 5.0, "tan": 2.5, "sinh": 2.5}
"""Units in the last place; 2 for the others."""
EXACT: dict[str, Callable[[Any], Any]] = {
    "logistic": scipy.special.expit,
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
SPECIAL = np.asarray([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2.0**-126, 3.4e38, -3.4e38, 1e-40], np.float32)


def any_floats(seed: int = 0) -> np.ndarray:
    """Floats of all sizes, subnormal ones made 0, and the special ones."""
    words = np.random.default_rng(seed).integers(0, 2**32, POINTS, np.uint32).view(np.float32)
    return flushed(np.concatenate([words, SPECIAL]))


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0), x)


def errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """In units in the last place; infinite where a special value is wrong. Below 2^-126, 0 is right."""
    with np.errstate(all="ignore"):
        size = np.abs(exact)
        unit = 2.0 ** (np.maximum(np.floor(np.log2(np.where((size > 0) & np.isfinite(size), size, 1))), -126) - 23)
        error = np.abs(got.astype(np.float64) - exact) / unit
        error = np.where((size < 2.0**-126) & (np.abs(got) <= np.float32(2.0**-126)), 0, error)
        rounded = exact.astype(np.float32)
        same = (rounded == got) | (np.isnan(rounded) & np.isnan(got))
        return np.where(np.isfinite(rounded), np.where(np.isnan(error), np.inf, error), np.where(same, 0, np.inf))


def computed(name: str, *values: np.ndarray) -> np.ndarray:
    def function(zero: jax.Array, *values: jax.Array) -> jax.Array:
        rule = getattr(functions, name, None) or getattr(Arithmetic, name)
        result: jax.Array = rule(Arithmetic(zero), *values)
        return result

    compiled = jax.jit(function).lower(np.int32(0), *values).compile({"xla_backend_optimization_level": 0})
    return np.asarray(compiled(np.int32(0), *values))


@pytest.mark.parametrize("name", NEAR)
def test_the_largest_error_is_what_the_documents_say(name: str) -> None:
    near = np.random.default_rng(1).uniform(*NEAR[name], POINTS).astype(np.float32)
    x = flushed(np.concatenate([any_floats(), near]))
    with np.errstate(all="ignore"):
        exact = (EXACT.get(name) or getattr(np, name))(x.astype(np.float64))
        if name in ("log", "log2", "rsqrt"):
            exact = np.where(x == 0, np.float64(np.inf if name == "rsqrt" else -np.inf), exact)
    assert errors(computed(name, x), exact).max() <= LARGEST.get(name, 2.0)


def test_powers_are_within_2_units_and_have_c_s_special_cases() -> None:
    x, y = any_floats(), np.random.default_rng(2).permutation(any_floats(3))
    few = np.random.default_rng(4).uniform(-126, 126, POINTS)
    bases = np.abs(any_floats(5)[:POINTS])
    with np.errstate(all="ignore"):
        fitting = (few / np.log2(bases.astype(np.float64))).astype(np.float32)
    special = np.asarray([*SPECIAL, 2, 3, -3, 0.5, -2.5], np.float32)
    pairs = np.stack(np.meshgrid(special, special)).reshape(2, -1)
    x = flushed(np.concatenate([x, bases, pairs[0]]))
    y = flushed(np.concatenate([y, fitting, pairs[1]]))
    x = np.where(x == 0, np.float32(0), x)  # A zero has no sign.
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    assert errors(computed("pow", x, y), exact).max() <= 2


def test_quotients_and_roots_are_correctly_rounded() -> None:
    x, y = any_floats(), np.random.default_rng(2).permutation(any_floats(3))
    near = np.random.default_rng(1).uniform(1, 2, (2, POINTS)).astype(np.float32)
    x, y = np.concatenate([x, near[0]]), np.concatenate([y, near[1]])
    x, y = (np.where(value == 0, np.float32(0), value) for value in (x, y))
    with np.errstate(all="ignore"):
        quotient, root = flushed(x / y), np.sqrt(x)
    assert np.array_equal(computed("div", x, y), quotient, equal_nan=True)
    assert np.array_equal(computed("sqrt", x), root, equal_nan=True)


def test_the_inverse_of_the_error_function_is_xla_s() -> None:
    x = np.random.default_rng(1).uniform(-1, 1, POINTS).astype(np.float32)
    # The same polynomials on a logarithm that differs in its last bit.
    assert np.allclose(computed("erf_inv", x), jax.scipy.special.erfinv(x), rtol=2e-5)
