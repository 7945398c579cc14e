"""What a Keras model must be to become a run: Dense layers in a row, one activation, a softmax at the end."""

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
"""Keras's names, and ours. Its gelu is another function than ours, which is the approximation by tanh."""
MAX_LAYERS: Final = 1000
"""Layers of any kind that a model may have."""

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
"""The values of each kind of layer that are imported, refused by name, or change neither answers nor training."""
EVERYWHERE: Final = ("name", "trainable", "dtype", "batch_input_shape", "input_shape", "batch_shape")
"""The values that any layer may have; `_left_out` looks at those that matter."""
LOSSES: Final = (
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "CategoricalCrossentropy",
    "SparseCategoricalCrossentropy",
)
"""Keras's names of the loss that an `ExperimentConfig` has unless told."""


class Dense(NamedTuple):
    """The arrays of one layer."""

    kernel: Float[np.ndarray, "inputs units"]
    bias: Float[np.ndarray, " units"]


@dataclass(frozen=True, kw_only=True, eq=False)
class KerasNetwork:
    """A stack of Dense layers out of a file."""

    layers: tuple[Dense, ...]
    activation: str | None
    """After each hidden layer; none where the file holds weights alone, or there is no hidden layer."""
    dropout_rate: float
    """After each hidden layer; 0 where the file says none."""
    pixel_scale: float | None
    """Of its Rescaling layer, where it has one."""
    notes: tuple[str, ...]
    """What people should know."""
    l1: float = 0.0
    """Of the kernels' regularizer, where all Dense layers have the same."""
    l2: float = 0.0

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        return tuple(len(layer.bias) for layer in self.layers[:-1])


class Architecture(NamedTuple):
    """What a file's config says of the layers."""

    units: tuple[int, ...]
    activations: tuple[str, ...]
    dropout_rates: tuple[float, ...]
    """After each hidden layer; the first is before them all."""
    pixel_scale: float | None
    penalties: tuple[tuple[float, float], ...] = ()
    """`l1` and `l2` of each Dense layer's kernel."""
    notes: tuple[str, ...] = ()
    """What the config says that is not imported."""


