"""Which metrics ship? Each is a sum over examples, the same bits on any number of devices, and a figure made of it."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmlp.errors import ConfigError
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.losses import distribution
from jaxmlp.experiment.parts import Logits, Metric, Targets


class Accuracy(Metric):
    """Fraction of the examples whose largest logit is the label's. Of equal logits, the first counts."""

    kind: ClassVar[str] = "accuracy"
    needs_classes: ClassVar[bool] = True

    def of_examples(self, logits: Logits, targets: Targets) -> Bool[Array, " batch"]:
        """Whether the prediction is right."""
        return jnp.argmax(logits, axis=-1) == labels(targets)

    @property
    def sums_name(self) -> str:
        """Name of the sum: the number of right predictions."""
        return "correct"


class TopK(Metric):
    """Fraction of the examples whose label is among the `k` largest logits. Of equal logits, the first ranks higher."""

    kind: ClassVar[str] = "top_k"
    needs_classes: ClassVar[bool] = True

    k: int = ranged(3, "[1, 1000000]")
    """Number of classes that are predicted for each example."""

    def of_examples(self, logits: Logits, targets: Targets) -> Bool[Array, " batch"]:
        """Whether the label is among the `k` predicted classes."""
        label = labels(targets)[:, None]
        own = jnp.take_along_axis(logits, jnp.maximum(label, 0), axis=-1)
        earlier = jnp.arange(logits.shape[-1], dtype=label.dtype)[None] < label
        above = (logits > own) | ((logits == own) & earlier)
        return jnp.sum(above, axis=-1) < self.k

    @property
    def name(self) -> str:
        """The name with its `k`, such as `top_3`."""
        return f"top_{self.k}"


class OfClasses(Metric):
    """A figure from counts: for one class, or the mean over all classes that occur as label or prediction.

    Counts as scikit-learn 1.9 does with `average="macro"` and `zero_division=0`.
    """

    needs_classes: ClassVar[bool] = True

    label: int | None = ranged(None, "[0, 2147483647]")
    """Class id to score. Default: the mean over the classes."""

    def of_examples(self, logits: Logits, targets: Targets) -> dict[str, Bool[Array, "batch classes"]]:
        """For each class: whether it is the label, whether it is the prediction, and whether it is both."""
        count = logits.shape[-1]
        if self.label is not None and self.label >= count:
            raise ConfigError("metrics", f"has label {self.label}, but there are only {count} classes, counted from 0")
        classes = jnp.arange(count, dtype=jnp.int32)[None]
        is_label = labels(targets)[:, None] == classes
        is_answer = jnp.argmax(logits, axis=-1)[:, None] == classes
        return {"labels": is_label, "answers": is_answer, "correct": is_label & is_answer}

    def result(self, sums: Any, examples: int) -> float:
        """The figure of the class, or the mean over the classes."""
        counts = np.asarray(sums["labels"], np.float64), np.asarray(sums["answers"], np.float64)
        correct = np.asarray(sums["correct"], np.float64)
        of_class = correct / np.maximum(self.out_of(*counts), 1)
        if self.label is None:
            return float(of_class[counts[0] + counts[1] > 0].mean())
        return float(of_class[self.label])

    @staticmethod
    @abc.abstractmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The denominator for each class, from its numbers of labels and predictions."""

    @property
    def name(self) -> str:
        """The name, such as `precision`, or `precision_3` for class 3."""
        return self.kind if self.label is None else f"{self.kind}_{self.label}"

    @property
    def sums_name(self) -> str:
        """Name of the counts, which precision, recall and F1 share."""
        return "counts_of_classes"


class Precision(OfClasses):
    """Fraction of the predictions of a class that are right; 0 if the class is never predicted."""

    kind: ClassVar[str] = "precision"

    @staticmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The predictions."""
        return answers


class Recall(OfClasses):
    """Fraction of a class's examples that are predicted as this class; 0 if the class has no examples."""

    kind: ClassVar[str] = "recall"

    @staticmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The labels."""
        return labels


class F1(OfClasses):
    """Harmonic mean of a class's precision and recall: 2 * right / (predictions + labels)."""

    kind: ClassVar[str] = "f1"

    @staticmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The mean of labels and predictions."""
        return (labels + answers) / 2


class CalibrationError(Metric):
    """Expected calibration error: the mean over examples of |accuracy - mean probability| in the example's bin.

    The probability of a prediction falls in one of `bins` intervals (low, high] of equal width. Probabilities are
    summed in float32, in the same fixed order as all sums. Source: Guo et al. 2017.
    """

    kind: ClassVar[str] = "calibration_error"
    needs_classes: ClassVar[bool] = True
    larger_is_better: ClassVar[bool] = False

    bins: int = ranged(15, "[1, 10000]")
    """Number of equal intervals of the probability."""

    def of_examples(self, logits: Logits, targets: Targets) -> dict[str, Array]:
        """For each bin: the prediction's probability if it lies in the bin, and whether it does and is right."""
        probability = jnp.max(jax.nn.softmax(logits), axis=-1)
        bin_of = jnp.clip(jnp.ceil(probability * self.bins).astype(jnp.int32) - 1, 0, self.bins - 1)
        is_in = bin_of[:, None] == jnp.arange(self.bins, dtype=jnp.int32)[None]
        is_right = jnp.argmax(logits, axis=-1) == labels(targets)
        return {"probability": jnp.where(is_in, probability[:, None], 0.0), "correct": is_in & is_right[:, None]}

    def result(self, sums: Any, examples: int) -> float:
        """The mean gap between probability and accuracy."""
        gaps = np.asarray(sums["probability"], np.float64) - np.asarray(sums["correct"], np.float64)
        return float(np.abs(gaps).sum() / examples)


class BrierScore(Metric):
    """Mean over examples of the sum over classes of (probability - target)^2, in [0, 2]. Source: Brier 1950.

    Differs from: scikit-learn, which halves the score for two classes.
    """

    kind: ClassVar[str] = "brier_score"
    needs_classes: ClassVar[bool] = True
    larger_is_better: ClassVar[bool] = False

    def of_examples(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The sum over the classes, for each example."""
        return jnp.sum(jnp.square(jax.nn.softmax(logits) - distribution(targets, logits)), axis=-1)


class MeanAbsoluteError(Metric):
    """Mean over examples and outputs of |output - target|."""

    kind: ClassVar[str] = "mean_absolute_error"
    larger_is_better: ClassVar[bool] = False

    def of_examples(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The mean over the outputs, for each example."""
        return jnp.mean(jnp.abs(logits - targets.reshape(logits.shape)), axis=-1)


def labels(targets: Targets) -> Int[Array, " batch"]:
    """Class ids. A distribution becomes its likeliest class, the first of equals."""
    return jnp.argmax(targets, axis=-1) if jnp.issubdtype(targets.dtype, jnp.floating) else targets
