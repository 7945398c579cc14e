"""A finished model: loaded from a run, scored on a split, asked about images."""

from __future__ import annotations

import html
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxmlp import data, model, network, shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, DataError, RunError, printable
from jaxmlp.feed import Feed
from jaxmlp.history import History
from jaxmlp.run.checkpoint_folder import Checkpoint
from jaxmlp.run.digest import restore
from jaxmlp.run.directory import RunDirectory

Z95 = 1.959963984540054
"""Half the width of a 95 % interval, in standard deviations of a normal distribution."""
PARAMS = "state/params/"
"""Where a checkpoint has the parameters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A module with its parameters, and all that is needed to use it."""

    config: ExperimentConfig
    module: nn.Module
    params: Any
    image_shape: tuple[int, int, int]
    """Height, width and channels of an image."""
    num_classes: int
    step: int
    """Updates that made the parameters."""

    def __repr__(self) -> str:
        name, shape, classes = self.config.name, _times(self.image_shape), self.num_classes
        return f"Model({name}: images [n, {shape}] to {classes} classes, after {self.step} updates)"

    def _repr_html_(self) -> str:
        """Its layers, for notebooks."""
        return network.summary(self.config, self.image_shape, self.num_classes, module=self.module)._repr_html_()

    def probabilities(self, images: Shaped[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n classes"]:
        """The classes' probabilities, float32.

        Args:
            images: Pixels as the run's data has them, 0 to 255 for MNIST; scaled here.

        Raises:
            DataError: Images of another shape; or pixels of 0 to 1 for a model that divides by 255.
        """
        if images.shape[1:] != self.image_shape:
            raise DataError(f"data: images must be [n, {_times(self.image_shape)}], got [{_times(images.shape)}]")
        scale = self.config.data.pixel_scale
        if images.dtype.kind == "f" and scale < 0.01 and 0 < images.max(initial=0) <= 1:
            raise DataError(f"data: pixels must be 0 to 255, as the model scales them by {scale:g}, got 0 to 1")
        rows = train.EVAL_ROWS
        found = [np.zeros((0, self.num_classes), np.float32)]
        for start in range(0, len(images), rows):
            batch = images[start : start + rows]
            # Padded to one shape, so that one program serves every number of images.
            padded = np.pad(batch, [(0, rows - len(batch)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(apply(self.params, padded, scale, module=self.module))[: len(batch)])
        return np.concatenate(found)


@partial(jax.jit, static_argnames="module")
def apply(
    params: Any, images: Shaped[Array, "batch ..."], scale: Float[Array, ""], *, module: nn.Module
) -> Float[Array, "batch classes"]:
    """The classes' probabilities of images whose pixels are yet to be multiplied by `scale`."""
    logits = model.apply_eval(module, params, images.astype(jnp.float32) * jnp.float32(scale))
    # jaxlib 0.12 fuses a softmax into a bfloat16 product on CPUs, and gives NaN from 512 rows on.
    return jax.nn.softmax(jax.lax.optimization_barrier(logits))


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def load_model(
    run: str | Path | RunDirectory,
    checkpoint: str | int = "last",
    *,
    module: nn.Module | None = None,
    image_shape: tuple[int, int, int] | None = None,
    warn: Callable[[str], None] = _warn,
) -> Model:
    """The model of a run.

    Args:
        run: The run, or its folder.
        checkpoint: `last`, `best` (the lowest validation loss), or the step of one that is there.
        module: What the run trained in place of the MLP, where it did.
        image_shape: Height, width and channels of an image, for a module, or where images are not square.
        warn: Told of damaged checkpoints that are passed over for an older one.

    Raises:
        ConfigError: `checkpoint` is none of these, or `image_shape` is needed.
        RunError: There is no such run or checkpoint, it is damaged, or has other shapes than the config.
    """
    run = run if isinstance(run, RunDirectory) else RunDirectory.open(run, write=False)
    found = _checkpoint(run, checkpoint, warn)
    arrays = {name: array for name, array in found.arrays.items() if name.startswith(PARAMS)}
    if module:
        module = model.hashable(module)
    else:
        first, last = (f"{PARAMS}Dense_{i}/kernel" for i in (0, len(run.config.model.hidden_sizes)))
        if first not in arrays or last not in arrays:
            raise RunError(f"{found.path} has no parameters of an MLP. Give the module that the run trained.")
        image_shape = image_shape or _square(arrays[first].shape[0])
        module = model.make_mlp(run.config.model, arrays[last].shape[1], run.config.precision)
    if not image_shape:
        raise ConfigError("image_shape", "must be given with a module: (height, width, channels)")
    make_state = partial(train.init_state, config=run.config.program(), module=module, image_shape=image_shape)
    wanted = jax.eval_shape(make_state, jax.eval_shape(partial(train.make_hyper, run.config, 1)))
    params = restore({"state": {"params": wanted.params}}, arrays)["state"]["params"]
    return Model(
        config=run.config,
        module=module,
        params=jax.device_put(params),
        image_shape=image_shape,
        num_classes=_num_classes(module, params, image_shape),
        step=found.step,
    )


def _num_classes(module: nn.Module, params: Any, image_shape: tuple[int, int, int]) -> int:
    """Logits of an image: a module may have more than the data has classes."""
    logits = jax.eval_shape(partial(model.apply_eval, module), params, jnp.zeros((1, *image_shape)))
    return int(logits.shape[-1])


def model_of(history: History) -> Model:
    """The model that `fit` has just trained."""
    height, width, channels = history.dataset.train.images.shape[1:]
    image_shape, params = (height, width, channels), history.state.params
    return Model(
        config=history.config,
        module=history.module,
        params=jax.device_put(params),
        image_shape=image_shape,
        num_classes=_num_classes(history.module, params, image_shape),
        step=int(history.state.step),
    )


def _checkpoint(run: RunDirectory, which: str | int, warn: Callable[[str], None]) -> Checkpoint:
    if str(which).isdecimal():
        return run.checkpoint_at(int(which))
    if which not in ("last", "best"):
        raise ConfigError("checkpoint", f"must be last, best or the step of one, got {which!r}")
    found = run.newest_checkpoint(warn)
    if not found:
        resume = f"jaxmlp train --resume {shlex.quote(str(run.path))}"
        raise RunError(f"{run.path} has no checkpoint yet. Go on with `{resume}`.")
    if which == "best" and not (found := run.best_checkpoint()):
        raise RunError(f"{run.path} has no best checkpoint, as it has no validation split. Take the last.")
    return found


def _square(pixels: int) -> tuple[int, int, int]:
    """The shape of square images of so many numbers: grey, or else red, green and blue."""
    for channels in (1, 3):
        side = math.isqrt(pixels // channels)
        if side * side * channels == pixels:
            return side, side, channels
    raise ConfigError("image_shape", f"must be given: {pixels} numbers are no square image")


class ClassScore(NamedTuple):
    """How one class fared."""

    label: int
    examples: int
    correct: int
    recall: float | None
    """Part of its examples that were found; none where it has no example."""
    precision: float | None
    """Part of the answers with its name that were right; none where it was never answered."""


class Evaluation(NamedTuple):
    """A model's figures on all examples of a split."""

    split: str
    examples: int
    loss: float
    """Mean of the config's loss."""
    accuracy: float
    ci95: tuple[float, float]
    """Wilson's 95 % interval of the accuracy."""
    confusion: Int[np.ndarray, "true predicted"]
    per_class: tuple[ClassScore, ...]

    def __str__(self) -> str:
        return "\n".join(_table(self))

    def _repr_html_(self) -> str:
        """The tables, for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def _table(found: Evaluation) -> Iterator[str]:
    low, high = found.ci95
    yield f"{found.split}: {found.examples:,} examples"
    yield f"loss: {found.loss:.4f} - accuracy: {found.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})"
    yield ""
    yield "class  examples  recall  precision"
    for score in found.per_class:
        recall, precision = ("-" if part is None else f"{part:.4f}" for part in (score.recall, score.precision))
        yield f"{score.label:5}  {score.examples:8}  {recall:>6}  {precision:>9}"
    yield ""
    yield "confusion: a row for each true class, a column for each answer"
    width = max(4, len(str(found.confusion.max())) + 1)
    yield " " * 5 + "".join(f"{score.label:{width}}" for score in found.per_class)
    for score, row in zip(found.per_class, found.confusion, strict=True):
        yield f"{score.label:5}" + "".join(f"{count:{width}}" for count in row)


def evaluate(loaded: Model, split: data.Split, name: str = "test") -> Evaluation:
    """Score a model on all examples of a split.

    Args:
        loaded: The model.
        split: Labelled images.
        name: The split's, for people.

    Raises:
        DataError: Images of another shape, or a label that the model has no class for.
    """
    examples = len(split.labels)
    if split.labels.max(initial=0) >= loaded.num_classes:
        raise DataError(f"data: labels must be in [0, {loaded.num_classes - 1}], got {split.labels.max()}")
    predicted = loaded.probabilities(split.images).argmax(axis=1)
    confusion = np.zeros((loaded.num_classes, loaded.num_classes), np.int64)
    np.add.at(confusion, (split.labels, predicted), 1)
    feed = Feed(split, loaded.config, shards.make_mesh(jax.devices()[:1]))
    sums = feed.evaluate(loaded.params, config=loaded.config.program(), module=loaded.module)
    correct = int(confusion.trace())
    return Evaluation(
        split=name,
        examples=examples,
        loss=float(sums.loss) / examples,
        accuracy=correct / examples,
        ci95=wilson_interval(correct, examples),
        confusion=confusion,
        per_class=tuple(_class_score(label, confusion) for label in range(loaded.num_classes)),
    )


def _class_score(label: int, confusion: Int[np.ndarray, "true predicted"]) -> ClassScore:
    examples, answers, correct = (
        int(n) for n in (confusion[label].sum(), confusion[:, label].sum(), confusion[label, label])
    )
    recall = correct / examples if examples else None
    return ClassScore(label, examples, correct, recall, correct / answers if answers else None)


def wilson_interval(correct: int, examples: int, z: float = Z95) -> tuple[float, float]:
    """Both p with |correct / examples - p| = z sqrt(p (1 - p) / examples). Source: Wilson 1927."""
    p, spread = correct / examples, z * z / examples
    half = z * math.sqrt(p * (1 - p) / examples + spread / (4 * examples))
    low, high = ((p + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    # Exact where all or none are correct, in spite of rounding.
    return low if correct else 0.0, high if correct < examples else 1.0


class Prediction(NamedTuple):
    """A model's answer for one image."""

    label: int
    probability: float
    top: tuple[tuple[int, float], ...]
    """The likeliest classes with their probabilities, the likeliest first."""


def predict(loaded: Model, images: Shaped[np.ndarray, "n height width channels"], top: int = 3) -> list[Prediction]:
    """The likeliest classes of each image, at most `top` of them.

    Args, Raises: As `Model.probabilities`.
    """
    answers = []
    for row in loaded.probabilities(images):
        # Stable, so that the first of equals comes first, as in training.
        order = np.argsort(-row, stable=True)[:top]
        ranked = tuple((int(label), float(row[label])) for label in order)
        answers.append(Prediction(*ranked[0], ranked))
    return answers


def _times(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
