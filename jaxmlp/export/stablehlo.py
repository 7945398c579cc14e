"""StableHLO: the whole network as one program of JAX's stable exchange format, for any number of images.

The file holds what `jax.export.deserialize` reads: portable StableHLO, parameters inside, for CPU, CUDA and TPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmlp.errors import RunError
from jaxmlp.inference import Model
from jaxmlp.inference import probabilities as probabilities_of
from jaxmlp.run import files

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: Path, model: Model) -> None:
    """`probabilities(images)`: images float32 [batch, height, width, channels], pixels unscaled."""
    answer = probabilities_of(model)

    @jax.jit
    def probabilities(images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        return answer((model.params, model.variables), images)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32)
    files.write(path, jax.export.export(probabilities, platforms=PLATFORMS)(images).serialize())


def probabilities(path: Path, model: Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the program in the file answers, compiled for where JAX runs."""
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raises what its reading of any bytes runs into
        raise RunError(f"{path} is not a program of jax.export: {error}.") from error
    return np.asarray(exported.call(images.astype(np.float32)))
