"""safetensors: the parameters by name, and the config beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from jaxmlp.errors import RunError
from jaxmlp.run import files
from jaxmlp.run.digest import digest, leaves, restore
from jaxmlp.trained.inference import Model


def write(path: Path, model: Model) -> None:
    """Write tensors such as `Dense_0/kernel`, float32 [inputs, units]. The metadata entry `jaxmlp` is JSON text.

    Other collections of the network are stored under their names, such as `batch_stats/BatchNorm_0/mean`.
    """
    about = {
        "config": model.config.to_dict(),
        "image_shape": model.facts.image_shape,
        "data": model.facts.to_plain(),
        "step": model.step,
        "params_sha256": digest(model.params),
    }
    # A single entry, because the library writes several entries in random order.
    files.write(path, safetensors.numpy.save(leaves(model.tensors()), {"jaxmlp": json.dumps(about)}))


def answers(path: Path, model: Model, inputs: Any) -> np.ndarray[Any, Any]:
    """The answers of the file's tensors in the model's own program."""
    try:
        tensors = restore(model.tensors(), safetensors.numpy.load(path.read_bytes()))
    except SafetensorError as error:
        raise RunError(f"{path} is not a safetensors file: {error}.") from error
    return model.with_tensors(tensors).answers(inputs)
