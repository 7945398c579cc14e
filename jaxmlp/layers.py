"""What are the MLP's layers? Products in the experiment's precision, and dropout from few random bits.

They compute the same as flax's `Dense` and `Dropout`, in forms that compile to less work (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxmlp import prng

FEW_FEATURES = 32
"""Outputs of a layer for which XLA has only a slow product x.T @ grads on CPUs."""


class Dense(nn.Module):
    """x @ kernel + bias. Factors are rounded to `dtype`; sums, bias and parameters are float32.

    Differs from: flax's `Dense`, which also rounds the product and the bias to `dtype`.
    """

    features: int
    kernel_init: Callable[..., Any]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        """The outputs of the layer, float32."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return product(x, kernel, self.dtype) + bias[None]


class Dropout(nn.Module):
    """Drops each unit with probability `rate` and divides the others by 1 - rate, which keeps the mean.

    The mean is kept up to a relative error of 2^-17 / (1 - rate): the keep probability is rounded to a multiple of
    2^-16, the divisor is not.

    Differs from: flax's `Dropout`, which draws other random bits from four times as many threefry blocks
    (`prng.bernoulli`).
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        """The kept units, scaled, and zeros for the dropped units. The input itself if deterministic."""
        if self.rate == 0 or self.deterministic:
            return x
        kept = prng.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return jnp.where(kept, x * (1 / (1 - self.rate)), 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "batch inputs"], kernel: Float[Array, "inputs features"], dtype: DTypeLike
) -> Float[Array, "batch features"]:
    """The product x @ kernel. Factors are rounded to `dtype`, sums are float32; the same holds for the gradients."""
    return _dot(x.astype(dtype), kernel.astype(dtype))


def _forward(x: Array, kernel: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return _dot(x, kernel), (x, kernel)


def _backward(dtype: DTypeLike, factors: tuple[Array, Array], grads: Array) -> tuple[Array, Array]:
    grads = grads.astype(dtype)
    on_cpu = _gradients_in_order if grads.dtype == jnp.float32 else _gradients_by_rows
    of_x, of_kernel = lax.platform_dependent(*factors, grads, cpu=on_cpu, default=_gradients)
    return of_x, of_kernel


product.defvjp(_forward, _backward)


def _gradients(x: Array, kernel: Array, grads: Array) -> tuple[Array, Array]:
    return _dot(grads, kernel.T), _dot(x.T, grads)


def _gradients_in_order(x: Array, kernel: Array, grads: Array) -> tuple[Array, Array]:
    """The same gradients, both before anything uses them, so that an update may overwrite the kernel in place.

    On CPUs, XLA would copy the kernel in every update otherwise. Its product x.T @ grads is slow for few features.
    """
    of_kernel = _dot(x.T, grads) if grads.shape[1] > FEW_FEATURES else lax.optimization_barrier(_dot(grads.T, x)).T
    of_x, of_kernel = lax.optimization_barrier((_dot(grads, kernel.T), of_kernel))
    return of_x, of_kernel


def _gradients_by_rows(x: Array, kernel: Array, grads: Array) -> tuple[Array, Array]:
    """The same gradients, from products whose factors both lie row by row in memory.

    On CPUs, XLA has fast bfloat16 kernels only for such products. It computes the others in float32.
    """
    of_x = lax.optimization_barrier(_dot(kernel, _transposed(grads)))
    return of_x.T, _dot(_transposed(x), grads)


def _transposed(x: Array) -> Array:
    """x.T as a copy in memory. XLA would fold a plain transpose back into the product that uses it.

    XLA does not fold a slice update at an unknown position, and compiles it alike for one device and for many.
    """
    start = lax.optimization_barrier(jnp.int32(0))
    transposed = lax.dynamic_update_slice(jnp.zeros(x.shape[::-1], x.dtype), x.T, (start, start))
    in_memory: Array = lax.optimization_barrier(transposed)
    return in_memory


def _dot(a: Array, b: Array) -> Array:
    sums: Array = lax.dot(a, b, preferred_element_type=jnp.float32)
    return sums
