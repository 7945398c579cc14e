"""A finished model: loaded from a run, scored on a split, asked about images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmlp import data, modules, network, runtime, shards, train
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, DataError, RunError, printable
from jaxmlp.experiment import Experiment
from jaxmlp.feed import Feed
from jaxmlp.history import History
from jaxmlp.opening import open_run, warn_of
from jaxmlp.portable import portable
from jaxmlp.programs import figures
from jaxmlp.run import code
from jaxmlp.run.checkpoint_folder import Checkpoint
from jaxmlp.run.digest import restore
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.weights import AVERAGE, WEIGHTS, as_trained

Z95 = 1.959963984540054
"""Half the width of a 95 % interval, in standard deviations of a normal distribution."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A network with its parameters, and all that is needed to use it."""

    config: ExperimentConfig
    facts: data.Facts
    """Shapes and types of the examples that it was trained on."""
    params: Any
    variables: dict[str, Any]
    """What the module keeps beside its parameters, by flax collection."""
    step: int
    """Updates that made the parameters."""
    run: RunDirectory | None = None
    """Where it was loaded from."""
    dataset: data.Dataset | None = None
    """What `fit` has just trained it on."""

    @property
    def module(self) -> nn.Module:
        """The network in flax."""
        return modules.hashable(self.config.model.module(self.facts.outputs, self.config.factors))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image.

        Raises:
            DataError: The model takes something else than images.
        """
        if shape := self.facts.image_shape:
            return shape
        raise DataError(f"data: this needs a model of images, and {self.config.name} takes {_named(self.facts)}")

    @property
    def num_classes(self) -> int:
        """How many probabilities it gives: a network may have more outputs than the data has classes."""
        logits = jax.eval_shape(partial(_logits, self.module, self.config), self._weights, self.facts.zeros(1).inputs)
        return int(logits.shape[-1])

    @property
    def _weights(self) -> tuple[Any, Any]:
        return self.params, self.variables

    def __repr__(self) -> str:
        what = "classes" if self.facts.classes else "numbers"
        name, outputs = self.config.name, self.num_classes
        return f"Model({name}: {_named(self.facts)} to {outputs} {what}, after {self.step} updates)"

    def _repr_html_(self) -> str:
        """Its layers, for notebooks."""
        return network.summary(self.config, self.facts)._repr_html_()

    def logits(self, inputs: Any) -> Float[np.ndarray, "n outputs"]:
        """The network's outputs, float32.

        Args:
            inputs: As the run's data has them; pixels 0 to 255 for MNIST, scaled here. Images may have any shape that
                `data.as_images` takes, and one alone its own.

        Raises:
            DataError: Inputs of another shape; or pixels of 0 to 1 for a model that divides by 255.
        """
        return self._answers(self.given(inputs), _logits)

    def probabilities(self, inputs: Any) -> Float[np.ndarray, "n classes"]:
        """The classes' probabilities, float32.

        Args: As `logits`.

        Raises:
            DataError: As `logits`; or the model answers with numbers, which `logits` gives.
        """
        if not self.facts.classes:
            raise DataError(f"data: {self.config.name} answers with numbers, not with classes: ask for its logits")
        return self._answers(self.given(inputs), _probabilities)

    def answers(self, inputs: Any) -> Float[np.ndarray, "n outputs"]:
        """The classes' probabilities; of a model that answers with numbers, these.

        Args, Raises: As `logits`.
        """
        return self.probabilities(inputs) if self.facts.classes else self.logits(inputs)

    def tensors(self) -> dict[str, Any]:
        """All that it has learned as one tree, as exports hold it: the parameters, and beside them each collection.

        Raises:
            RunError: A collection is called as a module is.
        """
        if both := sorted(self.params.keys() & self.variables.keys()):
            raise RunError(f"a collection and a module of the network are both called {both[0]}: rename the module.")
        return {**self.params, **self.variables}

    def with_tensors(self, tensors: Mapping[str, Any]) -> Model:
        """The same network with another `tensors()`."""
        params = {name: tensors[name] for name in self.params}
        return dataclasses.replace(self, params=params, variables={name: tensors[name] for name in self.variables})

    def given(self, inputs: Any) -> Any:
        """What a user has in hand as the network takes it: arrays, frames, or one image.

        Raises:
            DataError: They are no such inputs.
        """
        if not self.facts.image_shape:
            return data.as_inputs(inputs, images=False)
        array = np.asarray(inputs)
        if array.shape in (self.image_shape, self.image_shape[:2]):
            array = array[np.newaxis]
        return array if array.shape[:1] == (0,) else data.as_images(array, shape=self.image_shape)

    def _answers(self, inputs: Any, function: Any) -> Float[np.ndarray, "n outputs"]:
        self.check(inputs)
        rows, examples = self.config.eval_rows, len(jax.tree.leaves(inputs)[0])
        found = [np.zeros((0, self.num_classes), np.float32)]
        for start in range(0, examples, rows):
            batch = jax.tree.map(lambda leaf: leaf[start : start + rows], inputs)  # noqa: B023
            # Padded to one shape, so that one program serves every number of inputs.
            padded = jax.tree.map(
                lambda leaf: np.pad(leaf, [(0, rows - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)]), batch
            )
            with runtime.settings():
                arguments = jax.device_put((self._weights, padded))
                answers = _jitted(function, self.module, self.config)(*arguments)
            found.append(jax.device_get(answers)[: examples - start])
        return np.concatenate(found)

    def check(self, inputs: Any) -> None:
        """Make sure that these are inputs as the model was trained on.

        Raises:
            DataError: They are not.
        """
        wanted = self.facts.zeros(1).inputs
        there: Any = jax.tree.structure(inputs)
        known: Any = jax.tree.structure(wanted)
        if there != known:
            raise DataError(f"data: inputs must be {_shown(self.facts)}, got {there}")
        for leaf, known_leaf in zip(jax.tree.leaves(inputs), jax.tree.leaves(wanted), strict=True):
            if leaf.shape[1:] != known_leaf.shape[1:]:
                what = "images" if self.facts.image_shape else "inputs"
                raise DataError(f"data: {what} must be {_shown(self.facts)}, got [{_times(leaf.shape)}]")
            if (leaf.dtype.kind in "iu" and leaf.dtype != np.uint8) != (known_leaf.dtype.kind == "i"):
                wanted = f"{known_leaf.dtype}, got {leaf.dtype}"
                raise DataError(f"data: whole numbers and scaled ones are told apart by their type: wanted {wanted}")
        # Of other numbers, a few that happen to be small mean nothing.
        if self.facts.image_shape:
            data.check_pixels(inputs, self.config.data.pixel_scale)


def _shown(facts: data.Facts) -> str:
    """Such as `[n, 28, 28, 1]`."""
    if isinstance(facts.inputs, dict):
        return ", ".join(f"{name} [n, {_times(each.shape)}]" for name, each in facts.inputs.items())
    return f"[n, {_times(facts.inputs.shape)}]"


def _named(facts: data.Facts) -> str:
    """Such as `images [n, 28, 28, 1]`."""
    return f"{'images ' if facts.image_shape else ''}{_shown(facts)}"


@functools.lru_cache(maxsize=8)
def _jitted(function: Any, module: nn.Module, config: ExperimentConfig) -> Any:
    # By itself, so that the portable program's 0 is an argument.
    compiled: Any = portable if config.precision == "portable" else jax.jit
    return compiled(partial(function, module, config))


def _logits(module: nn.Module, config: ExperimentConfig, weights: tuple[Any, Any], inputs: Any) -> Array:
    tf32 = config.precision == "tensorfloat32"
    with jax.default_matmul_precision("tensorfloat32") if tf32 else contextlib.nullcontext():
        return modules.apply_eval(module, *weights, train.scaled(config, inputs))


def _probabilities(module: nn.Module, config: ExperimentConfig, weights: tuple[Any, Any], inputs: Any) -> Array:
    # jaxlib 0.12 fuses a softmax into a bfloat16 product on CPUs, and gives NaN from 512 rows on.
    return jax.nn.softmax(jax.lax.optimization_barrier(_logits(module, config, weights, inputs)))


def answers(model: Model) -> Callable[[Any, Any], Array]:
    """The function `(weights, inputs) -> model.answers(inputs)`, weights `(params, variables)`, to be exported."""
    return partial(_probabilities if model.facts.classes else _logits, model.module, model.config)


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def load_model(
    run: str | Path | RunDirectory,
    checkpoint: str | int = "last",
    *,
    experiment: Experiment = (),
    warn: Callable[[str], None] = _warn,
) -> Model:
    """The model of a run.

    Args:
        run: The run, or its folder.
        checkpoint: `last`, `best` (as the config's `best_by` says), `ema` (the moving average of the last), or the step
            of one that is there.
        experiment: The user's own code that the run was made with: the experiment's file, several, or an experiment.
        warn: Told of damaged checkpoints that are passed over for an older one, and of code that is another now.

    Raises:
        CodeError: The run was made with code of the user's own, which is not given.
        ConfigError: `checkpoint` is none of these.
        RunError: There is no such run or checkpoint, it is damaged, or has other shapes than the config.
    """
    run = run if isinstance(run, RunDirectory) else open_run(run, experiment)
    warn_of(run.code_changed, warn)
    config, facts = run.config, run.facts
    found = _checkpoint(run, checkpoint, warn)
    arrays = {name: array for name, array in found.arrays.items() if name.startswith(WEIGHTS)}
    on_data = config.on_data(facts.outputs, 1)
    wanted = jax.eval_shape(train.init_state, on_data, facts.zeros(1).inputs)
    weights = {"params": wanted.params, "variables": wanted.variables}
    restored = restore({"state": weights}, arrays)["state"]
    return Model(config=config, facts=facts, **jax.device_put(restored), step=found.step, run=run)


def model_of(history: History) -> Model:
    """The model that `fit` has just trained."""
    state = history.state
    return Model(
        config=history.config,
        facts=history.dataset.facts,
        params=jax.device_put(state.params),
        variables=jax.device_put(state.variables),
        step=int(state.step),
        dataset=history.dataset,
    )


def _checkpoint(run: RunDirectory, which: str | int, warn: Callable[[str], None]) -> Checkpoint:
    if str(which).isdecimal():
        return run.checkpoint_at(int(which))
    if which not in ("last", "best", "ema"):
        raise ConfigError("checkpoint", f"must be last, best, ema or the step of one, got {which!r}")
    found = run.newest_checkpoint(warn)
    if not found:
        files = code.flags(code.files_to_name(run.plain_config, run.manifest))
        resume = f"jaxmlp train --resume {shlex.quote(str(run.path))}{files}"
        raise RunError(f"{run.path} has no checkpoint yet. Go on with `{resume}`.")
    if which == "best" and not (found := run.best_checkpoint()):
        raise RunError(f"{run.path} has no best checkpoint, as it has no validation split. Take the last.")
    if which == "best":  # Also where the run ended in it, and then went back to another epoch's weights.
        found = found._replace(arrays=as_trained(found.arrays))
    if which == "ema" or (which == "best" and run.config.best_is_average):
        averages = {name: array for name, array in found.arrays.items() if name.startswith(AVERAGE)}
        if not averages:
            raise RunError(f"{run.path} has no moving average: its controllers have no EMA(). Take the last.")
        params = {f"{WEIGHTS[0]}{name.removeprefix(AVERAGE)}": array for name, array in averages.items()}
        found = found._replace(arrays=found.arrays | params)
    return found


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
    accuracy: float | None = None
    """Part of the examples that are answered rightly; None where targets are numbers, as all that follows."""
    ci95: tuple[float, float] | None = None
    """Wilson's 95 % interval of the accuracy."""
    confusion: Int[np.ndarray, "true predicted"] | None = None
    per_class: tuple[ClassScore, ...] = ()
    metrics: Mapping[str, float] = MappingProxyType({})
    """The config's metrics, by name."""

    def __str__(self) -> str:
        return "\n".join(_table(self))

    def _repr_html_(self) -> str:
        """The tables, for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def _table(found: Evaluation) -> Iterator[str]:
    yield f"{found.split}: {found.examples:,} examples"
    figures = [f"loss: {found.loss:.4f}"]
    if found.accuracy is not None and found.ci95:
        figures.append("accuracy: {:.4f} (95 % interval {:.4f} to {:.4f})".format(found.accuracy, *found.ci95))
    figures += [f"{name}: {value:.4f}" for name, value in found.metrics.items() if name != "accuracy"]
    yield " - ".join(figures)
    if found.confusion is None:
        return
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
    examples, classes = len(split.targets), loaded.num_classes
    if split.targets.shape[1:] != loaded.facts.targets.shape or split.targets.dtype != loaded.facts.targets.dtype:
        wanted, found = loaded.facts.targets, f"{split.targets.dtype} {split.targets.shape[1:]}"
        raise DataError(f"data: targets must be {wanted.dtype} {wanted.shape}, got {found}")
    if loaded.facts.classes and split.labels.max(initial=0) >= classes:
        raise DataError(f"data: labels must be in [0, {classes - 1}], got {split.labels.max()}")
    scored = _figures(loaded, split)
    if not loaded.facts.classes:
        return Evaluation(name, examples, scored.pop("loss"), metrics=scored)
    answers = loaded.logits(split.inputs).argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (split.labels, answers), 1)
    correct = int(confusion.trace())
    return Evaluation(
        split=name,
        examples=examples,
        loss=scored.pop("loss"),
        accuracy=correct / examples,
        ci95=wilson_interval(correct, examples),
        confusion=confusion,
        per_class=tuple(_class_score(label, confusion) for label in range(classes)),
        metrics=scored,
    )


@runtime.settings()
def _figures(loaded: Model, split: data.Split) -> dict[str, float]:
    """Loss and metrics on all examples, as training computes them."""
    loaded.check(split.inputs)
    config = loaded.config.on_data(loaded.facts.outputs, 1)
    mesh = shards.make_mesh(jax.devices()[:1])
    feed = Feed(split, config, partial(shards.replicate, mesh=mesh))
    state = train.TrainState(jax.device_put(np.int32(0)), loaded.params, (), loaded.variables)
    sums = jax.device_put(train.zero_sums(config, state, train.Split.of(loaded.facts.zeros(1))))
    for piece in feed.pieces():
        sums = train.evaluate(config, loaded.params, loaded.variables, piece, sums)
    return figures(loaded.config, jax.device_get(sums))


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
    """A model's answer for one example."""

    label: int | None
    """The likeliest class; None of a model that answers with numbers, as the probability."""
    probability: float | None
    top: tuple[tuple[int, float], ...]
    """The likeliest classes with their probabilities, the likeliest first."""
    numbers: tuple[float, ...] = ()
    """The answer of a model that answers with numbers."""


def predict(loaded: Model, inputs: Any, top: int = 3) -> list[Prediction]:
    """The likeliest classes of each example, at most `top` of them; or the numbers that a model answers with.

    Args, Raises: As `Model.answers`.
    """
    if not loaded.facts.classes:
        return [Prediction(None, None, (), tuple(map(float, row))) for row in loaded.answers(inputs)]
    answers = []
    for row in loaded.probabilities(inputs):
        # Stable, so that the first of equals comes first, as in training.
        order = np.argsort(-row, stable=True)[:top]
        ranked = tuple((int(label), float(row[label])) for label in order)
        answers.append(Prediction(*ranked[0], ranked))
    return answers


def _times(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
