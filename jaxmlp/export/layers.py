"""How is an MLP a list of matrices for formats without JAX? The same in NumPy checks them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxmlp.errors import RunError
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.plain import where
from jaxmlp.trained.inference import Model

Rows = Float[np.ndarray, "rows units"]


class DenseLayer(NamedTuple):
    """A layer: activation(scale * x @ kernel + bias)."""

    kernel: Float[np.ndarray, "inputs units"]
    bias: Float[np.ndarray, " units"]
    activation: str
    """A name from `MLP.activation`; `linear` for the logits."""
    scale: float = 1.0
    """Factor on the inputs. The first layer's inputs are unscaled pixels."""


def _elu(x: Rows) -> Rows:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _sigmoid(x: Rows) -> Rows:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small))


ACTIVATIONS: Final[dict[str, Callable[[Rows], Rows]]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "gelu": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * _elu(x)),
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "linear": lambda x: x,
}


def mlp_of(model: Model) -> MLP:
    """The MLP of a model.

    Raises:
        RunError: The model is another network, or its activation is a function of the user's own.
    """
    config = model.config.model
    if not isinstance(config, MLP):
        raise RunError(f"this format holds only MLPs, but the run's network is {where(config)}. Use stablehlo.")
    if not isinstance(config.activation, str):
        raise RunError("this format has only jaxmlp's activations, but the run has one of its own. Use stablehlo.")
    if config.batch_norm:
        raise RunError("this format holds only dense layers, but the run's network has BatchNorm. Use stablehlo.")
    if not model.facts.classes:
        raise RunError("this format returns probabilities, but the run's network predicts numbers. Use stablehlo.")
    return config


def dense_layers(model: Model) -> list[DenseLayer]:
    """The layers of an MLP, first to last."""
    config = mlp_of(model)
    activations = [*(str(config.activation) for _ in config.hidden_sizes), "linear"]
    scales = [float(np.float32(model.config.data.pixel_scale)), *(1.0 for _ in config.hidden_sizes)]
    found = []
    for i, (activation, scale) in enumerate(zip(activations, scales, strict=True)):
        arrays: dict[str, Any] = model.params[f"Dense_{i}"]
        found.append(DenseLayer(np.asarray(arrays["kernel"]), np.asarray(arrays["bias"]), activation, scale))
    return found


def softmax_of_layers(
    layers: Sequence[DenseLayer], images: Shaped[np.ndarray, "n height width channels"]
) -> Float[np.ndarray, "n classes"]:
    """The probabilities of unscaled images, with every product and sum in float64."""
    x = images.reshape(len(images), -1).astype(np.float64)
    for layer in layers:
        kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
        x = ACTIVATIONS[layer.activation](x * layer.scale @ kernel + bias)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
