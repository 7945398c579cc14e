"""Orbax: parameters and variables as a checkpoint folder of the JAX ecosystem."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlp.errors import RunError, UsageError
from jaxmlp.run import files
from jaxmlp.run.digest import leaves, restore
from jaxmlp.trained.inference import Model


def _checkpointer() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise UsageError("--format orbax needs orbax-checkpoint: pip install 'jaxmlp[orbax]'") from error
    return orbax.checkpoint.StandardCheckpointer()


def write(path: Path, model: Model) -> None:
    """Write the tree `{"Dense_0": {"bias", "kernel"}, ...}` to a new folder.

    Other collections of the network are stored under their names, such as `batch_stats`.

    Raises:
        DiskError: The folder could not be written.
        RunError: The path exists already.
        UsageError: orbax is not installed.
    """
    if os.path.lexists(path):
        raise RunError(f"{path} already exists: remove it, or name another folder with --out.")
    with files.trying_to(f"write {path}"):
        temporary = Path(tempfile.mkdtemp(prefix=".jaxmlp-", suffix=".tmp", dir=path.parent))
        try:
            with _checkpointer() as checkpointer:
                checkpointer.save(temporary.resolve() / "params", model.tensors())
            for each in temporary.rglob("*"):
                files.sync(each)
            os.rename(temporary / "params", path)
            files.sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def answers(path: Path, model: Model, inputs: Any) -> np.ndarray[Any, Any]:
    """The answers of the folder's tensors in the model's own program."""
    with _checkpointer() as checkpointer:
        try:
            restored = checkpointer.restore(path.resolve(), jax.tree.map(np.asarray, model.tensors()))
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path} is not an Orbax checkpoint of this network: {error}") from error
    return model.with_tensors(restore(model.tensors(), leaves(restored))).answers(inputs)
