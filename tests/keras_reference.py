"""Keras 2.2.4's training in NumPy, transcribed from its source and not from `jaxmlp`: what faithful is measured by.

Every rule names the file of Keras 2.2.4 it was read from. Arrays keep the dtype they come in; the tests use float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

EPSILON = 1e-7
"""K.epsilon(). Source: keras/backend/common.py."""


class Optimizer(Protocol):
    """Keeps its state by the position of a parameter in the list."""

    learning_rate: float

    def update(self, params: list[Array], grads: list[Array]) -> list[Array]:
        """The parameters after one update."""
        ...


def decayed(learning_rate: float, decay: float, iterations: int) -> float:
    """Source: keras/optimizers.py, `get_updates` of every optimizer; `iterations` counts the updates made before."""
    return learning_rate * (1.0 / (1.0 + decay * iterations))


@dataclass
class SGD:
    """Source: keras/optimizers.py, `SGD`."""

    learning_rate: float = 0.01
    momentum: float = 0.0
    decay: float = 0.0
    nesterov: bool = False
    iterations: int = 0
    moments: list[Array] = field(default_factory=list)

    def update(self, params: list[Array], grads: list[Array]) -> list[Array]:
        self.moments = self.moments or [np.zeros_like(p) for p in params]
        rate = decayed(self.learning_rate, self.decay, self.iterations)
        self.iterations += 1
        found = []
        for index, (p, g) in enumerate(zip(params, grads, strict=True)):
            velocity = self.momentum * self.moments[index] - rate * g
            self.moments[index] = velocity
            found.append(p + self.momentum * velocity - rate * g if self.nesterov else p + velocity)
        return found


@dataclass
class RMSprop:
    """Source: keras/optimizers.py, `RMSprop`. `epsilon_in_sqrt` is Keras 3's rule (keras/src/optimizers/rmsprop.py)."""

    learning_rate: float = 0.001
    rho: float = 0.9
    epsilon: float = EPSILON
    decay: float = 0.0
    epsilon_in_sqrt: bool = False
    iterations: int = 0
    accumulators: list[Array] = field(default_factory=list)

    def update(self, params: list[Array], grads: list[Array]) -> list[Array]:
        self.accumulators = self.accumulators or [np.zeros_like(p) for p in params]
        rate = decayed(self.learning_rate, self.decay, self.iterations)
        self.iterations += 1
        found = []
        for index, (p, g) in enumerate(zip(params, grads, strict=True)):
            a = self.rho * self.accumulators[index] + (1.0 - self.rho) * np.square(g)
            self.accumulators[index] = a
            divisor = np.sqrt(a + self.epsilon) if self.epsilon_in_sqrt else np.sqrt(a) + self.epsilon
            found.append(p - rate * g / divisor)
        return found


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def one_hot(labels: Array, num_classes: int) -> Array:
    """Source: keras/utils/np_utils.py, `to_categorical`."""
    return np.eye(num_classes)[labels]


def categorical_crossentropy(logits: Array, labels: Array) -> Array:
    """The loss of each example [batch]. Source: keras/backend/tensorflow_backend.py, on the output of a softmax."""
    clipped = np.clip(softmax(logits), EPSILON, 1.0 - EPSILON)
    return -np.sum(one_hot(labels, logits.shape[-1]) * np.log(clipped), axis=-1)


def categorical_crossentropy_gradient(logits: Array, labels: Array) -> Array:
    """The gradient of each example's loss with respect to its logits [batch, classes].

    Chain rule through log, clip (no slope outside its bounds) and softmax.
    """
    p = softmax(logits)
    inside = (p >= EPSILON) & (p <= 1.0 - EPSILON)
    by_p = np.where(inside, -one_hot(labels, logits.shape[-1]) / np.maximum(p, EPSILON), 0.0)
    return np.asarray(p * (by_p - np.sum(p * by_p, axis=-1, keepdims=True)))


def categorical_accuracy(logits: Array, labels: Array) -> Array:
    """Whether each example is a hit. Source: keras/metrics.py; argmax takes the first of equals."""
    return np.equal(np.argmax(logits, axis=-1), labels)


