"""ONNX: the network as a graph of standard operators, computed in float32, for any number of images."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from jaxmlp.errors import RunError, UsageError
from jaxmlp.export.layers import dense_layers
from jaxmlp.run import files
from jaxmlp.trained.inference import Model

OPSET = 20
"""The first operator set with Gelu."""
IR_VERSION = 10
"""Version of the file format. Older readers refuse newer versions."""

OPERATORS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "gelu": ("Gelu", {"approximate": "tanh"}),
    "elu": ("Elu", {}),
    "selu": ("Selu", {}),
    "softplus": ("Softplus", {}),
}
"""ONNX operator of each activation. silu is built from two operators; linear needs none."""


def packages() -> tuple[ModuleType, ModuleType]:
    """Import onnx and onnxruntime, which then send no telemetry.

    Raises:
        UsageError: One of them is not installed.
    """
    # On import, its Linux builds write an identifier into the user's cache and send it with telemetry events.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError("--format onnx needs onnx and onnxruntime: pip install 'jaxmlp[onnx]'") from error
    return onnx, onnxruntime


def write(path: Path, model: Model) -> None:
    """Write `images`, float32 [batch, height, width, channels], unscaled, to `probabilities` [batch, classes]."""
    layers = dense_layers(model)
    onnx, _ = packages()
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes, weights = [helper.make_node("Flatten", ["images"], ["flat"], axis=1)], []
    x = "flat"
    for i, layer in enumerate(layers):
        name = f"Dense_{i}"
        if layer.scale != 1:
            weights.append(onnx.numpy_helper.from_array(np.float32(layer.scale), f"{name}/scale"))
            nodes.append(helper.make_node("Mul", [x, f"{name}/scale"], [f"{name}/scaled"]))
            x = f"{name}/scaled"
        weights.append(onnx.numpy_helper.from_array(layer.kernel, f"{name}/kernel"))
        weights.append(onnx.numpy_helper.from_array(layer.bias, f"{name}/bias"))
        nodes.append(helper.make_node("Gemm", [x, f"{name}/kernel", f"{name}/bias"], [name]))
        x = name
        if layer.activation == "silu":
            nodes.append(helper.make_node("Sigmoid", [x], [f"{name}/sigmoid"]))
            nodes.append(helper.make_node("Mul", [x, f"{name}/sigmoid"], [f"{name}/silu"]))
            x = f"{name}/silu"
        elif layer.activation != "linear":
            operator, attributes = OPERATORS[layer.activation]
            nodes.append(helper.make_node(operator, [x], [f"{name}/{layer.activation}"], **attributes))
            x = f"{name}/{layer.activation}"
    nodes.append(helper.make_node("Softmax", [x], ["probabilities"], axis=1))
    images = helper.make_tensor_value_info("images", float32, ["batch", *model.facts.zeros(1).inputs.shape[1:]])
    answers = helper.make_tensor_value_info("probabilities", float32, ["batch", model.num_classes])
    graph = helper.make_graph(nodes, model.config.name, [images], [answers], weights)
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxmlp",
    )
    onnx.checker.check_model(made, full_check=True)
    files.write(path, made.SerializeToString())


def answers(path: Path, model: Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The answers of ONNX Runtime from the file, on the CPU."""
    _, onnxruntime = packages()
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common parent
        raise RunError(f"{path} is not an ONNX model: {error}") from error
    (found,) = session.run(None, {"images": images.astype(np.float32)})
    return np.asarray(found)
