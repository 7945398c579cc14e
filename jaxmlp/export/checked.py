"""How is an export checked? It is written, read back, and its answers are compared with `predict`'s."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float

from jaxmlp import data
from jaxmlp.errors import CheckFailed, RunError
from jaxmlp.experiment.config import DataConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.plain import with_value
from jaxmlp.export.layers import dense_layers, softmax_of_layers
from jaxmlp.run import files
from jaxmlp.run.digest import leaves
from jaxmlp.trained.inference import Model, answers

PROBES = 256
"""Number of examples on which each export is compared."""
TOLERANCE = 1e-5
"""Largest allowed difference from `predict` if another program computes the answers; for numbers, relative to the
largest."""


class Format(NamedTuple):
    """A format. The module with its name in this room writes and reads it."""

    suffix: str
    exact: bool = False
    """Whether the format holds parameters for the run's own program, so that every bit must be equal."""
    precision: str | None = None
    """Precision of the computation, whatever the run's precision was. None keeps the run's precision."""
    max_bytes: int | None = None
    """Largest size of the parameters in bytes; None without a limit."""


MAX_MESSAGE = (1 << 31) - (1 << 20)
"""Largest size of the parameters in a protobuf or flatbuffer, in bytes. Neither can exceed 2 GiB."""
MAX_PAGE = files.MAX_TEXT // 4 * 3 - (1 << 20)
"""Largest size of the parameters in a page, in bytes. base64 turns three bytes into four characters."""

FORMATS = {
    "safetensors": Format(".safetensors", exact=True),
    "stablehlo": Format(".stablehlo", max_bytes=MAX_MESSAGE),
    "web": Format(".html", precision="float32", max_bytes=MAX_PAGE),
    "onnx": Format(".onnx", precision="float32", max_bytes=MAX_MESSAGE),
    "orbax": Format(".orbax", exact=True),
}


class Exporter(Protocol):
    """What the module of a format provides."""

    def write(self, path: Path, model: Model) -> None:
        """Write the model to `path`, completely or not at all."""

    def answers(self, path: Path, model: Model, inputs: Any) -> np.ndarray[Any, Any]:
        """The answers of the export at `path`. The parameters of `model` are not used."""


class Exported(NamedTuple):
    """Result of an export."""

    path: Path
    bytes: int
    difference: float
    """Largest difference of an answer (a probability or number) from `predict`'s answer over the probes."""
    rounding: float
    """Largest rounding error of `predict` itself: for an MLP the difference from the exact answers, for other networks
    the difference from a program that computes each operation separately."""


def export(model: Model, name: str, path: Path) -> Exported:
    """Write a model, read it back, and compare.

    Args:
        model: Any model. Some formats hold only MLPs.
        name: A key of `FORMATS`.
        path: A file, which is replaced; for orbax a folder, which must not exist.

    Raises:
        CheckFailed: The written model gives other answers; it is removed.
        DiskError: It could not be written.
        RunError: The format cannot hold a model of this kind, shape or size.
        UsageError: A package is not installed.
    """
    chosen = FORMATS[name]
    size = sum(array.nbytes for array in leaves(model.params).values())
    if chosen.max_bytes is not None and size > chosen.max_bytes:
        others = " or ".join(other for other, each in FORMATS.items() if not each.max_bytes)
        holds = f"--format {name} holds at most {chosen.max_bytes / 1e6:,.0f} MB of parameters"
        raise RunError(f"{holds}, but the run has {size / 1e6:,.0f} MB: use {others}.")
    exporter: Exporter = importlib.import_module(f"jaxmlp.export.{name}")
    if not chosen.exact:  # Other programs have no portable arithmetic.
        precision = chosen.precision or model.config.factors
        model = dataclasses.replace(model, config=with_value(model.config, "precision", precision))
    inputs = probes(model.facts)
    wanted = model.answers(inputs)
    rounding = _largest(_otherwise(model, inputs) - wanted)
    exporter.write(path, model)
    try:
        difference = _largest(exporter.answers(path, model, inputs) - wanted)
    except BaseException:
        # An export that was not compared must not remain.
        _remove(path)
        raise
    # Two programs may round the exact value in opposite directions, and both be right.
    limit = 0.0 if chosen.exact else max(TOLERANCE * max(1.0, _largest(wanted)), 4 * rounding)
    if not difference <= limit:
        _remove(path)
        what = "probabilities" if model.facts.classes else "answers"
        raise CheckFailed(f"{path} was removed: its {what} differ by {difference:.2g}, wanted at most {limit:.2g}")
    parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return Exported(path, sum(part.stat().st_size for part in parts), difference, rounding)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _otherwise(model: Model, inputs: Any) -> Float[np.ndarray, "probes outputs"]:
    """The answers in other arithmetic: for an MLP the exact answers, else with each operation computed separately."""
    network = model.config.model
    is_plain = isinstance(network, MLP) and isinstance(network.activation, str) and not network.batch_norm
    if is_plain and model.facts.classes:
        return softmax_of_layers(dense_layers(model), inputs)
    with jax.disable_jit():
        return np.asarray(answers(model)((model.params, model.variables), inputs))


def probes(facts: data.Facts) -> Any:
    """Inputs to compare on: real digits if they fit; for other images noise on more and less black; else noise."""
    if facts.image_shape == (28, 28, 1):
        digits: np.ndarray[Any, Any] = data.load(DataConfig(name="mnist_5k", validation=None)).test.inputs
        return digits[:PROBES]
    rng = np.random.default_rng(0)
    if facts.image_shape:
        noise = rng.integers(0, 256, (PROBES, *facts.image_shape), np.uint8)
        shown = rng.random(noise.shape) < np.linspace(0, 1, PROBES).reshape(-1, 1, 1, 1)
        return np.where(shown, noise, np.uint8(0))

    def noise_of(leaf: Any) -> Any:
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        if leaf.dtype == np.int32:  # Every table of ids has at least two entries.
            return rng.integers(0, 2, leaf.shape, np.int32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(noise_of, facts.zeros(PROBES).inputs)


def _largest(differences: Float[np.ndarray, "..."]) -> float:
    return float(np.abs(differences).max())
