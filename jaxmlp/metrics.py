"""The metrics that ship: each a sum over examples, the same bits on any number of devices, and a figure made of it."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxmlp.errors import ConfigError
from jaxmlp.fields import ranged
from jaxmlp.losses import distribution
from jaxmlp.parts import Logits, Metric, Targets


class Accuracy(Metric):
    """Part of the examples whose largest logit, the first of equals, is the label's."""

    kind: ClassVar[str] = "accuracy"
    needs_classes: ClassVar[bool] = True

    def of_examples(self, logits: Logits, targets: Targets) -> Bool[Array, " batch"]:
        """Whether the answer is right."""
        return jnp.argmax(logits, axis=-1) == labels(targets)

    @property
    def sums_name(self) -> str:
        """The number of right answers."""
        return "correct"


class TopK(Metric):
    """Part of the examples whose label is among the `k` largest logits; of equals, the first count as larger."""

    kind: ClassVar[str] = "top_k"
    needs_classes: ClassVar[bool] = True

    k: int = ranged(3, "[1, 1000000]")
    """How many answers an example has."""

    def of_examples(self, logits: Logits, targets: Targets) -> Bool[Array, " batch"]:
        """Whether the label is among the answers."""
        label = labels(targets)[:, None]
        own = jnp.take_along_axis(logits, jnp.maximum(label, 0), axis=-1)
        earlier = jnp.arange(logits.shape[-1], dtype=label.dtype)[None] < label
        above = (logits > own) | ((logits == own) & earlier)
        return jnp.sum(above, axis=-1) < self.k

    @property
    def name(self) -> str:
        """Such as `top_3`."""
        return f"top_{self.k}"


class OfClasses(Metric):
    """A figure of the classes' counts: of one class, or the mean over all classes that are a label or an answer.

    As scikit-learn 1.7 counts with `average="macro"` and `zero_division=0`.
    """

    needs_classes: ClassVar[bool] = True

    label: int | None = ranged(None, "[0, 2147483647]")
    """The class; none takes the mean over the classes."""

    def of_examples(self, logits: Logits, targets: Targets) -> dict[str, Bool[Array, "batch classes"]]:
        """By class: whether the example is of it, is answered with it, and both."""
        classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
        is_label = labels(targets)[:, None] == classes
        is_answer = jnp.argmax(logits, axis=-1)[:, None] == classes
        return {"labels": is_label, "answers": is_answer, "correct": is_label & is_answer}

    def result(self, sums: Any, examples: int) -> float:
        """The figure."""
        counts = np.asarray(sums["labels"], np.float64), np.asarray(sums["answers"], np.float64)
        correct = np.asarray(sums["correct"], np.float64)
        of_class = correct / np.maximum(self.out_of(*counts), 1)
        if self.label is None:
            return float(of_class[counts[0] + counts[1] > 0].mean())
        if self.label >= len(correct):
            raise ConfigError("metrics", f"has label {self.label}, and there are {len(correct)} classes, from 0")
        return float(of_class[self.label])

    @staticmethod
    @abc.abstractmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """What the right answers are a part of, by class, from the numbers of labels and of answers."""

    @property
    def name(self) -> str:
        """Such as `precision`, or `precision_3` of class 3."""
        return self.kind if self.label is None else f"{self.kind}_{self.label}"

    @property
    def sums_name(self) -> str:
        """The counts, which all figures of them share."""
        return "counts_of_classes"


class Precision(OfClasses):
    """Part of the answers with a class that are right; 0 where there is no such answer."""

    kind: ClassVar[str] = "precision"

    @staticmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The answers."""
        return answers


class Recall(OfClasses):
    """Part of a class's examples that are answered with it; 0 where there is no such example."""

    kind: ClassVar[str] = "recall"

    @staticmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The examples."""
        return labels


class F1(OfClasses):
    """Harmonic mean of a class's precision and recall: 2 right / (answers + examples)."""

    kind: ClassVar[str] = "f1"

    @staticmethod
    def out_of(labels: Any, answers: Any) -> Any:
        """The mean of both numbers."""
        return (labels + answers) / 2


class CalibrationError(Metric):
    """|accuracy - mean probability| of the answers in a bin, averaged over the examples. Source: Guo et al. 2017.

    An answer's probability lies in one of `bins` intervals (low, high] of equal width. Sums of probabilities are
    float32's, in the order of all sums.
    """

    kind: ClassVar[str] = "calibration_error"
    needs_classes: ClassVar[bool] = True
    larger_is_better: ClassVar[bool] = False

    bins: int = ranged(15, "[1, 10000]")
    """Intervals of the probability."""

    def of_examples(self, logits: Logits, targets: Targets) -> dict[str, Array]:
        """By bin: the answer's probability if it lies there, and whether it lies there and is right."""
        probability = jnp.max(jax.nn.softmax(logits), axis=-1)
        bin_of = jnp.clip(jnp.ceil(probability * self.bins).astype(jnp.int32) - 1, 0, self.bins - 1)
        is_in = bin_of[:, None] == jnp.arange(self.bins, dtype=jnp.int32)[None]
        is_right = jnp.argmax(logits, axis=-1) == labels(targets)
        return {"probability": jnp.where(is_in, probability[:, None], 0.0), "correct": is_in & is_right[:, None]}

    def result(self, sums: Any, examples: int) -> float:
        """The mean gap."""
        gaps = np.asarray(sums["probability"], np.float64) - np.asarray(sums["correct"], np.float64)
        return float(np.abs(gaps).sum() / examples)


class BrierScore(Metric):
    """Mean over examples of the sum over the classes of (probability - target)^2: 0 to 2. Source: Brier 1950.

    Differs from: scikit-learn of two classes, which takes half.
    """

    kind: ClassVar[str] = "brier_score"
    needs_classes: ClassVar[bool] = True
    larger_is_better: ClassVar[bool] = False

    def of_examples(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """The sum over the classes."""
        return jnp.sum(jnp.square(jax.nn.softmax(logits) - distribution(targets, logits)), axis=-1)


class MeanAbsoluteError(Metric):
    """Mean over examples and outputs of |output - target|."""

    kind: ClassVar[str] = "mean_absolute_error"
    larger_is_better: ClassVar[bool] = False

    def of_examples(self, logits: Logits, targets: Targets) -> Float[Array, " batch"]:
        """Its mean over the outputs."""
        return jnp.mean(jnp.abs(logits - targets.reshape(logits.shape)), axis=-1)


def labels(targets: Targets) -> Int[Array, " batch"]:
    """Class ids: of distributions, the likeliest class, the first of equals."""
    return jnp.argmax(targets, axis=-1) if jnp.issubdtype(targets.dtype, jnp.floating) else targets
