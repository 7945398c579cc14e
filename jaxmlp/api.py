"""Trained models from Python, by whatever people have in hand: a history, a model, or the name of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from jaxmlp import data, inference, runtime
from jaxmlp.errors import ConfigError
from jaxmlp.experiment import Experiment
from jaxmlp.history import History
from jaxmlp.inference import Evaluation, Model, Prediction
from jaxmlp.opening import open_data
from jaxmlp.run.find import find_run

Trained: TypeAlias = History | Model | str | Path
"""What `fit` gave back, a model, or a run: its folder, or `last`."""


def load_model(trained: Trained, checkpoint: str | int = "last", *, experiment: Experiment = ()) -> Model:
    """The model.

    Args:
        trained: What to load.
        checkpoint: Of a run: `last`, `best` (as the config's `best_by` says), `ema` (the last moving average), or the
            step of one that is there.
        experiment: The user's own code that a run was made with: the experiment's file, several files, or an
            `ExperimentConfig` in hand. Code in a run directory is never run.

    Raises:
        CodeError: The run was made with code of the user's own, which is not given.
        ConfigError: It is nothing trained, or there is no such checkpoint.
        RunError: There is no such run, or it is damaged.
    """
    if isinstance(trained, str | Path):
        with runtime.settings():
            return inference.load_model(find_run(str(trained)), checkpoint, experiment=experiment)
    if not isinstance(trained, History | Model):
        wanted = "what fit returned, a model, or a run's folder"
        raise ConfigError("trained", f"must be {wanted}, such as evaluate(fit(config)); got {type(trained).__name__}")
    if checkpoint != "last":
        raise ConfigError("checkpoint", "must be last, as no others are kept. Train with fit(config, out=FOLDER)")
    return trained if isinstance(trained, Model) else inference.model_of(trained)


def evaluate(
    trained: Trained,
    split: str | data.Split | data.Pair = "test",
    *,
    dataset: data.Dataset | None = None,
    experiment: Experiment = (),
) -> Evaluation:
    """Loss, accuracy with its interval, confusion matrix and class scores on all examples of a split.

    Args:
        trained: What to score.
        split: `test`, `validation`, `train` or another of the data it was trained on; or other examples with their
            targets, as a pair of arrays or frames.
        dataset: The data it was trained on, where that was given in Python; by default what its config names.
        experiment: As in `load_model`.

    Raises:
        ConfigError, RunError: As `load_model`; or there is no such split, or the data is not that of the training.
        DataError: The data cannot be had.
    """
    model = load_model(trained, experiment=experiment)
    if isinstance(split, data.Split):
        return inference.evaluate(model, split, "given")
    if not isinstance(split, str):
        given = list(split)
        given[:1] = [model.given(each) for each in given[:1]]
        classes = model.num_classes if model.facts.classes else None
        return inference.evaluate(model, data.as_split(given, classes), "given")
    if model.run:
        dataset = open_data(model.run, dataset)
    elif not (dataset := model.dataset or dataset):
        raise ConfigError("dataset", "must be given: the model is of no run that tells of its data")
    return inference.evaluate(model, dataset.wanted(split), split)


def predict(trained: Trained, images: Any, top: int = 3, *, experiment: Experiment = ()) -> list[Prediction]:
    """The likeliest classes of each image or other example, with their probabilities; or the numbers it stands for.

    Args:
        trained: What to ask.
        images: One or many, as `jaxmlp.data.as_images` takes them; pixels as in training, 0 to 255 for MNIST. Of a
            model of other inputs, many, as `jaxmlp.data.as_inputs` takes them.
        top: Classes an image, at most.
        experiment: As in `load_model`.

    Raises:
        ConfigError, RunError: As `load_model`.
        DataError: Images of another shape, or pixels of 0 to 1 for a model that divides by 255.
    """
    model = load_model(trained, experiment=experiment)
    return inference.predict(model, model.given(images), top)
