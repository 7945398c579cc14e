"""Small programs with a loop over updates, and what may be planted in them, compiled for any devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxmlp import shards
from jaxmlp.compile import hlo, promises, reading

STATE = jax.ShapeDtypeStruct((64, 128), jnp.float32)
NBYTES = 64 * 128 * 4


def compiled(
    body: Callable[[Any], Any], devices: Sequence[Any], *, donate: bool = True, length: int | None = 3
) -> reading.Reading:
    """What is read of a loop over updates of one array; of unknown length where `length` is None."""
    mesh = shards.make_mesh(devices)

    def updates(state: Any, stop: Any) -> Any:
        return lax.fori_loop(0, stop if length is None else length, lambda _, state: body(state), state)

    everywhere = NamedSharding(mesh, PartitionSpec())
    inside = jax.shard_map(updates, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    function = jax.jit(inside, donate_argnums=(0,) if donate else ())
    state = jax.ShapeDtypeStruct(STATE.shape, STATE.dtype, sharding=everywhere)
    stop = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return reading.read(hlo.parse(function.lower(state, stop).compile().as_text()), (STATE,))


def rules(found: reading.Reading) -> list[str]:
    """The promises that the program breaks."""
    return [each.rule for each in promises.findings(found, outputs=1)]


def gathered(state: Any) -> Any:
    """The sum of all devices' states, in one fixed order."""
    return shards.pairwise_sum(lax.all_gather(state * 0.5, shards.AXIS))


def summed(state: Any) -> Any:
    """The same in no fixed order."""
    return lax.psum(state * 0.5, shards.AXIS)


def called_back(state: Any) -> Any:
    """The host sees each update."""
    return state + jax.pure_callback(lambda x: np.asarray(x), STATE, state)
