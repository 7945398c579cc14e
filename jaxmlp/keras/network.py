"""Which Keras models can become a run? Dense layers in a row, with one activation and a softmax at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmlp.keras.hdf5 import Refused

ACTIVATIONS: Final = {
    **{name: name for name in ("relu", "tanh", "sigmoid", "elu", "selu", "silu", "softplus", "linear")},
    "swish": "silu",
}
"""Keras's names of activations, with ours. Its gelu is exact; ours is the tanh approximation."""
MAX_LAYERS: Final = 1000
"""Largest number of layers of any kind in a model."""

IMPORTED: Final = {
    "InputLayer": ("batch_shape", "batch_input_shape", "dtype", "optional"),
    "Flatten": ("data_format",),
    "Dense": ("units", "activation", "use_bias", "kernel_regularizer", "kernel_initializer", "bias_initializer"),
    "Dropout": ("rate", "seed"),
    "Activation": ("activation",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Softmax": ("axis",),
    "Rescaling": ("scale", "offset"),
}
"""For each kind of layer: values that are imported, refused by name, or affect neither answers nor training."""
EVERYWHERE: Final = ("name", "trainable", "dtype", "batch_input_shape", "input_shape", "batch_shape")
"""Values that any layer may have. `_left_out` checks those that matter."""
LOSSES: Final = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "CategoricalCrossentropy",
    "SparseCategoricalCrossentropy",
)
"""Keras's names of the default loss of `ExperimentConfig`."""


