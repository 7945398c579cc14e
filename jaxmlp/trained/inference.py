"""What does a trained model answer? It is loaded from a run, scored on a split, and asked about images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import math
import re
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

from jaxmlp import data, modules, shards, train
from jaxmlp.engine import network
from jaxmlp.engine.feed import Feed
from jaxmlp.engine.history import History
from jaxmlp.engine.programs import figures
from jaxmlp.errors import ConfigError, DataError, RunError, printable
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.portable import portable
from jaxmlp.run import code
from jaxmlp.run.checkpoint_folder import Checkpoint
from jaxmlp.run.digest import restore
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.opening import open_run
from jaxmlp.run.weights import AVERAGE, WEIGHTS, as_trained
from jaxmlp.source.file import Experiment
from jaxmlp.system import runtime

Z95 = 1.959963984540054
"""Half the width of a 95 % interval, in standard deviations of a normal distribution."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A network with its parameters and everything needed to use it."""

    config: ExperimentConfig
    facts: data.Facts
    """Shapes and types of the training examples."""
    params: Any
    variables: dict[str, Any]
    """What the module keeps beside its parameters, by flax collection."""
    step: int
    """Number of updates that led to these parameters."""
    run: RunDirectory | None = None
    """The run that the model was loaded from."""
    dataset: data.Dataset | None = None
    """The data set that `fit` trained it on."""

    @property
    def module(self) -> nn.Module:
        """The flax module."""
        return modules.hashable(self.config.model.module(self.facts.outputs, self.config.factors))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image.

        Raises:
            DataError: The model does not take images.
        """
        if shape := self.facts.image_shape:
            return shape
        raise DataError(
            f"data: this needs a model that takes images, but {self.config.name} takes {_named(self.facts)}"
        )

    @property
    def num_classes(self) -> int:
        """Number of probabilities for each example. A network may have more outputs than the data has classes."""
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
        """The table of layers, for notebooks."""
        return network.summary(self.config, self.facts)._repr_html_()

    def logits(self, inputs: Any) -> Float[np.ndarray, "n outputs"]:
        """The network's outputs, float32.

        Args:
            inputs: Inputs as in the run's data. MNIST's pixels are 0 to 255 and are scaled here. Images may have any
                shape that `data.as_images` takes; a single image may have its own shape.

        Raises:
            DataError: The inputs have another shape, or pixels are 0 to 1 although the model divides by 255.
        """
        return self._answers(self.given(inputs), _logits)

    def probabilities(self, inputs: Any) -> Float[np.ndarray, "n classes"]:
        """The probabilities of the classes, float32.

        Args: As `logits`.

        Raises:
            DataError: As `logits`; or the model predicts numbers, which `logits` returns.
        """
        if not self.facts.classes:
            raise DataError(f"data: {self.config.name} predicts numbers, not classes: use its logits")
        return self._answers(self.given(inputs), _probabilities)

    def answers(self, inputs: Any) -> Float[np.ndarray, "n outputs"]:
        """The probabilities of the classes; for a model that predicts numbers, these numbers.

        Args, Raises: As `logits`.
        """
        return self.probabilities(inputs) if self.facts.classes else self.logits(inputs)

    def tensors(self) -> dict[str, Any]:
        """All learned values as one tree, as exports store it: the parameters, and each other collection beside them.

        Raises:
            RunError: A collection and a module have the same name.
        """
        if both := sorted(self.params.keys() & self.variables.keys()):
            raise RunError(f"a collection and a module of the network are both called {both[0]}: rename the module.")
        return {**self.params, **self.variables}

    def with_tensors(self, tensors: Mapping[str, Any]) -> Model:
        """The same network with the values of another `tensors()`."""
        params = {name: tensors[name] for name in self.params}
        return dataclasses.replace(self, params=params, variables={name: tensors[name] for name in self.variables})

    def given(self, inputs: Any) -> Any:
        """The user's inputs as the network takes them: arrays, frames, or one image.

        Raises:
            DataError: The inputs cannot be converted.
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
            # Padded to one shape, so that one program serves any number of inputs.
            padded = jax.tree.map(
                lambda leaf: np.pad(leaf, [(0, rows - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)]), batch
            )
            with runtime.settings():
                arguments = jax.device_put((self._weights, padded))
                answers = _jitted(function, self.module, self.config)(*arguments)
            found.append(jax.device_get(answers)[: examples - start])
        return np.concatenate(found)

    def check(self, inputs: Any) -> None:
        """Check that inputs have the structure, shapes and types of the training inputs.

        Raises:
            DataError: They differ.
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
                raise DataError(f"data: the type tells integers from scaled numbers: wanted {wanted}")
        # For other numbers, small values are no sign of a mistake.
        if self.facts.image_shape:
            data.check_pixels(inputs, self.config.data.pixel_scale)


def _shown(facts: data.Facts) -> str:
    """The shape of the inputs, such as `[n, 28, 28, 1]`."""
    if isinstance(facts.inputs, dict):
        return ", ".join(f"{name} [n, {_times(each.shape)}]" for name, each in facts.inputs.items())
    return f"[n, {_times(facts.inputs.shape)}]"


def _named(facts: data.Facts) -> str:
    """Kind and shape of the inputs, such as `images [n, 28, 28, 1]`."""
    return f"{'images ' if facts.image_shape else ''}{_shown(facts)}"


@functools.lru_cache(maxsize=8)
def _jitted(function: Any, module: nn.Module, config: ExperimentConfig) -> Any:
    # `portable` wraps the function itself, so that the 0 that it needs is an argument of the program.
    compiled: Any = portable if config.precision == "portable" else jax.jit
    return compiled(partial(function, module, config))


def _logits(module: nn.Module, config: ExperimentConfig, weights: tuple[Any, Any], inputs: Any) -> Array:
    tf32 = config.precision == "tensorfloat32"
    with jax.default_matmul_precision("tensorfloat32") if tf32 else contextlib.nullcontext():
        return modules.apply_eval(module, *weights, train.scaled(config, inputs))


def _probabilities(module: nn.Module, config: ExperimentConfig, weights: tuple[Any, Any], inputs: Any) -> Array:
    # On CPUs, jaxlib 0.12 fuses a softmax into a bfloat16 product and returns NaN for 512 rows or more.
    return jax.nn.softmax(jax.lax.optimization_barrier(_logits(module, config, weights, inputs)))


def answers(model: Model) -> Callable[[Any, Any], Array]:
    """The function `(weights, inputs) -> model.answers(inputs)` for exports; weights are `(params, variables)`."""
    return partial(_probabilities if model.facts.classes else _logits, model.module, model.config)


def _warn(text: str) -> None:
    print(printable(text), file=sys.stderr)


def load_model(
    run: str | Path | RunDirectory,
    checkpoint: str | int = "last",
    *,
    experiment: Experiment = (),
) -> Model:
    """Load the model of a run. Stderr says which damaged checkpoints are skipped, and which code has changed.

    Args:
        run: The run, or its folder.
        checkpoint: `last`; `best`, by the config's `best_by`; `ema`, the last moving average; or the step of a stored
            checkpoint.
        experiment: The user's own code that the run used: the experiment's file, several files, or an
            `ExperimentConfig`.

    Raises:
        CodeError: The run used code of the user's own, which was not given.
        ConfigError: `checkpoint` is none of these.
        RunError: The run or checkpoint does not exist, is damaged, or has other shapes than the config.
    """
    run = run if isinstance(run, RunDirectory) else open_run(run, experiment)
    for each in run.code_changed:
        _warn(f"{each}: the answers may differ from the run's.")
    config, facts = run.config, run.facts
    found = _checkpoint(run, checkpoint)
    arrays = {name: array for name, array in found.arrays.items() if name.startswith(WEIGHTS)}
    wanted = jax.eval_shape(train.init_state, config.on_data(facts.outputs, 1), facts.zeros(1).inputs)
    restored = restore({"state": {"params": wanted.params, "variables": wanted.variables}}, arrays)["state"]
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


def _checkpoint(run: RunDirectory, which: str | int) -> Checkpoint:
    if re.fullmatch(r"[0-9]{1,19}", str(which)):
        return run.checkpoints.at(int(which))
    if which not in ("last", "best", "ema"):
        raise ConfigError("checkpoint", f"must be last, best, ema or the step of a checkpoint, got {which!r}")
    found = run.newest_checkpoint(_warn)
    if not found:
        files = code.flags(code.files_to_name(run.plain_config, run.manifest))
        resume = f"jaxmlp train --resume {shlex.quote(str(run.path))}{files}"
        raise RunError(f"{run.path} has no checkpoint yet. Continue with `{resume}`.")
    if which == "best" and not (found := run.checkpoints.best()):
        raise RunError(f"{run.path} has no best checkpoint, because it has no validation split. Use the last.")
    if which == "best":  # Also if the run ended at this checkpoint and then restored another epoch's weights.
        found = found._replace(arrays=as_trained(found.arrays))
    if which == "ema" or (which == "best" and run.config.best_is_average):
        averages = {name: array for name, array in found.arrays.items() if name.startswith(AVERAGE)}
        if not averages:
            raise RunError(
                f"{run.path} has no moving average: its controllers contain no EMA(). Use the last checkpoint."
            )
        params = {f"{WEIGHTS[0]}{name.removeprefix(AVERAGE)}": array for name, array in averages.items()}
        found = found._replace(arrays=found.arrays | params)
    return found


class ClassScore(NamedTuple):
    """Counts and scores of one class."""

    label: int
    examples: int
    correct: int
    recall: float | None
    """Fraction of the class's examples that were found; None if the class has no examples."""
    precision: float | None
    """Fraction of the predictions of this class that were right; None if it was never predicted."""


