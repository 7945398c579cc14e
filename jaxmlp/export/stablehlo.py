"""StableHLO: the whole network as one program in JAX's stable exchange format, for any number of examples.

`jax.export.deserialize` reads the file: portable StableHLO for CPU, CUDA and TPU, with parameters and variables inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from jaxtyping import Array, Float

from jaxmlp.errors import RunError
from jaxmlp.run import files
from jaxmlp.trained.inference import Model
from jaxmlp.trained.inference import answers as answers_of

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: Path, model: Model) -> None:
    """Write `answers(inputs)`: from inputs [batch, ...] to probabilities, or to the numbers that the network predicts.

    Inputs are as in the data, possibly a mapping: unscaled, with pixels and other numbers as float32.
    """
    answer = answers_of(model)

    @jax.jit
    def answers(inputs: Any) -> Float[Array, "batch outputs"]:
        return answer((model.params, model.variables), inputs)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype),
        _as_arguments(model.facts.zeros(1).inputs),
    )
    try:
        exported = jax.export.export(answers, platforms=PLATFORMS)(shapes)
    except Exception as error:  # the network's own code may raise anything
        cause = f"{type(error).__name__}: {error}"
        raise RunError(
            f"the network does not take any number of examples (write x.shape[0] for len(x)): {cause}"
        ) from error
    files.write(path, exported.serialize())


def answers(path: Path, model: Model, inputs: Any) -> np.ndarray[Any, Any]:
    """The answers of the program in the file, compiled for the device of this process."""
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raises various errors for damaged bytes
        raise RunError(f"{path} is not a program of jax.export: {error}.") from error
    return np.asarray(exported.call(jax.device_put(_as_arguments(inputs))))


def _as_arguments(inputs: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == np.int32 else leaf.astype(np.float32), inputs)
