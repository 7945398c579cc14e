"""How fast are this device's products, copies, calls, transfers and collectives?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxmlp import shards
from jaxmlp.bench.timing import TimedProgram

PRODUCT_SIZES = {"cpu": (512, 1024)}
"""Rows and columns of the factors, by backend. The fastest size counts."""
LARGE_PRODUCT_SIZES = (4096, 8192)
"""Rows and columns of the factors on GPUs and TPUs."""
COPY_MIB = (2, 16, 256)
"""MiB of the copied arrays. A processor's caches hold the small arrays, but not the large array."""
TRANSFER_MIB = 64
COLLECTIVE_MIB = (1, 16)
"""MiB of the exchanged array on each device."""
MIB = 1 << 20


def product(size: int, precision: str) -> TimedProgram:
    """The product of two square matrices, with 2 * size^3 FLOPs."""
    first, second = _random((size, size), precision, 0), _random((size, size), precision, 1)
    run = partial(_repeat, partial(jax.jit(jnp.matmul), first, second))
    return TimedProgram(what="product", run=run, width=size, precision=precision, flops=2 * size**3)


def own_products(rows: int, sizes: Sequence[int], precision: str) -> TimedProgram:
    """The products of an update and nothing else, with the update's shapes.

    Each layer has three products: forward, the kernel's gradient and the input's gradient. The first layer needs no
    gradient of its input.

    Args:
        rows: The batch size.
        sizes: Sizes of the layers, from the inputs to the classes.
        precision: Precision of all factors.
    """
    kernels = [_random(shape, precision, number) for number, shape in enumerate(pairwise(sizes))]
    layers = [_random((rows, size), precision, 100 + number) for number, size in enumerate(sizes)]

    @jax.jit
    def multiply(kernels: list[Any], layers: list[Any]) -> list[Any]:
        found = []
        for number, (kernel, inputs, grads) in enumerate(zip(kernels, layers, layers[1:], strict=False)):
            pairs = [(inputs, kernel), (inputs.T, grads), *([(grads, kernel.T)] if number else [])]
            found += [jnp.matmul(*pair, preferred_element_type=jnp.float32) for pair in pairs]
        return found

    run = partial(_repeat, partial(multiply, kernels, layers))
    count = sum(6 * rows * one * other for one, other in pairwise(sizes)) - 2 * rows * sizes[0] * sizes[1]
    return TimedProgram(what="products", run=run, batch_size=rows, width=sizes[1], precision=precision, flops=count)


def copy(mib: int) -> TimedProgram:
    """Reading and writing an array of `mib` MiB."""
    source = jnp.ones(mib * MIB // 4, jnp.float32)

    @jax.jit
    def scale(x: Float[Array, " n"]) -> Float[Array, " n"]:
        return x * jnp.float32(0.5)  # XLA could remove a plain copy.

    return TimedProgram(what="copy", run=partial(_repeat, partial(scale, source)), mib=mib, bytes=2 * mib * MIB)


def dispatch() -> TimedProgram:
    """The time from a call to the end of a program that does almost nothing."""
    return TimedProgram(what="dispatch", run=partial(_repeat, partial(jax.jit(lambda x: x + x), jnp.float32(1))))


def transfers(mib: int) -> Iterator[TimedProgram]:
    """Sending an array of `mib` MiB from the host to the device, and fetching a new array from the device."""
    here = np.ones(mib * MIB // 4, np.float32)
    there = jnp.asarray(here)
    scale = jax.jit(lambda x: x + x)  # JAX caches the host's copy of an array once it was fetched.
    ways: dict[str, Callable[[], Any]] = {
        "to device": lambda: jax.device_put(here),
        "from device": lambda: jax.device_get(scale(there)),
    }
    for what, call in ways.items():
        yield TimedProgram(what=what, run=partial(_repeat, call), mib=mib, bytes=mib * MIB)


def collectives(mib: int) -> Iterator[TimedProgram]:
    """Collectives between all devices, with an array of `mib` MiB on each device."""
    mesh = shards.make_mesh(jax.devices())
    count, split = mesh.size, PartitionSpec(shards.AXIS)
    rows = jnp.ones((count, mib * MIB // 4 // count * count), jnp.float32)
    kinds: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "psum": (lambda x: lax.psum(x, shards.AXIS), PartitionSpec()),
        "all gather": (lambda x: lax.all_gather(x, shards.AXIS), split),
        "reduce scatter": (lambda x: lax.psum_scatter(x[0], shards.AXIS, tiled=True), split),
        "all to all": (lambda x: lax.all_to_all(x.reshape(count, -1), shards.AXIS, 0, 0, tiled=True), split),
    }
    placed = jax.device_put(rows, jax.sharding.NamedSharding(mesh, split))
    for what, (exchange, out) in kinds.items():
        function = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=split, out_specs=out))
        run = partial(_repeat, partial(function, placed))
        yield TimedProgram(what=what, run=run, devices=count, grad_shards=count, mib=mib, bytes=mib * MIB)


def device_programs(rows: int, sizes: Sequence[int], precisions: Sequence[str]) -> Iterator[TimedProgram]:
    """The programs that measure the device, with whose rates a suite's rates are compared.

    Args:
        rows: Batch size of the suite's base.
        sizes: Sizes of the base's layers, from the inputs to the classes.
        precisions: Precisions of the products.
    """
    for precision in precisions:
        for size in PRODUCT_SIZES.get(jax.default_backend(), LARGE_PRODUCT_SIZES):
            yield product(size, precision)
        yield own_products(rows, sizes, precision)
    yield from map(copy, COPY_MIB)
    yield dispatch()
    if jax.default_backend() != "cpu":  # A CPU's memory is the host's memory.
        yield from transfers(TRANSFER_MIB)
    if jax.device_count() > 1:
        for mib in COLLECTIVE_MIB:
            yield from collectives(mib)


def _random(shape: tuple[int, ...], precision: str, seed: int) -> Array:
    """Normal random numbers, as in a network. On constant numbers few bits change, and a chip's clock would rise."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), precision)


def _repeat(call: Callable[[], Any], count: int) -> None:
    """Make `count` calls. Wait for each, so that outputs do not pile up in memory."""
    for _ in range(count):
        jax.block_until_ready(call())
