"""Losses and their gradients against NumPy in float64, in and out of the clipped zone; hits; the penalty on kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras_reference as keras
import numpy as np
import pytest

from jaxmlp import MLP, Accuracy, ClippedCrossEntropy, CrossEntropy, MeanSquaredError
from jaxmlp.experiment.parts import Loss

CLIPPED = ClippedCrossEntropy()
LARGEST = 16.118096  # -log(1e-7)
LOSSES: list[Loss] = [CLIPPED, CrossEntropy(), CrossEntropy(label_smoothing=0.1), MeanSquaredError()]
each_loss = pytest.mark.parametrize("config", LOSSES)


def random_logits(scale: float, examples: int = 500) -> tuple[keras.Array, keras.Array]:
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(examples, 10))).astype(np.float32)
    return logits, rng.integers(0, 10, examples).astype(np.int32)


@jax.jit
def losses(config: Loss, logits: keras.Array, labels: keras.Array) -> jax.Array:
    return config(jnp.asarray(logits), jnp.asarray(labels))


@jax.jit
def gradient(config: Loss, logits: keras.Array, labels: keras.Array) -> jax.Array:
    """Of each example's loss with respect to its logits."""
    total: jax.Array = jax.grad(lambda logits: jnp.sum(losses(config, logits, labels)))(logits)
    return total