class Dense(NamedTuple):
    """The arrays of one layer."""

    kernel: Float[np.ndarray, "inputs units"]
    bias: Float[np.ndarray, " units"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KerasNetwork:
    """A stack of Dense layers from a file."""

    layers: tuple[Dense, ...]
    activation: str | None
    """Activation after each hidden layer. None if the file holds only weights, or there is no hidden layer."""
    dropout_rate: float
    """Dropout rate after each hidden layer; 0 if the file has none."""
    pixel_scale: float | None
    """Scale of the Rescaling layer; None if there is no such layer."""
    notes: tuple[str, ...]
    """Notes that people should read."""
    l1: float = 0.0
    """Factor of the kernels' L1 penalty, if all Dense layers have the same."""
    l2: float = 0.0

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Number of units in each hidden layer."""
        return tuple(len(layer.bias) for layer in self.layers[:-1])


class Architecture(NamedTuple):
    """What a file's config says about the layers."""

    units: tuple[int, ...]
    activations: tuple[str, ...]
    dropout_rates: tuple[float, ...]
    """Dropout rate after each hidden layer. The first rate is that before all layers."""
    pixel_scale: float | None
    penalties: tuple[tuple[float, float], ...] = ()
    """`l1` and `l2` of each Dense layer's kernel."""
    notes: tuple[str, ...] = ()
    """Parts of the config that are not imported."""


def checked_layers(arrays: Sequence[Sequence[np.ndarray[Any, Any]]]) -> tuple[Dense, ...]:
    """The layers, each from a kernel and a bias, or only a kernel. Each must fit the layer before.

    Raises:
        Refused: A layer does not fit. The message says which, and what was found and wanted.
    """
    layers: list[Dense] = []
    for i, (kernel, *rest) in enumerate(arrays):
        inputs = len(layers[-1].bias) if layers else "any"
        if kernel.ndim != 2 or not kernel.size or (layers and kernel.shape[0] != inputs):
            raise Refused(f"the kernel of Dense layer {i} is {list(kernel.shape)}, wanted [{inputs}, any]")
        bias = rest[0] if rest else np.zeros(kernel.shape[1], np.float32)
        if bias.shape != kernel.shape[1:]:
            raise Refused(f"the bias of Dense layer {i} is {list(bias.shape)}, wanted [{kernel.shape[1]}]")
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise Refused(f"Dense layer {i} has a weight that is not finite")
        layers.append(Dense(kernel, bias))
    if not layers:
        raise Refused("it has no Dense layer")
    return tuple(layers)


def assemble(layers: tuple[Dense, ...], architecture: Architecture | None) -> KerasNetwork:
    """The network from a file's arrays and config.

    Raises:
        Refused: Arrays and config differ, or no `MLP` can represent the network.
    """
    if architecture is None:
        from jaxmlp.experiment.mlp import MLP  # The import starts JAX, which takes a second. Only this branch needs it.

        note = f"it holds only weights: the activation is assumed to be --model.activation ({MLP.activation})"
        return KerasNetwork(layers=layers, activation=None, dropout_rate=0.0, pixel_scale=None, notes=(note,))
    units = tuple(len(layer.bias) for layer in layers)
    if units != architecture.units:
        raise Refused(f"its Dense layers have {units} units, but its config says {architecture.units}")
    *hidden, last = architecture.activations
    if last not in ("softmax", "linear"):
        raise Refused(f"its last layer ends in {last}, wanted softmax, or linear for logits")
    for activation in hidden:
        if activation not in ACTIVATIONS:
            why = ": Keras computes it exactly, jaxmlp approximates it by tanh" if activation == "gelu" else ""
            raise Refused(f"its activation {activation} is not one of {', '.join(ACTIVATIONS)}{why}")
    if len(set(hidden)) > 1:
        raise Refused(f"its hidden layers have several activations ({', '.join(hidden)}), wanted the same for all")
    before, *rates = architecture.dropout_rates
    notes = list(architecture.notes)
    penalties = set(architecture.penalties)
    if len(penalties) > 1:
        notes.append(
            "its kernel regularizers differ between layers: further training uses none. "
            "--model.l1 and --model.l2 set one for all layers"
        )
    l1, l2 = penalties.pop() if len(penalties) == 1 else (0.0, 0.0)
    if before or len(set(rates)) > 1:
        notes.append(
            f"its dropout differs between layers, {architecture.dropout_rates}: further training uses one rate"
        )
    return KerasNetwork(
        layers=layers,
        activation=ACTIVATIONS[hidden[0]] if hidden else None,
        dropout_rate=max(rates, default=0.0),
        pixel_scale=architecture.pixel_scale,
        notes=tuple(notes),
        l1=l1,
        l2=l2,
    )


def parse_architecture(plain: Any) -> Architecture:
    """What the config of a Sequential or linear Functional model says.

    Raises:
        Refused: A layer has another kind, or the layers do not form a chain.
    """
    try:
        found = _architecture(plain["class_name"], plain["config"])
        return found._replace(notes=(*found.notes, *_notes_of_loss(plain.get("compile_config"))))
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise Refused(f"its config does not describe a Keras model ({type(error).__name__}: {error})") from error


def _architecture(kind: str, config: Any) -> Architecture:
    if kind not in ("Sequential", "Functional", "Model"):
        raise Refused(f"its model is {kind!r}, wanted Sequential or Functional. Python code in the file is not run")
    # Before 2.2.3, Keras wrote only the layers of a Sequential.
    layers: list[Mapping[str, Any]] = config if isinstance(config, list) else config["layers"]
    if len(layers) > MAX_LAYERS:
        raise Refused(f"its model has {len(layers)} layers, wanted at most {MAX_LAYERS}")
    if kind != "Sequential":
        _check_in_a_row(layers)
    units: list[int] = []
    activations: list[str] = []
    rates = [0.0]
    scale: float | None = None
    penalties: list[tuple[float, float]] = []
    notes: list[str] = []
    for layer in layers:
        name, values = layer["class_name"], layer["config"]
        notes += _left_out(name, values)
        match name:
            case "InputLayer" | "Flatten":
                if name == "Flatten" and (units or values.get("data_format") == "channels_first"):
                    raise Refused("its Flatten layer is not at the start, or is channels_first")
            case "Dense":
                units.append(int(values["units"]))
                activations.append(_activation(values["activation"]))
                rates.append(0.0)
                penalties.append(_penalty(values))
            case "Dropout":
                rates[-1] = float(values["rate"])
                if not 0 <= rates[-1] < 1:
                    raise ValueError(f"rate {rates[-1]}")
            case "Activation" | "ReLU" | "Softmax" if units and activations[-1] == "linear":
                activations[-1] = _activation_of_layer(name, values)
            case "Rescaling" if not units and scale is None and values["offset"] == 0:
                scale = float(values["scale"])
                if not 0 < scale < math.inf:
                    raise ValueError(f"scale {scale}")
            case _:
                raise Refused(
                    f"its layer {name!r} does not belong in a multilayer perceptron, or not here; it is not run"
                )
    hidden_rates = tuple(rates[: max(len(units), 1)])
    return Architecture(tuple(units), tuple(activations), hidden_rates, scale, tuple(penalties), tuple(notes))


def _left_out(kind: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Notes on what the import leaves out of a layer, if it affects answers or further training."""
    name = f"its layer {values.get('name', kind)!r}"
    if kind == "Dense" and values.get("trainable") is False:
        yield f"{name} is frozen (trainable: false): further training changes it"
    if kind == "Dense" and values.get("use_bias") is False:
        yield f"{name} has no bias: further training adds a bias"
    policy = values.get("dtype")
    policy = policy["config"].get("name") if isinstance(policy, dict) else policy
    if kind != "InputLayer" and policy not in (None, "float32"):
        yield f"{name} computes in {policy}: the run computes in --precision (default: float32)"
    for key, value in values.items():
        if value not in (None, False, "", [], {}) and key not in (*EVERYWHERE, *IMPORTED.get(kind, ())):
            about = value.get("class_name", "one") if isinstance(value, dict) else value
            yield f"{name} has {key} ({about}), which is not imported: further training goes without it"


def _penalty(values: Mapping[str, Any]) -> tuple[float, float]:
    """`l1` and `l2` of the layer's kernel.

    Raises:
        Refused: The regularizer is of another kind, so its effect on the loss is unknown.
    """
    if not (regularizer := values.get("kernel_regularizer")):
        return 0.0, 0.0
    settings = regularizer["config"]
    found = {key: float(settings[key] or 0) for key in ("l1", "l2") if key in settings}
    if not found or set(settings) - {"l1", "l2"} or not all(0 <= value < math.inf for value in found.values()):
        raise Refused(f"its kernel regularizer {regularizer['class_name']!r} {settings} is not one of L1, L2 and L1L2")
    return found.get("l1", 0.0), found.get("l2", 0.0)


def _notes_of_loss(compiled: Any) -> Iterator[str]:
    """A note if further training would use another loss than `compile` did."""
    if not isinstance(compiled, dict) or not (loss := compiled.get("loss")):
        return
    name, settings = loss, {}
    if isinstance(loss, dict):
        is_object = isinstance(loss.get("config"), dict)
        name, settings = (loss["class_name"], loss["config"]) if is_object else (loss.get("config"), {})
    smoothing = settings.get("label_smoothing")
    if name not in LOSSES or smoothing:
        smoothed = f" with label_smoothing {smoothing}" if smoothing else ""
        yield f"it was trained with the loss {name}{smoothed}: further training uses --loss (default: cross-entropy)"


def _activation(value: Any) -> str:
    """The name of an activation. Keras 3 writes a dictionary for a function of its own that has another name."""
    return str(value["config"] if isinstance(value, dict) else value)


def _activation_of_layer(name: str, values: Mapping[str, Any]) -> str:
    if name == "Activation":
        return _activation(values["activation"])
    if name == "Softmax":
        if values.get("axis", -1) != -1:
            raise Refused(f"its Softmax layer is over axis {values['axis']}, wanted -1")
        return "softmax"
    if values.get("max_value") is not None or values.get("negative_slope") or values.get("threshold"):
        raise Refused("its ReLU layer is not max(x, 0)")
    return "relu"


def _check_in_a_row(layers: Sequence[Mapping[str, Any]]) -> None:
    """Check that every layer of a Functional model takes only the output of the layer before."""
    for before, layer in zip([None, *layers], layers, strict=False):
        text = str(layer["inbound_nodes"])
        named = [each["config"]["name"] for each in layers if f"'{each['config']['name']}'" in text]
        if named != ([before["config"]["name"]] if before else []) or len(layer["inbound_nodes"]) > 1:
            raise Refused(f"its layer {layer['config']['name']!r} does not simply follow the one before")