class Evaluation(NamedTuple):
    """A model's figures over all examples of a split."""

    split: str
    examples: int
    loss: float
    """Mean of the config's loss."""
    accuracy: float | None = None
    """Fraction of the examples that are predicted right. None if targets are numbers; then the fields below are empty
    too."""
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


def evaluate_split(loaded: Model, split: data.Split, name: str = "test") -> Evaluation:
    """Score a model on all examples of a split.

    Args:
        loaded: The model.
        split: Examples with their targets.
        name: Name of the split, for people.

    Raises:
        DataError: The inputs or targets have another shape or type, or a label is not one of the model's classes.
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
    """Loss and metrics over all examples, computed as in training."""
    loaded.check(split.inputs)
    config = loaded.config.on_data(loaded.facts.outputs, 1)
    feed = Feed(split, config, partial(shards.replicate, mesh=shards.make_mesh(jax.devices()[:1])))
    state = train.TrainState(jax.device_put(np.int32(0)), loaded.params, (), loaded.variables)
    sums = jax.device_put(train.zero_sums(config, state, train.DeviceSplit.of(loaded.facts.zeros(1))))
    for piece in feed.pieces():
        sums = train.evaluate(config, loaded.params, loaded.variables, piece, sums)
    return figures(loaded.config, jax.device_get(sums))


def _class_score(label: int, confusion: Int[np.ndarray, "true predicted"]) -> ClassScore:
    examples, answers, correct = (
        int(n) for n in (confusion[label].sum(), confusion[:, label].sum(), confusion[label, label])
    )
    recall = correct / examples if examples else None
    return ClassScore(label, examples, correct, recall, correct / answers if answers else None)


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """Both p with |correct / examples - p| = z sqrt(p (1 - p) / examples), where z is `Z95`. Source: Wilson 1927."""
    p, spread = correct / examples, Z95 * Z95 / examples
    half = Z95 * math.sqrt(p * (1 - p) / examples + spread / (4 * examples))
    low, high = ((p + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    # Exact at the ends, 0 and 1, in spite of rounding.
    return low if correct else 0.0, high if correct < examples else 1.0


class Prediction(NamedTuple):
    """A model's prediction for one example."""

    label: int | None
    """The likeliest class. None for a model that predicts numbers, like `probability`."""
    probability: float | None
    top: tuple[tuple[int, float], ...]
    """The likeliest classes with their probabilities, in falling order."""
    numbers: tuple[float, ...] = ()
    """The prediction of a model that predicts numbers."""


def predict(loaded: Model, inputs: Any, top: int = 3) -> list[Prediction]:
    """The likeliest classes of each example, at most `top` of them; or the numbers that the model predicts.

    Args, Raises: As `Model.answers`.
    """
    if not loaded.facts.classes:
        return [Prediction(None, None, (), tuple(map(float, row))) for row in loaded.answers(inputs)]
    found = [likeliest(row, top) for row in loaded.probabilities(inputs)]
    return [Prediction(*ranked[0], ranked) for ranked in found]


def likeliest(probabilities: Float[np.ndarray, " classes"], top: int) -> tuple[tuple[int, float], ...]:
    """The likeliest classes with their probabilities, at most `top` of them, in falling order."""
    # Stable, so that the first of equal classes comes first, as in training.
    order = np.argsort(-probabilities, stable=True)[:top]
    return tuple((int(label), float(probabilities[label])) for label in order)


def _times(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