def expected_losses(config: Loss, logits: keras.Array, labels: keras.Array) -> keras.Array:
    targets = keras.one_hot(labels, logits.shape[-1])
    p = keras.softmax(logits)
    match config:
        case ClippedCrossEntropy():
            return keras.categorical_crossentropy(logits, labels)
        case MeanSquaredError():
            return np.asarray(np.mean(np.square(p - targets), axis=-1))
        case CrossEntropy(label_smoothing=smoothing):
            targets = (1 - smoothing) * targets + smoothing / logits.shape[-1]
            shifted = logits - logits.max(-1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            return np.asarray(-np.sum(targets * log_p, axis=-1))
    raise AssertionError(config)


def expected_gradient(config: Loss, logits: keras.Array, labels: keras.Array) -> keras.Array:
    targets = keras.one_hot(labels, logits.shape[-1])
    p = keras.softmax(logits)
    match config:
        case ClippedCrossEntropy():
            return keras.categorical_crossentropy_gradient(logits, labels)
        case MeanSquaredError():
            by_p = 2 * (p - targets) / logits.shape[-1]
            return np.asarray(p * (by_p - np.sum(p * by_p, axis=-1, keepdims=True)))
        case CrossEntropy(label_smoothing=smoothing):
            return np.asarray(p - (1 - smoothing) * targets - smoothing / logits.shape[-1])
    raise AssertionError(config)


def with_probability(p: keras.Array) -> tuple[keras.Array, keras.Array]:
    """Logits of two classes, the label's the first, which gets probability p."""
    odds = np.log(p) - np.log1p(-p)
    return np.stack([odds, np.zeros_like(odds)], axis=-1).astype(np.float32), np.zeros(len(p), np.int32)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
@each_loss
def test_every_loss_and_its_gradient_are_numpys(config: Loss, scale: float) -> None:
    logits, labels = random_logits(scale)
    exact = logits.astype(np.float64)
    found = losses(config, logits, labels)
    assert found.shape == labels.shape and found.dtype == jnp.float32
    # Float32's rounding of a probability near 1, 6e-8, is absolute in its logarithm; that of exp(x) grows with x.
    np.testing.assert_allclose(found, expected_losses(config, exact, labels), rtol=2e-6, atol=3e-7)
    np.testing.assert_allclose(
        gradient(config, logits, labels), expected_gradient(config, exact, labels), rtol=2e-5, atol=3e-7
    )


def test_the_gradient_is_exactly_zero_where_the_true_class_is_clipped() -> None:
    """In float32 the upper bound is 1 - 1.2e-7, so probabilities that are clipped round to 1 or one step below."""
    logits, labels = with_probability(np.array([1e-30, 1e-12, 1e-8, 0.9e-7, 1 - 3e-8, 1 - 1e-10, 1 - 1e-14]))
    assert np.all(gradient(CLIPPED, logits, labels) == 0)
    np.testing.assert_allclose(losses(CLIPPED, logits, labels)[:4], LARGEST, rtol=1e-6)
    assert np.all(losses(CLIPPED, logits, labels)[4:] == losses(CLIPPED, logits, labels)[4])


def test_the_gradient_is_whole_right_beside_the_clipped_zone() -> None:
    p = np.array([1.1e-7, 1e-6, 0.5, 1 - 1e-5])
    logits, labels = with_probability(p)
    # 1 - p is known to 6e-8 in float32: 0.6 % of the last one's 1e-5.
    np.testing.assert_allclose(gradient(CLIPPED, logits, labels)[:, 0], p - 1, rtol=6e-3)


def test_another_class_being_clipped_stops_no_gradient() -> None:
    """Keras clips every class, but only the true one's logarithm counts."""
    logits = np.array([[0.0, 1.0, -40.0, 3.0]], np.float32)
    labels = np.array([1], np.int32)
    p = keras.softmax(logits.astype(np.float64))
    np.testing.assert_allclose(gradient(CLIPPED, logits, labels), p - keras.one_hot(labels, 4), atol=3e-7)


def test_the_clip_is_what_tells_it_from_plain_cross_entropy() -> None:
    logits, labels = random_logits(30.0)
    assert float(jnp.max(losses(CrossEntropy(), logits, labels))) > 100
    assert float(jnp.max(losses(CLIPPED, logits, labels))) <= LARGEST


def test_epsilon_is_the_clips_bound() -> None:
    logits, labels = with_probability(np.array([1e-12, 1 - 1e-12]))
    found = losses(ClippedCrossEntropy(epsilon=0.01), logits, labels)
    np.testing.assert_allclose(found, [-np.log(0.01), -np.log(0.99)], rtol=1e-6)


@each_loss
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_leave_loss_and_gradient_finite(config: Loss, size: float) -> None:
    logits = np.array([[size, -size, 0.0], [-size, size, size], [size, size, size]], np.float32)
    for label in range(3):
        labels = np.full(3, label, np.int32)
        assert np.all(np.isfinite(losses(config, logits, labels)))
        assert np.all(np.isfinite(gradient(config, logits, labels)))


@each_loss
def test_logits_that_are_not_numbers_give_a_loss_that_is_none(config: Loss) -> None:
    """Clipping must not hide divergence."""
    logits = np.array([[np.nan, 0.0, 1.0], [0.0, 1.0, 2.0]], np.float32)
    found = losses(config, logits, np.zeros(2, np.int32))
    assert np.isnan(found[0]) and np.isfinite(found[1])


def test_the_references_gradient_is_the_slope_of_its_loss() -> None:
    """Central differences in float64, out of the clipped zone's edge; the reference must be right by itself."""
    logits, labels = random_logits(3.0, examples=20)
    exact, slope = logits.astype(np.float64), np.zeros(logits.shape)
    for index in np.ndindex(logits.shape):
        nudge = np.zeros(logits.shape)
        nudge[index] = 1e-5
        above, below = (keras.categorical_crossentropy(exact + sign * nudge, labels).sum() for sign in (1, -1))
        slope[index] = (above - below) / 2e-5
    # The differences' own error is about 1e-16 / 1e-5 a unit of loss.
    np.testing.assert_allclose(keras.categorical_crossentropy_gradient(exact, labels), slope, atol=1e-8)


def test_a_hit_is_the_largest_logit_the_first_of_equals() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [-3.0, -2.0, -1.0]], np.float32)
    labels = np.array([1, 0, 1, 0], np.int32)
    hits = Accuracy().of_examples(jnp.asarray(logits), jnp.asarray(labels))
    assert hits.dtype == jnp.bool_
    assert hits.tolist() == [True, True, False, False] == keras.categorical_accuracy(logits, labels).tolist()


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.1, 0.01)])
def test_the_penalty_is_on_all_kernels_and_on_nothing_else(l1: float, l2: float) -> None:
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in [(4, 3), (3, 3, 1, 2)]]
    biases = [np.full(3, 9.0, np.float32), np.full(2, 9.0, np.float32)]
    dense, conv = ({"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True))
    params: dict[str, Any] = {"Dense_0": dense, "Block_0": {"Conv_0": conv, "scale": biases[1]}}
    config = MLP(l1=l1, l2=l2)
    if not l1 and not l2:
        assert config.penalty(params) is None
        return
    value, grads = jax.value_and_grad(config.penalty)(params)
    expected = sum(l1 * np.abs(w).sum() + l2 * np.square(w).sum() for w in kernels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["Dense_0"]["kernel"], l1 * np.sign(kernels[0]) + 2 * l2 * kernels[0], rtol=1e-6)
    assert not np.any(grads["Dense_0"]["bias"]) and not np.any(grads["Block_0"]["scale"])


def test_the_clipped_loss_of_a_distribution_is_the_sum_over_its_classes() -> None:
    logits, labels = random_logits(3.0)
    target = 0.3 * np.eye(10)[labels] + 0.7 * np.eye(10)[(labels + 1) % 10]
    log_p = np.log(np.clip(keras.softmax(logits.astype(np.float64)), 1e-7, 1 - 1e-7))
    np.testing.assert_allclose(losses(CLIPPED, logits, jnp.float32(target)), -(target * log_p).sum(-1), rtol=2e-6)
    smoothed = losses(ClippedCrossEntropy(label_smoothing=0.2), logits, labels)
    np.testing.assert_allclose(smoothed, -((0.8 * np.eye(10)[labels] + 0.02) * log_p).sum(-1), rtol=2e-6)


@each_loss
def test_a_distribution_of_one_class_is_its_label(config: Loss) -> None:
    logits, labels = random_logits(3.0)
    one_hot = jax.nn.one_hot(labels, 10)
    if isinstance(config, MeanSquaredError):  # Of numbers it is another rule.
        np.testing.assert_allclose(losses(config, logits, one_hot), np.square(logits - one_hot).mean(-1), rtol=1e-5)
    elif isinstance(config, ClippedCrossEntropy):  # Another sum, of all classes, that may round otherwise.
        np.testing.assert_allclose(losses(config, logits, one_hot), losses(config, logits, labels), rtol=3e-7)
    else:
        np.testing.assert_array_equal(losses(config, logits, one_hot), losses(config, logits, labels))
