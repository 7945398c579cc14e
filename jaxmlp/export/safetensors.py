"""safetensors: the parameters by name, and the config beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from jaxmlp.errors import RunError
from jaxmlp.inference import Model
from jaxmlp.run import files
from jaxmlp.run.digest import digest, leaves, restore


def write(path: Path, model: Model) -> None:
    """Tensors `Dense_0/kernel` float32 [inputs, units] and `Dense_0/bias` [units]; metadata `jaxmlp`: JSON text."""
    about = {
        "config": model.config.to_dict(),
        "image_shape": model.image_shape,
        "step": model.step,
        "params_sha256": digest(model.params),
    }
    # One entry, because the library writes several in a random order.
    files.write(path, safetensors.numpy.save(leaves(model.params), {"jaxmlp": json.dumps(about)}))


def probabilities(path: Path, model: Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the file's parameters answer in the model's own program."""
    try:
        params = restore(model.params, safetensors.numpy.load(path.read_bytes()))
    except SafetensorError as error:
        raise RunError(f"{path} is not a safetensors file: {error}.") from error
    return dataclasses.replace(model, params=params).probabilities(images)