def glorot_uniform_limit(fan_in: int, fan_out: int) -> float:
    """Kernels are uniform in [-limit, limit]. Source: keras/initializers.py."""
    return float(np.sqrt(6.0 / (fan_in + fan_out)))


def dropout(x: Array, kept: Array, rate: float) -> Array:
    """Source: keras/backend/tensorflow_backend.py, `dropout`: `rate` is the part dropped, what is kept grows."""
    return np.where(kept, x / (1.0 - rate), 0.0)


def split_at(examples: int, validation_split: float) -> int:
    """Examples before it are trained on, the rest held out, before any shuffle. Source: keras/engine/training.py."""
    return int(examples * (1.0 - validation_split))


def batches(order: Array, batch_size: int) -> Iterator[Array]:
    """Every example once; the last batch is as large as it comes. Source: keras/engine/training_utils.py."""
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def epoch_mean(means: Sequence[float], sizes: Sequence[int]) -> float:
    """The batches' means, weighted by size. Source: keras/callbacks.py, `BaseLogger`."""
    return float(np.dot(means, sizes) / np.sum(sizes))


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda x: np.maximum(x, 0.0), lambda y: (y > 0.0).astype(y.dtype)),
    "tanh": (np.tanh, lambda y: 1.0 - np.square(y)),
}
"""Each with its slope, from its value."""


@dataclass
class Sequential:
    """Dense, activation and Dropout for each hidden layer, then Dense and softmax; trained as `Model.fit` trains.

    Args:
        params: kernel, bias, kernel, bias, ... in the order of the layers.
        activation: After each hidden layer.
        dropout_rate: Part of each hidden layer's units dropped.
        l1: Regularizer of every kernel. Source: keras/regularizers.py.
        l2: Likewise.
    """

    params: list[Array]
    activation: str
    dropout_rate: float = 0.0
    l1: float = 0.0
    l2: float = 0.0

    def train_on_batch(
        self, images: Array, labels: Array, kept: Sequence[Array], optimizer: Optimizer
    ) -> tuple[float, float]:
        """One update; the batch's mean loss and accuracy are those before it, dropout on.

        Args:
            images: Scaled, [batch, ...].
            labels: [batch].
            kept: For each hidden layer, which units dropout keeps: bool [batch, units].
            optimizer: Whose rule and state the update takes.
        """
        rule, slope = ACTIVATIONS[self.activation]
        inputs, values = [images.reshape(len(images), -1)], []
        for kernel, bias, mask in zip(self.params[:-2:2], self.params[1:-2:2], kept, strict=True):
            values.append(rule(inputs[-1] @ kernel + bias))
            inputs.append(dropout(values[-1], mask, self.dropout_rate))
        logits = inputs[-1] @ self.params[-2] + self.params[-1]
        loss = np.mean(categorical_crossentropy(logits, labels)) + self.penalty()
        accuracy = np.mean(categorical_accuracy(logits, labels))

        back = categorical_crossentropy_gradient(logits, labels) / len(labels)
        grads: list[Array] = []
        for layer in reversed(range(len(inputs))):
            kernel = self.params[2 * layer]
            penalty_grad = self.l1 * np.sign(kernel) + 2.0 * self.l2 * kernel
            grads = [inputs[layer].T @ back + penalty_grad, back.sum(0), *grads]
            if layer:
                back = dropout(back @ kernel.T, kept[layer - 1], self.dropout_rate) * slope(values[layer - 1])
        self.params = optimizer.update(self.params, grads)
        return float(loss), float(accuracy)

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Mean loss and accuracy, dropout off."""
        x = images.reshape(len(images), -1)
        for kernel, bias in zip(self.params[:-2:2], self.params[1:-2:2], strict=True):
            x = ACTIVATIONS[self.activation][0](x @ kernel + bias)
        logits = x @ self.params[-2] + self.params[-1]
        loss = np.mean(categorical_crossentropy(logits, labels)) + self.penalty()
        return float(loss), float(np.mean(categorical_accuracy(logits, labels)))

    def penalty(self) -> float:
        return float(sum(self.l1 * np.abs(w).sum() + self.l2 * np.square(w).sum() for w in self.params[::2]))
