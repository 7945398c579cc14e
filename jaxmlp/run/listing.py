"""How do runs compare? The status of each, their order, and the values that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp.errors import RunError
from jaxmlp.experiment.fields import dotted
from jaxmlp.run import checkpoint, sums
from jaxmlp.run.directory import CHECKPOINTS, SUMS, RunDirectory
from jaxmlp.run.record import ENDS

SMALL = 1 << 20
"""Largest file, in bytes, that a list of runs hashes."""


class Listed(NamedTuple):
    """A run, as a list of runs shows it. If a run cannot be read, only `problem` is known."""

    run_dir: str
    status: str
    seed: int | None = None
    epochs: int = 0
    """Number of epochs done so far."""
    val_loss: float | None = None
    """Validation loss of the last epoch."""
    test_accuracy: float | None = None
    test_loss: float | None = None
    train_s: float | None = None
    params_sha256: str | None = None
    config: dict[str, Any] | None = None
    """Values as JSON types."""
    facts: dict[str, Any] | None = None
    """Versions, flags and devices from the manifest."""
    problem: str = ""
    """Why the run cannot be read, or which file has changed since the run left it."""


def read(path: Path) -> Listed:
    """The run in the folder `path`. A run that cannot be read, or has changed, is `damaged`.

    Only small files are hashed, and only the headers of checkpoints are read, because a list of runs must be fast.
    `verify` hashes everything.
    """
    try:
        run = RunDirectory.open(path, write=False)
        epochs, digests = run.epochs(), run.digests()
    except RunError as error:
        return Listed(str(path), "damaged", problem=str(error))
    result, problem = run.manifest["result"] or {}, _damage(run)
    kinds = (run.manifest.get(kind) or {} for kind in ("not_binding", "binding"))
    facts = {name: value for kind in kinds for name, value in kind.items() if name != "config_sha256"}
    return Listed(
        run_dir=str(path),
        status="damaged" if problem else run.status,
        seed=run.plain_config["seed"],
        epochs=len(epochs),
        val_loss=epochs[-1].get("val_loss") if epochs else None,
        test_accuracy=result.get("test_accuracy"),
        test_loss=result.get("test_loss"),
        train_s=result.get("train_s"),
        params_sha256=digests[-1].get("params_sha256") if digests else None,
        config=run.plain_config,
        facts=facts,
        problem=problem,
    )


def _damage(run: RunDirectory) -> str:
    """The file of an ended run that has changed, as far as a quick look can tell; else an empty string."""
    if run.status not in ENDS or not (run.path / SUMS).exists():
        return f"{SUMS} is missing" if run.status == "finished" else ""
    try:
        for name, sha256 in sums.read(run.path / SUMS).items():
            path = run.path / name
            if not path.is_file() or ".." in path.parts or not path.is_relative_to(run.path):
                return f"{name} is missing"
            if name.startswith(CHECKPOINTS):
                checkpoint.load_meta(path)
            elif path.stat().st_size <= SMALL and sums.sha256(path) != sha256:
                return f"{name}: its SHA-256 differs from {SUMS}"
    except (OSError, RunError) as error:
        return str(error)
    return ""


def _lowest(name: str) -> Callable[[Listed], Any]:
    return lambda run: math.inf if getattr(run, name) is None else getattr(run, name)


ORDERS: Mapping[str, Callable[[Listed], Any] | None] = {
    "begun": None,
    "name": lambda run: Path(run.run_dir).name,
    "test_accuracy": lambda run: -(run.test_accuracy or 0),
    "test_loss": _lowest("test_loss"),
    "val_loss": _lowest("val_loss"),
    "train_s": _lowest("train_s"),
}
"""Sort keys, which put the best run first and runs without the figure last. `begun` keeps the given order."""


def ordered(runs: Iterable[Listed], by: str) -> list[Listed]:
    """The runs, sorted by a key of `ORDERS`."""
    key = ORDERS[by]
    return sorted(runs, key=key) if key else list(runs)


def different_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted fields in which the configs differ, with the value in every config; None if a config lacks it."""
    flat = [dotted(config) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values)
    found = {name: [values.get(name) for values in flat] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}
