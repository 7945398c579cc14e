"""Which primitives are written in plain JAX and made portable by the other rules?"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmlp.portable.arithmetic import Array


def qr(x: Array, *, full_matrices: bool) -> tuple[Array, Array]:
    """Q and R by Householder's reflections, one column at a time. R's diagonal has LAPACK's signs."""
    if x.ndim > 2:
        flat = x.reshape(-1, *x.shape[-2:])
        q, r = lax.map(lambda matrix: qr(matrix, full_matrices=full_matrices), flat)
        return q.reshape(*x.shape[:-2], *q.shape[1:]), r.reshape(*x.shape[:-2], *r.shape[1:])
    rows, columns = x.shape
    steps = min(rows, columns)
    places = lax.iota(np.int32, rows)

    def reflect(k: Array, matrices: tuple[Array, Array]) -> tuple[Array, Array]:
        q, r = matrices
        column = jnp.where(places >= k, lax.dynamic_index_in_dim(r, k, 1, keepdims=False), jnp.float32(0))
        first = jnp.sum(jnp.where(places == k, column, jnp.float32(0)))
        below = jnp.sum(jnp.where(places > k, column * column, jnp.float32(0)))
        norm = jnp.sqrt(first * first + below)
        head = first + jnp.where(first < 0, -norm, norm)
        v = jnp.where(places == k, head, column)
        size = head * head + below
        # If everything below the diagonal is 0, LAPACK leaves the column unchanged.
        tau = jnp.where(below > 0, 2 / size, jnp.float32(0))
        r = r - tau * v[:, None] * jnp.sum(v[:, None] * r, axis=0)[None]
        q = q - tau * jnp.sum(q * v[None], axis=1)[:, None] * v[None]
        return q, r

    q, r = lax.fori_loop(0, steps, reflect, (jnp.eye(rows, dtype=np.float32), x))
    r = jnp.where(lax.iota(np.int32, rows)[:, None] <= lax.iota(np.int32, columns)[None], r, jnp.float32(0))
    return (q, r) if full_matrices else (q[:, :steps], r[:steps])
