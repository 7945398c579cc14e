"""Write a model in a format, read it back, and compare what it answers with what `predict` does."""

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
from jaxmlp.config import DataConfig
from jaxmlp.errors import CheckFailed, RunError
from jaxmlp.export.layers import dense_layers, softmax_of_layers
from jaxmlp.inference import Model, answers
from jaxmlp.mlp import MLP
from jaxmlp.plain import with_value
from jaxmlp.run import files
from jaxmlp.run.digest import leaves

PROBES = 256
"""Examples that each export is compared on."""
TOLERANCE = 1e-5
"""Largest difference of an answer from `predict`'s, where another program computes it; of numbers, of the largest."""


class Format(NamedTuple):
    """One format; the module of its name in this room writes and reads it."""

    suffix: str
    exact: bool = False
    """Whether it holds parameters for the run's own program, so that no bit may differ."""
    precision: str | None = None
    """What it computes in, whatever the run did; none where it keeps the run's."""
    max_bytes: int | None = None
    """Of parameters that it can hold; none where it knows no limit."""


MAX_MESSAGE = (1 << 31) - (1 << 20)
"""Bytes of parameters in a protobuf or a flatbuffer, neither of which is longer than 2 GiB."""
MAX_PAGE = files.MAX_TEXT // 4 * 3 - (1 << 20)
"""Bytes of parameters in a page, where base64 makes four characters of three bytes."""

FORMATS = {
    "safetensors": Format(".safetensors", exact=True),
    "stablehlo": Format(".stablehlo", max_bytes=MAX_MESSAGE),
    "web": Format(".html", precision="float32", max_bytes=MAX_PAGE),
    "onnx": Format(".onnx", precision="float32", max_bytes=MAX_MESSAGE),
    "orbax": Format(".orbax", exact=True),
}


class Exporter(Protocol):
    """What the module of a format offers."""

    def write(self, path: Path, model: Model) -> None:
        """Write the model to `path`, whole or not at all."""

    def answers(self, path: Path, model: Model, inputs: Any) -> np.ndarray[Any, Any]:
        """What the export at `path` answers; of `model`, its parameters are not used."""


class Exported(NamedTuple):
    """What an export came to."""

    path: Path
    bytes: int
    difference: float
    """Largest of an answer from `predict`'s, over the probes: of probabilities, or of numbers."""
    rounding: float
    """What `predict`'s own arithmetic costs: the largest difference of one of its answers from the exact one of an
    MLP, and from the one of a program that computes each operation apart of another network."""


def export(model: Model, name: str, path: Path) -> Exported:
    """Write a model, read it back, and compare.

    Args:
        model: Any; some formats hold MLPs alone.
        name: One of `FORMATS`.
        path: A file, which is replaced; for orbax a folder, which must not be there.

    Raises:
        CheckFailed: What was written answers otherwise than the model; it is removed.
        DiskError: It could not be written.
        RunError: The format cannot hold the model: its kind, its shape or its size.
        UsageError: A package is not installed.
    """
    chosen = FORMATS[name]
    size = sum(array.nbytes for array in leaves(model.params).values())
    if chosen.max_bytes is not None and size > chosen.max_bytes:
        others = " or ".join(other for other, each in FORMATS.items() if not each.max_bytes)
        holds = f"--format {name} holds {chosen.max_bytes / 1e6:,.0f} MB of parameters at most"
        raise RunError(f"{holds}, and the run has {size / 1e6:,.0f} MB: take {others}.")
    exporter: Exporter = importlib.import_module(f"jaxmlp.export.{name}")
    if not chosen.exact:  # Who runs the file knows no portable arithmetic.
        precision = chosen.precision or model.config.factors
        model = dataclasses.replace(model, config=with_value(model.config, "precision", precision))
    exporter.write(path, model)
    inputs = probes(model.facts)
    wanted = model.answers(inputs)
    try:
        difference = _largest(exporter.answers(path, model, inputs) - wanted)
    except BaseException:
        # What nobody has compared is not left behind either.
        _remove(path)
        raise
    rounding = _largest(_otherwise(model, inputs) - wanted)
    # Two programs may each round to another side of the exact value, and neither be at fault.
    limit = 0.0 if chosen.exact else max(TOLERANCE * max(1.0, _largest(wanted)), 4 * rounding)
    if not difference <= limit:
        _remove(path)
        what = "probabilities" if model.facts.classes else "answers"
        raise CheckFailed(f"{path} is removed: its {what} differ by {difference:.2g}, wanted at most {limit:.2g}")
    parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return Exported(path, sum(part.stat().st_size for part in parts), difference, rounding)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _otherwise(model: Model, inputs: Any) -> Float[np.ndarray, "probes outputs"]:
    """The answers as other arithmetic has them: an MLP's exact ones, or those of each operation by itself."""
    network = model.config.model
    is_plain = isinstance(network, MLP) and isinstance(network.activation, str) and not network.batch_norm
    if is_plain and model.facts.classes:
        return softmax_of_layers(dense_layers(model), inputs, np.float64)
    with jax.disable_jit():
        return np.asarray(answers(model)((model.params, model.variables), inputs))


def probes(facts: data.Facts) -> Any:
    """Inputs to compare on: real digits where they fit, else noise in front of more and less black, or noise alone."""
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
        if leaf.dtype == np.int32:  # Any table of ids has the first two.
            return rng.integers(0, 2, leaf.shape, np.int32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(noise_of, facts.zeros(PROBES).inputs)


def _largest(differences: Float[np.ndarray, "..."]) -> float:
    return float(np.abs(differences).max())
