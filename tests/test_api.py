"""From Python, a trained model is asked by its history, its run, or itself, and answers the same."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import assert_names, refused

import jaxmlp
from jaxmlp import MLP, ConfigError, DataConfig, DataError, ExperimentConfig, RunError, UsageError, data, fit, summary
from jaxmlp.engine.history import History
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep.start import sweep

DIGITS = DataConfig(name="mnist_5k", validation="test")
CONFIG = ExperimentConfig(model=MLP(hidden_sizes=(16,)), data=DIGITS, epochs=1)


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
    images, labels, _ = data.load(CONFIG.data).test
    found = jaxmlp.predict(history, images[:50])
    assert [each.label for each in jaxmlp.predict(history, images[:50, ..., 0])] == [each.label for each in found]
    assert jaxmlp.predict(history, images[:50].reshape(50, -1)) == found
    assert jaxmlp.predict(history, images[0, ..., 0], top=1)[0].top == found[0].top[:1]
    assert np.mean([each.label for each in found] == labels[:50]) > 0.5


def test_what_cannot_be_asked_says_why(history: History, tmp_path: Path) -> None:
    with refused(ConfigError, "split", "dev"):
        jaxmlp.evaluate(history, "dev")
    with refused(RunError, tmp_path / "no"):
        jaxmlp.evaluate(tmp_path / "no")
    with pytest.raises(DataError):
        jaxmlp.predict(history, "a file")


@pytest.mark.parametrize(
    ("field", "values", "hooks"),
    [
        ("hooks", {}, print),
        ("optimizer", {"optimizer": optax.lbfgs()}, ()),
        ("augmentation.0", {"augmentation": lambda batch: batch}, ()),
        ("augmentation.1", {"augmentation": [jaxmlp.Noise(), lambda key, batch: None]}, ()),
    ],
)
def test_what_training_could_not_call_is_refused_by_its_field_before(
    field: str, values: Any, hooks: Any, small_dataset: data.Dataset
) -> None:
    with refused(ConfigError, field):
        fit(dataclasses.replace(CONFIG, **values), small_dataset, hooks=hooks)


def test_a_part_takes_no_value_without_its_name() -> None:
    with refused(TypeError, "Adam(learning_rate=0.1)"):
        jaxmlp.Adam(0.1)  # type: ignore[call-arg]


def with_model(model: nn.Module) -> ExperimentConfig:
    return dataclasses.replace(CONFIG, model=model)


def flat(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1)


def test_a_history_of_another_module_and_other_data_is_asked_of_these(small_dataset: data.Dataset) -> None:
    found = fit(with_model(nn.Sequential((flat, nn.Dense(12)))), small_dataset)
    scored = jaxmlp.evaluate(found)
    assert (scored.examples, scored.loss, scored.accuracy) == (80, found.test_loss, found.test_accuracy)
    answers = jaxmlp.predict(found, small_dataset.test.inputs)
    assert np.mean([each.label for each in answers] == small_dataset.test.targets) == found.test_accuracy


def test_a_module_of_lists_trains_as_one_of_tuples_does(small_dataset: data.Dataset) -> None:
    inner = nn.Sequential([nn.Dense(8), nn.relu])
    listed = fit(with_model(nn.Sequential([flat, inner, nn.Dense(10)])), small_dataset)
    of_tuples = nn.Sequential((flat, nn.Sequential((nn.Dense(8), nn.relu)), nn.Dense(10)))
    assert listed.params_sha256 == fit(with_model(of_tuples), small_dataset).params_sha256
    assert summary(with_model(nn.Sequential([flat, nn.Dense(10)]))).params == 7850


class Scaled(nn.Module):
    scales: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        logits: jax.Array = nn.Dense(10)(flat(images)) * self.scales
        return logits


def test_a_module_that_has_no_hash_says_why(small_dataset: data.Dataset) -> None:
    with refused(ConfigError, "model", "scales", "ndarray"):
        fit(with_model(Scaled(np.ones(10, np.float32))), small_dataset)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential((flat, nn.Dense(5))), [1, 5]),
        (nn.Dense(10), [1, 28, 28, 10]),
        (nn.Sequential((jnp.ravel, nn.Dense(10))), [10]),
    ],
)
def test_a_module_without_a_logit_for_each_image_and_class_is_refused(
    module: nn.Module, shape: list[int], small_dataset: data.Dataset, tmp_path: Path
) -> None:
    with refused(ConfigError, "model", [1, 10], shape):
        fit(with_model(module), small_dataset, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with refused(ConfigError, "model", [1, 10], shape):
        sweep(with_model(module), small_dataset, seeds=[0])


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (1, 1), (2, 1), ("auto", 1)])
def test_fit_tells_as_much_as_it_is_asked_to(
    verbose: Any, lines: int, small_dataset: data.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(CONFIG, small_dataset, verbose=verbose)
    said = capsys.readouterr().out.splitlines()
    epochs = [line for line in said if not line.startswith("compiling")]  # On a slow machine, this comes first.
    assert len(epochs) == lines and all(line.startswith("Epoch 1/1 - ") for line in epochs)


@pytest.mark.parametrize("verbose", [3, "yes", True])
def test_fit_refuses_to_be_as_verbose_as_nothing(verbose: Any, small_dataset: data.Dataset) -> None:
    with refused(ConfigError, "verbose", verbose):
        fit(CONFIG, small_dataset, verbose=verbose)


def test_fit_keeps_a_run_in_a_folder_as_train_does(history: History, tmp_path: Path) -> None:
    kept = fit(CONFIG, out=tmp_path / "run")
    assert kept.params_sha256 == history.params_sha256
    assert jaxmlp.evaluate(tmp_path / "run").accuracy == history.test_accuracy
    assert jaxmlp.verify(tmp_path / "run").damaged == ()
    with refused(RunError, tmp_path / "run"):
        fit(CONFIG, out=str(tmp_path / "run"))
    with RunDirectory.open(tmp_path / "run", write=True) as run:
        assert fit(run.config, run=run).params_sha256 == history.params_sha256


def test_a_figure_that_there_is_not_is_told_with_the_nearest(history: History) -> None:
    assert history["epoch"] == [1]
    with refused(KeyError, "val_acc", "val_accuracy"):
        _ = history["val_acc"]


def test_what_is_printed_is_a_line_or_a_table(history: History) -> None:
    accuracy = f"{history.test_accuracy:.4f}"
    assert_names(repr(history), "experiment", "finished", f"{history.test_loss:.4f}", accuracy)
    assert_names(repr(jaxmlp.load_model(history)), "experiment", "[n, 28, 28, 1]", 10, 32)
    assert_names(str(jaxmlp.evaluate(history)), accuracy)


def test_a_notebook_shows_a_history_a_network_a_model_and_its_scores(
    history: History, small_dataset: data.Dataset
) -> None:
    model = jaxmlp.load_model(history)
    assert model._repr_html_() == summary(CONFIG)._repr_html_()
    scores = jaxmlp.evaluate(model, small_dataset.test)
    assert scores._repr_html_() == f"<pre>{scores}</pre>"
    epochs = fit(dataclasses.replace(CONFIG, epochs=3), small_dataset)
    page = epochs._repr_html_()
    assert page.count("<polyline") == 2 and page.count("<tr>") == 4
    assert_names(page, f"{epochs['loss'][0]:.4f}", f"{epochs['loss'][-1]:.4f}")
    table = history._repr_html_()
    assert table.count("<tr>") == 2
    assert f"<td>{history['val_accuracy'][0]:.4f}</td>" in table
    assert_names(summary(CONFIG)._repr_html_(), "&quot;experiment&quot;", "12,730")


class Frame:
    """What NumPy sees of a pandas or polars frame, or of one of its columns."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.values.astype(dtype or self.values.dtype)

    def __len__(self) -> int:
        return len(self.values)


