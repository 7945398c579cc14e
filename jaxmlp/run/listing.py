"""The runs beside each other: how each stands, in which order, and in which values they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp.errors import RunError
from jaxmlp.fields import dotted
from jaxmlp.run import checkpoint, sums
from jaxmlp.run.directory import CHECKPOINTS, SUMS, RunDirectory
from jaxmlp.run.record import ENDS

SMALL = 1 << 20
"""Bytes of the largest file that a list of runs hashes."""


class Listed(NamedTuple):
    """A run, as a list of runs shows it; of one that cannot be read nothing is known but the `problem`."""

    run_dir: str
    status: str
    seed: int | None = None
    epochs: int = 0
    """Done so far."""
    val_loss: float | None = None
    """Of the last epoch."""
    test_accuracy: float | None = None
    test_loss: float | None = None
    train_s: float | None = None
    params_sha256: str | None = None
    config: dict[str, Any] | None = None
    """Values as JSON types."""
    facts: dict[str, Any] | None = None
    """What the manifest tells of versions, flags and devices."""
    problem: str = ""
    """Why it cannot be read, or which file is not as the run left it."""


def read(path: Path) -> Listed:
    """The run in the folder `path`; one that cannot be read, or is not as it was left, is `damaged`.

    Small files are hashed, and of checkpoints the headers are read: a list of runs is to be fast. `verify` hashes all.
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
    """Which file of an ended run is not as it was left, as far as a quick look tells."""
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
                return f"{name}: its SHA-256 is not the one in {SUMS}"
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
"""What runs are sorted by, the best first; runs without the figure last. `begun` keeps the order they are given in."""


def ordered(runs: Iterable[Listed], by: str) -> list[Listed]:
    """The runs by one of `ORDERS`."""
    key = ORDERS[by]
    return sorted(runs, key=key) if key else list(runs)


def different_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The dotted fields in which the configs differ, each with the value of every config; none where it has no such."""
    flat = [dotted(config) for config in configs]
    names = dict.fromkeys(name for values in flat for name in values)
    found = {name: [values.get(name) for values in flat] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}
