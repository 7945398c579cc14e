"""What tests of sweeps share: an experiment, as a config and as a file, and answers without their times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxmlp.config import SGD, Cosine, DataConfig, ExperimentConfig, ModelConfig

CONFIG = ExperimentConfig(
    model=ModelConfig(hidden_sizes=(12,), dropout_rate=0.3),
    data=DataConfig(validation="test"),
    optimizer=SGD(learning_rate=0.1, momentum=0.9, schedule=Cosine()),
    batch_size=16,
    epochs=2,
)
TIMES = ("train_s", "compile_s", "total_s", "seconds")
EXPERIMENT = """
from jaxmlp import DataConfig, ExperimentConfig, ModelConfig

CONFIG = ExperimentConfig(
    name="small", model=ModelConfig(hidden_sizes=(32,)), data=DataConfig(name="mnist_5k"), epochs=4, batch_size=16
)
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.py"
    path.write_text(EXPERIMENT)
    return path


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list | tuple) else value