def test_fit_evaluate_and_a_model_take_arrays_and_frames(small_dataset: data.Dataset) -> None:
    images, labels, _ = small_dataset.train
    config = dataclasses.replace(CONFIG, data=DataConfig(), batch_size=32)
    found = fit((images, labels), config)
    parts = (found.dataset.train, found.dataset.validation, found.dataset.test)
    assert [len(part.targets) for part in parts if part] == [259, 29, 32]
    np.testing.assert_array_equal(found.dataset.test.inputs, images[288:])
    assert fit(config, (Frame(images.reshape(320, -1)), Frame(labels))).params_sha256 == found.params_sha256
    pairs = (images[:288], labels[:288]), (images[288:], labels[288:])
    assert fit(config, pairs).params_sha256 == found.params_sha256
    scored = jaxmlp.evaluate(found, (Frame(images[288:, ..., 0]), Frame(labels[288:])))
    assert (scored.loss, scored.accuracy, scored.split) == (found.test_loss, found.test_accuracy, "given")
    model = jaxmlp.load_model(found)
    logits, probabilities = model.logits(Frame(images[:5].reshape(5, -1))), model.probabilities(images[:5, ..., 0])
    np.testing.assert_array_equal(logits.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.logits(images[0]), model.logits(images[:1]))


def test_the_best_checkpoint_is_loaded_by_its_name(two_runs: tuple[Path, Path], history: History) -> None:
    with RunDirectory.open(two_runs[0], write=False) as run:
        best = run.checkpoints.best()
    assert best and jaxmlp.load_model(two_runs[0], "best").step == best.step
    assert jaxmlp.load_model(two_runs[0], checkpoint=best.step).step == best.step
    with refused(ConfigError, "checkpoint", "best", "fit(config, out=FOLDER)"):
        jaxmlp.load_model(history, "best")


def test_a_wrong_call_says_the_right_one(history: History) -> None:
    images, labels, _ = data.load(CONFIG.data).test
    call: Any
    for call, *named in [
        (lambda: fit(images, labels), "config", "fit((inputs, targets), config)"),  # type: ignore[arg-type]
        (lambda: fit("quickstart"), "config", "ExperimentConfig", "str"),  # type: ignore[arg-type]
        (lambda: summary("run"), "config", "summary(load_model(RUN).config)", "str"),  # type: ignore[arg-type]
        (lambda: fit(run="runs/a", out="runs/b"), "out"),
        (lambda: jaxmlp.evaluate(CONFIG), "trained", "evaluate(fit(config))", "ExperimentConfig"),  # type: ignore[arg-type]
    ]:
        with refused(ConfigError, *named):
            call()
    with refused(DataError, "dataset", "ndarray"):
        fit(CONFIG, images)  # type: ignore[arg-type]
    with refused(DataError, "given", 3, 2):
        jaxmlp.evaluate(history, (images[:3], labels[:2]))


def test_a_history_is_a_plot_and_a_frame(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = history.plot()
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "accuracy"]
    lines = figure.axes[1].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [history["accuracy"], history["val_accuracy"]]
    made: dict[str, Any] = {}

    class DataFrame:
        def __init__(self, rows: Any) -> None:
            made["rows"] = rows

        def set_index(self, name: str) -> str:
            return name

    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=DataFrame))
    assert history.to_pandas() == "epoch" and made["rows"] == [history.records[0].line()]
    for module, call in (("pandas", history.to_pandas), ("matplotlib", history.plot)):
        monkeypatch.setitem(sys.modules, module, None)
        with refused(UsageError, module):
            call()