def checked_layers(arrays: Sequence[Sequence[np.ndarray[Any, Any]]]) -> tuple[Dense, ...]:
    """The layers, kernel and bias, or kernel alone, each; every one taking what the one before gives.

    Raises:
        Refused: They are not: which, found and wanted.
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
    """The network of a file's arrays and of what its config says.

    Raises:
        Refused: They differ; or the config is of a network that no `MLP` can say.
    """
    if architecture is None:
        from jaxmlp.mlp import MLP  # It starts JAX, which takes a second, and no other file needs it here.

        note = f"it holds weights alone: the activation is taken to be --model.activation ({MLP.activation})"
        return KerasNetwork(layers=layers, activation=None, dropout_rate=0.0, pixel_scale=None, notes=(note,))
    units = tuple(len(layer.bias) for layer in layers)
    if units != architecture.units:
        raise Refused(f"its Dense layers have {units} units, but its config says {architecture.units}")
    *hidden, last = architecture.activations
    if last not in ("softmax", "linear"):
        raise Refused(f"its last layer ends in {last}, wanted softmax, or linear for logits")
    for activation in hidden:
        if activation not in ACTIVATIONS:
            why = ": Keras's is exact, and ours approximated by tanh" if activation == "gelu" else ""
            raise Refused(f"its activation {activation} is not one of {', '.join(ACTIVATIONS)}{why}")
    if len(set(hidden)) > 1:
        raise Refused(f"its hidden layers have several activations ({', '.join(hidden)}), wanted one for all")
    before, *rates = architecture.dropout_rates
    notes = list(architecture.notes)
    penalties = set(architecture.penalties)
    if len(penalties) > 1:
        notes.append(
            "its kernel regularizers differ from layer to layer: further training has none. "
            "--model.l1 and --model.l2 set one for all"
        )
    l1, l2 = penalties.pop() if len(penalties) == 1 else (0.0, 0.0)
    if before or len(set(rates)) > 1:
        notes.append(f"its dropout differs from layer to layer, {architecture.dropout_rates}: further training has one")
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
    """What the config of a Sequential or a linear Functional model says.

    Raises:
        Refused: A layer of another kind, by name, or one that is not in a row.
    """
    try:
        found = _architecture(plain["class_name"], plain["config"])
        return found._replace(notes=(*found.notes, *_notes_of_loss(plain.get("compile_config"))))
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise Refused(f"its config is not that of a Keras model ({type(error).__name__}: {error})") from error


def _architecture(kind: str, config: Any) -> Architecture:
    if kind not in ("Sequential", "Functional", "Model"):
        raise Refused(f"its model is {kind!r}, wanted Sequential or Functional; none of its Python is run")
    # Keras before 2.2.3 wrote the layers of a Sequential alone.
    layers: list[Mapping[str, Any]] = config if isinstance(config, list) else config["layers"]
    if len(layers) > MAX_LAYERS:
        raise Refused(f"its model has {len(layers)} layers, wanted {MAX_LAYERS} at most")
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
                    raise Refused("its Flatten layer is not at the start, or channels_first")
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
                raise Refused(f"its layer {name!r} is not one of a multilayer perceptron, or not there; it is not run")
    hidden_rates = tuple(rates[: max(len(units), 1)])
    return Architecture(tuple(units), tuple(activations), hidden_rates, scale, tuple(penalties), tuple(notes))


def _left_out(kind: str, values: Mapping[str, Any]) -> Iterator[str]:
    """What a layer's config says that the import leaves out, and that changes answers or further training."""
    name = f"its layer {values.get('name', kind)!r}"
    if kind == "Dense" and values.get("trainable") is False:
        yield f"{name} is frozen (trainable: false): further training changes it"
    if kind == "Dense" and values.get("use_bias") is False:
        yield f"{name} has no bias: further training gives it one"
    policy = values.get("dtype")
    policy = policy["config"].get("name") if isinstance(policy, dict) else policy
    if kind != "InputLayer" and policy not in (None, "float32"):
        yield f"{name} computes in {policy}: the run computes in --precision (float32 unless told)"
    for key, value in values.items():
        if value not in (None, False, "", [], {}) and key not in (*EVERYWHERE, *IMPORTED.get(kind, ())):
            about = value.get("class_name", "one") if isinstance(value, dict) else value
            yield f"{name} has {key} ({about}), which is not imported: further training has none"


def _penalty(values: Mapping[str, Any]) -> tuple[float, float]:
    """`l1` and `l2` of the layer's kernel.

    Raises:
        Refused: Its regularizer is another one, so that nobody knows what it adds to the loss.
    """
    if not (regularizer := values.get("kernel_regularizer")):
        return 0.0, 0.0
    told = regularizer["config"]
    found = {key: float(told[key] or 0) for key in ("l1", "l2") if key in told}
    if not found or set(told) - {"l1", "l2"} or not all(0 <= value < math.inf for value in found.values()):
        raise Refused(f"its kernel regularizer {regularizer['class_name']!r} {told} is not one of L1, L2 and L1L2")
    return found.get("l1", 0.0), found.get("l2", 0.0)


def _notes_of_loss(compiled: Any) -> Iterator[str]:
    """What `compile` was told of the loss, if further training has another one unless told."""
    if not isinstance(compiled, dict) or not (loss := compiled.get("loss")):
        return
    name, told = loss, {}
    if isinstance(loss, dict):
        is_object = isinstance(loss.get("config"), dict)
        name, told = (loss["class_name"], loss["config"]) if is_object else (loss.get("config"), {})
    smoothing = told.get("label_smoothing")
    if name not in LOSSES or smoothing:
        smoothed = f" with label_smoothing {smoothing}" if smoothing else ""
        yield f"it was trained with the loss {name}{smoothed}: further training has --loss, cross-entropy unless told"


def _activation(value: Any) -> str:
    """Keras 3 writes a dictionary where the function is one of its own by another name."""
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
    """Every layer of a Functional model but the first takes the one before, and nothing else."""
    for before, layer in zip([None, *layers], layers, strict=False):
        text = str(layer["inbound_nodes"])
        named = [each["config"]["name"] for each in layers if f"'{each['config']['name']}'" in text]
        if named != ([before["config"]["name"]] if before else []) or len(layer["inbound_nodes"]) > 1:
            raise Refused(f"its layer {layer['config']['name']!r} does not simply follow the one before")
