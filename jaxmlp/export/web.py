"""A web page in one file that needs no network: it reads digits as they are drawn, with the run's weights inside."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlp.errors import RunError
from jaxmlp.export.layers import DenseLayer, dense_layers, mlp_of, softmax_of_layers
from jaxmlp.modules import num_params
from jaxmlp.run import files
from jaxmlp.trained.inference import Model

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("network.js", "prepare.js", "app.js")
IMAGE_SHAPE = (28, 28, 1)


def write(path: Path, model: Model) -> None:
    """Write the page, with float32 weights as base64. Half the bits would change probabilities by a thousandth.

    Raises:
        RunError: The model is not an MLP, or does not take grey images of 28 x 28 pixels.
    """
    layers = dense_layers(model)
    if model.facts.image_shape != IMAGE_SHAPE:
        shape = " x ".join(map(str, model.facts.image_shape or ("no images",)))
        raise RunError(f"--format web draws 28 x 28 x 1 images, but the run's network takes {shape}.")
    arrays = [np.ascontiguousarray(array, "<f4") for layer in layers for array in (layer.kernel, layer.bias)]
    about: list[dict[str, Any]] = []
    for layer in layers:
        inputs, units = layer.kernel.shape
        about.append({"inputs": inputs, "units": units, "activation": layer.activation, "scale": layer.scale})
    parts = {
        "STYLE": (PAGE / "style.css").read_text(encoding="utf-8").rstrip(),
        "MODEL": json.dumps({"about": _about(model), "classes": model.num_classes, "layers": about}),
        "WEIGHTS": base64.b64encode(b"".join(array.tobytes() for array in arrays)).decode(),
        "SCRIPTS": "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS).rstrip(),
    }
    template = (PAGE / "page.html").read_text(encoding="utf-8")
    files.write(path, re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], template).encode())


def _about(model: Model) -> str:
    """A line about the model.

    It has no character that could end the script around it, because a run's name has none.
    """
    layers = " - ".join(str(size) for size in (784, *mlp_of(model).hidden_sizes, model.num_classes))
    updates = f"{model.step:,} update{'s' * (model.step != 1)}"
    return f"{model.config.name}: {layers} units, {num_params(model.params):,} parameters, {updates}"


def answers(path: Path, model: Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The answers of the page's weights, in NumPy. A browser test shows that the page's own code answers the same.

    Raises:
        RunError: The file is not such a page.
    """
    page = files.read(path).decode(errors="replace")
    try:
        about, weights = (re.search(rf'<script [^>]*id="{name}">([^<]*)<', page)[1] for name in ("model", "weights"))  # type: ignore[index]
        numbers = np.frombuffer(base64.b64decode(weights, validate=True), "<f4")
        layers = []
        for layer in json.loads(about)["layers"]:
            kernel, bias, numbers = np.split(numbers, np.cumsum([layer["inputs"] * layer["units"], layer["units"]]))
            layers.append(DenseLayer(kernel.reshape(layer["inputs"], -1), bias, layer["activation"], layer["scale"]))
        return softmax_of_layers(layers, images)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RunError(f"{path} is not a page of `jaxmlp export`: {error}.") from error
