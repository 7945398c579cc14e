"""From Python, a trained model is asked by its history, its run, or itself, and answers the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

import jaxmlp
from jaxmlp import ConfigError, DataConfig, DataError, ExperimentConfig, ModelConfig, RunError, data, fit, summary
from jaxmlp.history import EpochRecord, History
from jaxmlp.train import TrainState

CONFIG = ExperimentConfig(model=ModelConfig(hidden_sizes=(16,)), data=DataConfig(name="mnist_5k"), epochs=1)


@pytest.fixture(scope="module")
def history() -> History:
    return fit(CONFIG)


def test_a_history_is_evaluated_as_fit_evaluated_it(history: History) -> None:
    found = jaxmlp.evaluate(history)
    assert (found.loss, found.accuracy, found.examples) == (history.test_loss, history.test_accuracy, 1000)
    given = jaxmlp.evaluate(jaxmlp.load_model(history), data.load(CONFIG.data).test)
    assert (given.split, given.loss, given.accuracy) == ("given", found.loss, found.accuracy)


def test_a_run_is_evaluated_and_asked_by_its_folder(two_runs: tuple[Path, Path]) -> None:
    result = json.loads((two_runs[0] / "manifest.json").read_text())["result"]
    assert jaxmlp.evaluate(two_runs[0]).accuracy == result["test_accuracy"]
    assert jaxmlp.evaluate(str(two_runs[0]), "train").examples == 4000


def test_predict_takes_one_image_or_many_in_any_shape_that_data_takes(history: History) -> None:
    images, labels = data.load(CONFIG.data).test
    found = jaxmlp.predict(history, images[:50])
    assert [each.label for each in jaxmlp.predict(history, images[:50, ..., 0])] == [each.label for each in found]
    assert jaxmlp.predict(history, images[:50].reshape(50, -1)) == found
    assert jaxmlp.predict(history, images[0, ..., 0], top=1)[0].top == found[0].top[:1]
    assert np.mean([each.label for each in found] == labels[:50]) > 0.5


def test_what_cannot_be_asked_says_why(history: History, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split must be test, validation or train, and there, got 'dev'"):
        jaxmlp.evaluate(history, "dev")
    with pytest.raises(RunError, match="is not there"):
        jaxmlp.evaluate(tmp_path / "no")
    with pytest.raises(DataError, match=r"images must be \[n, 28, 28, 1\]"):
        jaxmlp.predict(history, np.zeros((2, 27, 28)))


def test_a_history_of_another_module_asks_for_a_model(history: History, small_dataset: data.Dataset) -> None:
    flat = nn.Sequential((lambda images: images.reshape(len(images), -1), nn.Dense(10)))
    other = fit(CONFIG, small_dataset, module=flat)
    with pytest.raises(ConfigError, match="module must be an MLP"):
        jaxmlp.load_model(other)


def test_a_hook_sees_every_epoch_as_the_history_records_it(small_dataset: data.Dataset) -> None:
    seen: list[tuple[EpochRecord, int]] = []

    def hook(record: EpochRecord, state: TrainState) -> None:
        seen.append((record, int(state.step)))

    found = fit(CONFIG, small_dataset, hooks=[hook])
    assert seen == [(record, record.steps) for record in found.records]


def test_a_notebook_shows_a_history_and_a_network(history: History) -> None:
    table = history._repr_html_()
    assert "experiment, seed 0, finished: test loss" in table
    assert table.count("<tr>") == 2
    assert f"<td>{history['val_accuracy'][0]:.4f}</td>" in table
    shown = summary(CONFIG)._repr_html_()
    assert shown.startswith("<pre>Model: &quot;experiment&quot;")
    assert re.search(r"Total params: 12,730\b", shown)
