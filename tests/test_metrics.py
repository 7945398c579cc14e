"""Metrics against NumPy: right answers, the first k answers, absolute errors; padding counts for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras_reference as keras
import numpy as np
import pytest
from refusals import refused

from jaxmlp import shards, train
from jaxmlp.engine.network import MNIST, check_network
from jaxmlp.engine.programs import figures
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.losses import MeanSquaredError
from jaxmlp.experiment.metrics import (
    F1,
    Accuracy,
    BrierScore,
    CalibrationError,
    MeanAbsoluteError,
    Precision,
    Recall,
    TopK,
)
from jaxmlp.experiment.mlp import MLP
from jaxmlp.experiment.parts import Metric
from jaxmlp.experiment.plain import kinds

TIES = np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [-3.0, -2.0, -1.0]], np.float32)
TIE_LABELS = np.array([1, 0, 1, 0], np.int32)


def of_examples(metric: Metric, logits: Any, targets: Any) -> Any:
    return metric.of_examples(jnp.asarray(logits), jnp.asarray(targets))


def test_a_hit_is_the_largest_logit_the_first_of_equals() -> None:
    hits = of_examples(Accuracy(), TIES, TIE_LABELS)
    assert hits.dtype == jnp.bool_
    assert hits.tolist() == [True, True, False, False] == keras.categorical_accuracy(TIES, TIE_LABELS).tolist()


def test_a_distributions_label_is_its_likeliest_class_the_first_of_equals() -> None:
    targets = np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0]], np.float32)
    assert of_examples(Accuracy(), TIES, targets).tolist() == [True, True, True, True]
    assert of_examples(TopK(k=1), TIES, targets).tolist() == [True, True, True, True]


@pytest.mark.parametrize("k", range(1, 11))
def test_the_first_k_answers_are_those_of_a_stable_sort(k: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 6, (300, 10)).astype(np.float32)  # Many ties.
    labels = rng.integers(0, 10, 300).astype(np.int32)
    first = np.argsort(-logits, axis=1, stable=True)[:, :k]
    assert of_examples(TopK(k=k), logits, labels).tolist() == (first == labels[:, None]).any(axis=1).tolist()


def test_the_first_answer_is_accuracys() -> None:
    logits = np.random.default_rng(0).integers(0, 6, (300, 10)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 10, 300).astype(np.int32)
    np.testing.assert_array_equal(of_examples(TopK(k=1), logits, labels), of_examples(Accuracy(), logits, labels))


def test_the_absolute_error_is_the_mean_over_the_outputs() -> None:
    outputs = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    assert of_examples(MeanAbsoluteError(), outputs, np.array([[0.0, 4.0], [3.0, 4.0]], np.float32)).tolist() == [
        1.5,
        4.0,
    ]
    assert of_examples(MeanAbsoluteError(), outputs[:, :1], np.array([0.0, 5.0], np.float32)).tolist() == [1.0, 2.0]


class Confusion(Metric):
    """A metric whose sums are a tree, of which only `result` makes a number."""

    def of_examples(self, logits: Any, targets: Any) -> Any:
        answer = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.int32)
        return {"pairs": answer[:, :, None] * jax.nn.one_hot(targets, logits.shape[-1], dtype=jnp.int32)[:, None]}

    def result(self, sums: Any, examples: int) -> float:
        assert sums["pairs"].sum() == examples
        return float(np.trace(sums["pairs"]) / examples)


@pytest.mark.parametrize("grad_shards", [1, 4])
def test_the_figures_of_a_split_are_of_all_its_examples_and_of_no_padding(grad_shards: int) -> None:
    metrics = (Accuracy(), TopK(), Confusion())
    config = ExperimentConfig(model=MLP(hidden_sizes=()), metrics=metrics, batch_size=16, grad_shards=grad_shards)
    on_data = config.on_data(10, 1)
    rng = np.random.default_rng(0)
    split = train.DeviceSplit(rng.integers(0, 256, (37, 4, 4, 1), np.uint8), rng.integers(0, 10, 37, np.int32))
    state = train.init_state(on_data, split.inputs[:1])
    zero = train.zero_sums(on_data, state, split)
    sums = train.evaluate(on_data, state.params, {}, split, zero)
    logits = on_data.module().apply({"params": state.params}, split.inputs.astype(np.float32) * np.float32(1 / 255))
    found = figures(config, jax.device_get(sums))
    assert found["accuracy"] == found["confusion"] == np.mean(np.argmax(logits, -1) == split.targets)
    first = np.argsort(-np.asarray(logits), axis=1, stable=True)[:, :3]
    assert found["top_3"] == np.mean((first == split.targets[:, None]).any(axis=1))
    assert int(sums["examples"]) == 37


def test_a_regression_has_no_accuracy() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=()), loss=MeanSquaredError(), metrics=(MeanAbsoluteError(),))
    on_data = config.on_data(1, 1)
    targets = np.arange(5, dtype=np.float32)
    split = train.DeviceSplit(np.ones((5, 3), np.float32), targets)
    state = train.init_state(on_data, split.inputs[:1])
    params = jax.tree.map(jnp.zeros_like, state.params)
    sums = train.evaluate(on_data, params, {}, split, train.zero_sums(on_data, state, split))
    assert figures(config, jax.device_get(sums)) == {"loss": 6.0, "mean_absolute_error": 2.0}


CASES, ROWS, CLASSES = 1000, 24, (2, 7)


def random_cases(classes: int) -> tuple[Any, Any, Any]:
    """Logits, labels of which some classes are absent, and how many of the rows are examples."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(scale=3, size=(CASES // 2, ROWS, classes)).astype(np.float32)
    labels = np.minimum(rng.integers(0, classes, (CASES // 2, ROWS)), rng.integers(0, classes, (CASES // 2, 1)))
    return logits, labels.astype(np.int32), rng.integers(1, ROWS + 1, CASES // 2)


OF_CASES = (
    Precision(),
    Precision(label=1),
    Recall(),
    Recall(label=1),
    F1(),
    F1(label=0),
    CalibrationError(),
    BrierScore(),
    Accuracy(),
    TopK(k=2),
)


def test_every_metric_that_ships_is_compared_with_scikit_learn() -> None:
    assert {metric.kind for metric in (*OF_CASES, MeanAbsoluteError())} == {*kinds(Metric)}


@pytest.mark.parametrize("classes", CLASSES)
def test_figures_are_those_of_scikit_learn_on_1000_random_cases(classes: int) -> None:
    """As `record_sklearn_metrics.py` has written them down."""
    logits, labels, rows = random_cases(classes)
    recorded = np.load(Path(__file__).with_name("sklearn_metrics.npz"))
    for metric in (*OF_CASES, MeanAbsoluteError()):
        targets = logits[..., ::-1] if isinstance(metric, MeanAbsoluteError) else labels
        each = jax.jit(jax.vmap(metric.of_examples))(logits, targets)
        for case, examples in enumerate(rows):
            sums = jax.tree.map(lambda leaf: leaf[case, :examples].sum(axis=0, dtype=np.float32), jax.device_get(each))  # noqa: B023
            expected = float(recorded[f"{metric.name}_of_{classes}"][case])
            # Sums of at most 24 numbers in float32, most of them probabilities.
            assert metric.result(sums, examples) == pytest.approx(expected, abs=2e-6, rel=2e-6), (metric.name, case)


def test_a_class_that_is_not_there_is_refused_and_each_figure_has_a_name_of_its_own() -> None:
    with refused(ConfigError, "metrics", 10):  # Before a run begins.
        check_network(ExperimentConfig(metrics=Recall(label=10)), MNIST)
    assert [metric.name for metric in OF_CASES[:6]] == ["precision", "precision_1", "recall", "recall_1", "f1", "f1_0"]
    smaller_is_better = {metric.kind for metric in OF_CASES if not metric.larger_is_better}
    assert smaller_is_better == {"calibration_error", "brier_score"}
    config = ExperimentConfig(metrics=OF_CASES, best_by="calibration_error")
    assert config.score({"val_calibration_error": 0.25}) == 0.25


def test_all_sums_have_the_same_bits_on_1_2_and_4_devices() -> None:
    config = ExperimentConfig(model=MLP(hidden_sizes=()), metrics=OF_CASES, batch_size=16, grad_shards=4)
    on_data = config.on_data(10, 1)
    rng = np.random.default_rng(0)
    split = train.DeviceSplit(rng.integers(0, 256, (37, 4, 4, 1), np.uint8), rng.integers(0, 10, 37, np.int32))
    state = train.init_state(on_data, split.inputs[:1])
    found = []
    for devices in (1, 2, 4):
        mesh = shards.make_mesh(jax.devices()[:devices])
        zero = train.zero_sums(on_data, state, split)
        whole = shards.replicate((on_data, state.params, split, zero), mesh)
        found.append(jax.device_get(train.evaluate(*whole[:2], {}, *whole[2:], mesh=mesh)))
    assert found[0]["counts_of_classes"]["labels"].tolist() == np.bincount(split.targets, minlength=10).tolist()
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)
