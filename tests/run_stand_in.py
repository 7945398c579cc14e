"""A run directory that stands in for a trained one: invented epochs and checkpoints; fixtures that make it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.run.directory import RunDirectory

CONFIG = ExperimentConfig(name="relu_rmsprop", epochs=5)
MANIFEST = {"binding": {"jax": "0.12.0", "x64": False}, "not_binding": {"devices": 8}}
READ_ONLY = os.strerror(errno.EROFS)
"""The system's reason where `refuse` makes it refuse."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a run"


@pytest.fixture
def run(path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(path, CONFIG, MANIFEST) as run:
        yield run


def append_epochs(run: RunDirectory, *epochs: int) -> None:
    for epoch in epochs:
        run.append_epoch({"epoch": epoch, "loss": 1 / epoch}, {"epoch": epoch, "params_sha256": "0" * 64})


def save(run: RunDirectory, step: int, *, best: bool = False) -> Path:
    return run.save_checkpoint(step, {"params/w": np.full(100, step, np.float32)}, {"epoch": step}, best=best)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, name: str = "") -> None:
    """Let the system refuse this call for paths that have the name in them."""
    real = getattr(os, call)

    def refused(path: Any, *rest: Any, **named: Any) -> Any:
        if name in str(path):
            raise OSError(errno.EROFS, READ_ONLY)
        return real(path, *rest, **named)

    monkeypatch.setattr(os, call, refused)
