"""What this device can do at most: the rate of a large product, and of a copy that no cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp.bench.timing import Program

PRODUCT_SIZES = {"cpu": (512, 1024)}
"""Rows and columns of the factors; the fastest size counts."""
LARGE_PRODUCT_SIZES = (4096, 8192)
"""On accelerators."""
COPY_BYTES = 1 << 28
"""More than a processor's caches hold."""


def product(size: int, precision: str) -> Program:
    """Of two square matrices: 2 * size^3 FLOPs."""
    factor = jnp.full((size, size), 0.5, precision)
    multiply = jax.jit(jnp.matmul)

    def run(count: int) -> None:
        _repeat(lambda: multiply(factor, factor), count)

    return Program(what="product", run=run, width=size, precision=precision, flops=2 * size**3)


def copy(size: int) -> Program:
    """Reads and writes an array of `size` bytes."""
    source = jnp.ones(size // 4, jnp.float32)

    @jax.jit
    def scale(x: Float[Array, " n"]) -> Float[Array, " n"]:
        return x * jnp.float32(0.5)  # Not a copy that could be elided.

    return Program(what="copy", run=lambda count: _repeat(lambda: scale(source), count), bytes=2 * (size // 4) * 4)


def peak_programs(precisions: tuple[str, ...]) -> list[Program]:
    """What to time beside a suite, so that its rates have something to be held against."""
    sizes = PRODUCT_SIZES.get(jax.default_backend(), LARGE_PRODUCT_SIZES)
    return [*(product(size, precision) for precision in precisions for size in sizes), copy(COPY_BYTES)]


def _repeat(call: Callable[[], Any], count: int) -> None:
    """One at a time, so that outputs do not pile up."""
    for _ in range(count):
        jax.block_until_ready(call())
