"""A loaded model is the trained one, bit for bit, and its figures are what they are called."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

import jaxmlp
from jaxmlp import MLP, SGD, CrossEntropy, ExperimentConfig, data, modules, train
from jaxmlp.engine import fitting
from jaxmlp.engine.history import History
from jaxmlp.engine.network import MNIST
from jaxmlp.errors import ConfigError, DataError, RunError
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.trained.inference import Model, evaluate_split, load_model, predict, wilson_interval

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(12, 11), dropout_rate=0, l2=1e-3),
    optimizer=SGD(learning_rate=0.02),
    loss=CrossEntropy(label_smoothing=0.1),
    batch_size=16,
    epochs=6,
)
EXAMPLES = 1100
EVAL_ROWS = ExperimentConfig().eval_rows
"""More than are evaluated at a time, and no multiple of it."""


class Flat(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(10)(images.reshape(images.shape[0], -1))


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 28, 28, 1), np.uint8), rng.integers(0, 10, 64)
    test = (rng.integers(0, 256, (EXAMPLES, 28, 28, 1), np.uint8), rng.integers(0, 10, EXAMPLES))
    return data.from_arrays((images, labels), test, validation=test)


@pytest.fixture(scope="module")
def trained(dataset: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, History]:
    path = tmp_path_factory.mktemp("runs") / "run"
    with RunDirectory.create(path, CONFIG, manifest(CONFIG, dataset)) as run:
        return path, fitting.fit(CONFIG, dataset, run=run)


@pytest.fixture(scope="module")
def loaded(trained: tuple[Path, History]) -> Model:
    return load_model(trained[0])


def test_the_last_checkpoint_has_the_parameters_that_training_ended_with(
    loaded: Model, trained: tuple[Path, History]
) -> None:
    jax.tree.map(np.testing.assert_array_equal, loaded.params, trained[1].state.params)
    assert (loaded.step, loaded.image_shape, loaded.num_classes) == (24, (28, 28, 1), 10)


def test_the_best_checkpoint_is_the_one_of_the_lowest_validation_loss(
    trained: tuple[Path, History], dataset: data.Dataset
) -> None:
    path, history = trained
    lowest = int(np.argmin(history["val_loss"]))
    assert lowest != CONFIG.epochs - 1, "the last is the best too: this test cannot fail"
    best = load_model(path, "best")
    assert best.step == history.records[lowest].steps
    assert evaluate_split(best, dataset.test).loss == history["val_loss"][lowest]
    assert load_model(path, best.step).step == load_model(path, str(best.step)).step == best.step


def test_evaluation_is_over_all_examples_with_the_configs_loss(
    loaded: Model, trained: tuple[Path, History], dataset: data.Dataset
) -> None:
    found = evaluate_split(loaded, dataset.test)
    history = trained[1]
    assert (found.loss, found.accuracy, found.examples) == (history.test_loss, history.test_accuracy, EXAMPLES)
    labels, answers = dataset.test.targets, loaded.probabilities(dataset.test.inputs).argmax(axis=1)
    assert len(np.unique(answers)) > 3, "it answers hardly any class: this test shows little"
    assert found.confusion is not None
    for true, predicted in np.ndindex(10, 10):
        assert found.confusion[true, predicted] == np.sum((labels == true) & (answers == predicted))
    for score in found.per_class:
        own, answered = labels == score.label, answers == score.label
        assert (score.examples, score.correct) == (own.sum(), (own & answered).sum())
        assert score.recall == np.mean(answers[own] == score.label)
        assert score.precision == (np.mean(labels[answered] == score.label) if answered.any() else None)


def test_a_class_without_examples_has_no_recall(loaded: Model, dataset: data.Dataset) -> None:
    zeros = dataset.test.targets == 0
    found = evaluate_split(loaded, data.Split(dataset.test.inputs[zeros], dataset.test.targets[zeros]))
    assert [score.recall is None for score in found.per_class] == [False, *[True] * 9]


@pytest.mark.parametrize("n", [1, 1024, 1025])
def test_probabilities_are_those_of_each_image_alone_and_sum_to_one(
    n: int, loaded: Model, dataset: data.Dataset
) -> None:
    images = dataset.test.inputs[:n]
    found = loaded.probabilities(images)
    assert found.shape == (n, 10) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)  # ten float32 roundings
    last = loaded.probabilities(images[-1:])
    np.testing.assert_allclose(found[-1:], last, rtol=1e-6)  # rows of a product may round with their place
    scaled = images.astype(np.float32) * np.float32(CONFIG.data.pixel_scale)
    logits = loaded.module.apply({"params": loaded.params}, jnp.asarray(scaled))
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-5)  # as above, through three layers


def test_bfloat16_probabilities_are_the_softmax_of_the_models_logits() -> None:
    """At the size at which jaxlib 0.12 computed NaN for both in one program."""
    config = ExperimentConfig(precision="bfloat16")
    params = train.init_state(config.on_data(10, 1), MNIST.zeros(1).inputs).params
    loaded = Model(config=config, facts=MNIST, params=params, variables={}, step=0)
    images = np.random.default_rng(0).integers(0, 256, (EVAL_ROWS, 28, 28, 1), np.uint8)
    scaled = images.astype(np.float32) * np.float32(config.data.pixel_scale)
    logits = jax.jit(partial(modules.apply_eval, loaded.module))(params, {}, scaled)
    # The same logits; a softmax in float32 is good to a few units of its last place.
    np.testing.assert_allclose(loaded.probabilities(images), jax.nn.softmax(logits), rtol=1e-5)


def test_no_images_have_no_probabilities(loaded: Model) -> None:
    assert loaded.probabilities(np.zeros((0, 28, 28, 1), np.uint8)).shape == (0, 10)


def test_one_program_serves_every_number_of_images(
    loaded: Model, dataset: data.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.probabilities(dataset.test.inputs[:1])
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        for n in (5, EVAL_ROWS, EXAMPLES):
            loaded.probabilities(dataset.test.inputs[:n])
    assert not [record for record in caplog.records if "Compiling" in record.message]


def test_predictions_are_the_likeliest_classes_in_order(loaded: Model, dataset: data.Dataset) -> None:
    images = dataset.test.inputs[:20]
    for answer, row in zip(predict(loaded, images, top=4), loaded.probabilities(images), strict=True):
        assert [label for label, _ in answer.top] == sorted(range(10), key=lambda label: -row[label])[:4]
        assert answer.top == tuple((label, float(row[label])) for label, _ in answer.top)
        assert (answer.label, answer.probability) == answer.top[0]
    assert len(predict(loaded, images, top=99)[0].top) == 10


def test_images_of_another_shape_or_scale_are_refused(loaded: Model) -> None:
    with refused(DataError, "[n, 28, 28, 1]", "[n, 784]", (2, 27, 28, 1)):
        loaded.probabilities(np.zeros((2, 27, 28, 1), np.uint8))
    with refused(DataError, 255, 1, "--data.pixel-scale 1"):
        loaded.probabilities(np.full((2, 28, 28, 1), 0.5, np.float32))


def test_labels_without_a_class_are_refused(loaded: Model) -> None:
    split = data.Split(np.zeros((1, 28, 28, 1), np.uint8), np.array([10], np.int32))
    with refused(DataError, "[0, 9]", 10):
        evaluate_split(loaded, split)


def test_a_run_of_another_module_is_loaded_with_the_experiment_in_hand(dataset: data.Dataset, tmp_path: Path) -> None:
    config = ExperimentConfig(model=Flat(), batch_size=16, epochs=1)
    history = fitting.fit(config, dataset, out=tmp_path / "run")
    loaded = jaxmlp.load_model(tmp_path / "run", experiment=config)
    assert evaluate_split(loaded, dataset.test).loss == history.test_loss
    with refused(RunError, "Flat"):
        load_model(tmp_path / "run")


def load_checkpoint(path: Path) -> dict[str, np.ndarray]:
    found = RunDirectory.open(path, write=False).newest_checkpoint(pytest.fail)
    assert found
    return found.arrays


def test_a_checkpoint_that_is_not_there_is_refused(
    tmp_path: Path, trained: tuple[Path, History], dataset: data.Dataset
) -> None:
    with refused(ConfigError, "checkpoint", "last, best, ema", "worst"):
        load_model(trained[0], "worst")
    with RunDirectory.create(tmp_path / "a run", CONFIG, manifest(CONFIG, dataset)) as run:
        with refused(RunError, run.path, f"jaxmlp train --resume '{run.path}'"):
            load_model(run)
        run.save_checkpoint(24, load_checkpoint(trained[0]), {})
        with refused(RunError, run.path):
            load_model(run, "best")


@pytest.mark.parametrize(("correct", "examples"), [(9805, 10000), (0, 50), (50, 50), (1, 2), (996, 1000)])
def test_wilsons_interval_holds_every_p_that_the_count_is_no_more_than_z_deviations_from(
    correct: int, examples: int
) -> None:
    low, high = wilson_interval(correct, examples)
    share = correct / examples
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            deviations = abs(share - end) / math.sqrt(end * (1 - end) / examples)
            assert deviations == pytest.approx(1.959963984540054, rel=1e-9)  # float64
    assert (low == 0) == (correct == 0) and (high == 1) == (correct == examples)
