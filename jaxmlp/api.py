"""Trained models from Python, by whatever people have in hand: a history, a model, or the name of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxmlp import data, inference, runtime
from jaxmlp.errors import ConfigError
from jaxmlp.experiment import Experiment
from jaxmlp.history import History
from jaxmlp.inference import Evaluation, Model, Prediction
from jaxmlp.opening import open_data
from jaxmlp.run.find import find_run

Trained: TypeAlias = History | Model | str | Path
"""What `fit` gave back, a model, or a run: its folder, or `last`."""


def load_model(trained: Trained, *, experiment: Experiment = ()) -> Model:
    """The model: of a run its last.

    Args:
        trained: What to load.
        experiment: The user's own code that a run was made with: the experiment's file, several files, or an
            `ExperimentConfig` in hand. Code in a run directory is never run.

    Raises:
        CodeError: The run was made with code of the user's own, which is not given.
        RunError: There is no such run, or it is damaged.
    """
    runtime.configure()
    if isinstance(trained, Model):
        return trained
    if isinstance(trained, History):
        return inference.model_of(trained)
    return inference.load_model(find_run(str(trained)), experiment=experiment)


def evaluate(
    trained: Trained,
    split: str | data.Split = "test",
    *,
    dataset: data.Dataset | None = None,
    experiment: Experiment = (),
) -> Evaluation:
    """Loss, accuracy with its interval, confusion matrix and class scores on all examples of a split.

    Args:
        trained: What to score.
        split: `test`, `validation` or `train` of the data it was trained on; or other labelled images.
        dataset: The data it was trained on, where that was given in Python; by default what its config names.
        experiment: As in `load_model`.

    Raises:
        ConfigError, RunError: As `load_model`; or there is no such split, or the data is not that of the training.
        DataError: The data cannot be had.
    """
    model = load_model(trained, experiment=experiment)
    if isinstance(split, data.Split):
        return inference.evaluate(model, split, "given")
    if model.run:
        dataset = open_data(model.run, dataset)
    elif not (dataset := model.dataset or dataset):
        raise ConfigError("dataset", "must be given: the model is of no run that tells of its data")
    found = getattr(dataset, split) if split in ("test", "validation", "train") else None
    if found is None:
        raise ConfigError("split", f"must be test, validation or train, and there, got {split!r}")
    return inference.evaluate(model, found, split)


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
    if not model.facts.image_shape:
        return inference.predict(model, data.as_inputs(images, images=False), top)
    array = np.asarray(images)
    if array.shape in (model.image_shape, model.image_shape[:2]):
        array = array[np.newaxis]
    return inference.predict(model, data.as_images(array, shape=model.image_shape), top)
