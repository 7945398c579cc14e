"""Write a model in a format, read it back, and compare what it answers with what `predict` does."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Shaped

from jaxmlp import data
from jaxmlp.config import DataConfig
from jaxmlp.errors import CheckFailed, RunError
from jaxmlp.export.layers import dense_layers, softmax_of_layers
from jaxmlp.inference import Model
from jaxmlp.run import files
from jaxmlp.run.digest import leaves

PROBES = 256
"""Images that each export is compared on."""
TOLERANCE = 1e-5
"""Largest difference of a probability from `predict`'s, where another program computes it."""


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

    def probabilities(self, path: Path, model: Model, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What the export at `path` answers; of `model`, its parameters are not used."""


class Exported(NamedTuple):
    """What an export came to."""

    path: Path
    bytes: int
    difference: float
    """Largest of a probability from `predict`'s, over the probes."""
    rounding: float
    """Largest of one of `predict`'s own probabilities from the exact one: what its arithmetic costs."""


def export(model: Model, name: str, path: Path) -> Exported:
    """Write a model, read it back, and compare.

    Args:
        model: An MLP's.
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
    if chosen.precision:
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, precision=chosen.precision))
    exporter.write(path, model)
    images = probes(model.image_shape)
    wanted = model.probabilities(images)
    try:
        difference = _largest(exporter.probabilities(path, model, images) - wanted)
    except BaseException:
        # What nobody has compared is not left behind either.
        _remove(path)
        raise
    rounding = _largest(softmax_of_layers(dense_layers(model), images, np.float64) - wanted)
    # Two programs may each round to another side of the exact value, and neither be at fault.
    limit = 0.0 if chosen.exact else max(TOLERANCE, 4 * rounding)
    if not difference <= limit:
        _remove(path)
        raise CheckFailed(
            f"{path} is removed: its probabilities differ by {difference:.2g}, wanted at most {limit:.2g}"
        )
    parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return Exported(path, sum(part.stat().st_size for part in parts), difference, rounding)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def probes(image_shape: tuple[int, int, int]) -> Shaped[np.ndarray, "probes height width channels"]:
    """Images to compare on: real digits where they fit, else noise in front of more and less black."""
    if image_shape == (28, 28, 1):
        return data.load(DataConfig(name="mnist_5k", validation=None)).test.inputs[:PROBES]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (PROBES, *image_shape), np.uint8)
    shown = rng.random(noise.shape) < np.linspace(0, 1, PROBES).reshape(-1, 1, 1, 1)
    return np.where(shown, noise, np.uint8(0))


def _largest(differences: Float[np.ndarray, "..."]) -> float:
    return float(np.abs(differences).max())
