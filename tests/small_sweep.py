"""What tests of sweeps share: an experiment, as a config and as a file, and answers without their times."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlp import MLP, SGD, Cosine, DataConfig, ExperimentConfig, data
from jaxmlp.engine.fitting import fit
from jaxmlp.run.directory import RunDirectory
from jaxmlp.sweep import load
from jaxmlp.sweep.progress import SweepProgress
from jaxmlp.system.signals import Stop

CONFIG = ExperimentConfig(
    model=MLP(hidden_sizes=(12,), dropout_rate=0.3),
    data=DataConfig(validation="test"),
    optimizer=SGD(learning_rate=0.1, momentum=0.9, schedule=Cosine()),
    batch_size=16,
    epochs=2,
)
VARY = {"optimizer.learning_rate": [0.05, 0.1], "optimizer.momentum": [0.0, 0.9]}
TIMES = ("train_s", "compile_s", "total_s", "seconds")
EXPERIMENT = """
from jaxmlp import DataConfig, ExperimentConfig, MLP

CONFIG = ExperimentConfig(
    name="small", model=MLP(hidden_sizes=(32,)), data=DataConfig(name="mnist_5k"), epochs=4, batch_size=16
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


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (110, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, 110, np.int32)
    test = (images[70:], labels[70:])
    return data.from_arrays((images[:70], labels[:70]), test, validation=test)


class Interrupt(SweepProgress):
    """Sends a stop signal after so many chunks, as a user would."""

    def __init__(self, after: int | None = None) -> None:
        self.stop = Stop()
        self.left = after
        self.notes: list[str] = []

    def updates_done(self, *_: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.stop.signal = signal.SIGTERM

    def note(self, text: str) -> None:
        self.notes.append(text)


def assert_kept_runs(path: Path, dataset: data.Dataset, tmp_path: Path) -> None:
    for lane in load(path)[0].lanes()[::3]:
        with RunDirectory.create(tmp_path / f"solo-{lane.index}", lane.config, {}) as solo:
            fit(lane.config, dataset, run=solo, devices=1)
        with RunDirectory.open(path / "runs" / f"{lane.index:04d}-s{lane.seed}", write=False) as kept:
            assert kept.status == "finished"
            assert kept.digests() == solo.digests()
            assert without_times(kept.epochs()) == without_times(solo.epochs())
            assert without_times(kept.manifest["result"]) == without_times(solo.manifest["result"])
            for mine, other in [
                (kept.checkpoints.best(), solo.checkpoints.best()),
                (kept.newest_checkpoint(pytest.fail), solo.newest_checkpoint(pytest.fail)),
            ]:
                assert mine and other and mine.step == other.step and mine.arrays.keys() == other.arrays.keys()
                assert all(np.array_equal(mine.arrays[name], other.arrays[name]) for name in mine.arrays)
