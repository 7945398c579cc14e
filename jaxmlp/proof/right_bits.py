"""Does this machine compute the right bits? Golden digests of portable trainings, the same for every machine.

A file of `FOLDER` has the digest of an experiment's state after every update: for the quickstart's whole run, and for
the first epoch of both experiments on MNIST.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import numpy as np

from jaxmlp import data, train
from jaxmlp.errors import RunError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.fields import parse_json
from jaxmlp.proof import bits
from jaxmlp.proof.blame import WrongPrimitive, right_state, wrong_primitive
from jaxmlp.proof.experiments import QUICKSTART, REFERENCED
from jaxmlp.proof.training import Training
from jaxmlp.run import files
from jaxmlp.run.digest import digest, leaves
from jaxmlp.run.known import SHA256
from jaxmlp.run.manifest import PROGRAM, manifest

FOLDER = Path(__file__).parents[1] / "references" / "portable"
GOLDEN: Final = {name: dataclasses.replace(config, precision="portable") for name, config in REFERENCED.items()}
"""The experiments that have golden digests, by name."""
BINDING = ("config_sha256", "data_sha256", PROGRAM)


class Golden(NamedTuple):
    """The golden digests of one experiment."""

    binding: dict[str, str]
    order_sha256: str
    """SHA-256 of the first epoch's batch order."""
    states: list[str]
    """SHA-256 of the state after 0, 1, 2, ... updates."""


class WrongUpdate(NamedTuple):
    """The first update whose result is wrong."""

    update: int
    """Number of the update, from 1; 0 is the initial state."""
    leaf: str | None
    """The leaf of the state that is wrong, if the right state could be computed."""
    problem: str
    """What is wrong in the leaf, with both values and their bits."""
    primitive: WrongPrimitive | None = None
    """The primitive that is computed wrongly. None if each primitive is right on its own."""

    def to_plain(self) -> dict[str, Any]:
        """The result as JSON values."""
        found = self._asdict() | {"primitive": None, "shapes": [], "right": None, "here": None, "operation": None}
        return found | (self.primitive._asdict() if self.primitive else {})

    def __str__(self) -> str:
        where = f"update {self.update}" + (f", {self.leaf}" if self.leaf else "")
        said = f"{where}: {self.problem}"
        return f"{said}\n  wrong primitive: {self.primitive}" if self.primitive else said


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsCheck:
    """Result of a comparison with golden digests."""

    experiment: str
    same: bool | None
    """Whether the bits are right. None if nothing could be compared."""
    updates: int
    """Number of updates compared."""
    reason: str | None = None
    """Why nothing could be compared."""
    first_difference: WrongUpdate | None = None

    def to_plain(self) -> dict[str, Any]:
        """The result as JSON values."""
        return vars(self) | {"first_difference": self.first_difference and self.first_difference.to_plain()}


def check(name: str, dataset: data.Dataset, *, by_rule: bool = False) -> BitsCheck:
    """Train an experiment of `GOLDEN` on one device and compare its state after every update.

    Args:
        name: Name of the experiment.
        dataset: The data set.
        by_rule: Whether to check the first update primitive by primitive even if every state is right. Behind a relu or
            a dropout, a wrong value may leave no trace in a state.

    Raises:
        RunError: The golden digests are damaged or missing.
    """
    config, golden = GOLDEN[name], read(name)
    there, here = golden.binding, binding(config, dataset)
    if other := [fact for fact in BINDING if there[fact] != here[fact]]:
        what = (
            "another program: this JAX or flax traces it differently" if other == [PROGRAM] else f"another {other[0]}"
        )
        return BitsCheck(experiment=name, same=None, updates=0, reason=what)
    training = _training(config, dataset)
    if training.order_sha256(1) != golden.order_sha256:
        wrong = WrongUpdate(0, "order", "the batch order of the first epoch differs")
        return BitsCheck(experiment=name, same=False, updates=0, first_difference=wrong)
    before = first = None
    for update, state in enumerate(states(training, len(golden.states) - 1)):
        if digest(state) != golden.states[update]:
            wrong = explained(training, dataset, before, state, update, golden.states[update])
            return BitsCheck(experiment=name, same=False, updates=max(0, update - 1), first_difference=wrong)
        before, first = state, first or state
    if by_rule and first and (masked := wrong_primitive(training.on_data, first, batch_of(training, dataset, 1))):
        wrong = WrongUpdate(1, None, "the state is right nevertheless", masked)
        return BitsCheck(experiment=name, same=False, updates=len(golden.states) - 1, first_difference=wrong)
    return BitsCheck(experiment=name, same=True, updates=len(golden.states) - 1)


def _training(config: ExperimentConfig, dataset: data.Dataset) -> Training:
    """A training with one batch on the device at a time. Without a loop over blocks it compiles in half the time."""
    return Training(config, dataset, devices=1, resident_bytes=1)


def states(training: Training, last: int) -> Iterator[train.TrainState]:
    """The states after 0, 1, ..., `last` updates."""
    for step in range(last + 1):
        training.advance(step)
        yield training.state()


def explained(
    training: Training,
    dataset: data.Dataset,
    before: train.TrainState | None,
    state: train.TrainState,
    update: int,
    golden: str,
) -> WrongUpdate:
    """What is wrong in a state after an update, and which primitive causes it.

    Args:
        training: Training of the experiment.
        dataset: The data set.
        before: The right state before the update. None if the first state is wrong.
        state: The wrong state after the update.
        update: Number of the update.
        golden: Digest of the right state.
    """
    config, batch = training.on_data, batch_of(training, dataset, update)
    right = jax.tree.unflatten(jax.tree.structure(state), right_state(config, before, batch))
    if digest(right) != golden:
        return WrongUpdate(update, None, "the digest differs; NumPy's evaluation here has a third digest")
    first = next(bits.differences(leaves(right), leaves(state)))
    return WrongUpdate(update, first.leaf, f"{first.problem} (right and here)", wrong_primitive(config, before, batch))


def batch_of(training: Training, dataset: data.Dataset, update: int) -> train.Batch:
    """The batch of an update, as `train.take_batch` makes it, taken on the host.

    Before the first update, one example.
    """
    if not update:
        return _as_batch(dataset.facts.zeros(1), np.ones(1, np.float32))
    epoch, index = divmod(update - 1, training.steps_per_epoch)
    size = training.config.batch_size
    rows = training.order(epoch + 1)[index * size : (index + 1) * size]
    return _as_batch(dataset.train.rows(rows), (rows != train.PADDING).astype(np.float32))


def _as_batch(split: data.Split, mask: Any) -> train.Batch:
    return train.Batch(split.inputs, split.targets, mask)  # type: ignore[arg-type]  # NumPy's arrays will do


def binding(config: ExperimentConfig, dataset: data.Dataset) -> dict[str, str]:
    """The facts that golden digests depend on."""
    facts = manifest(config, dataset)["binding"]
    return {name: facts[name] for name in BINDING}


def read(name: str) -> Golden:
    """The golden digests of an experiment.

    Raises:
        RunError: They are damaged or missing.
    """
    path = FOLDER / f"{name}.json"
    try:
        found = parse_json(files.read(path))
        golden = Golden({fact: found[fact] for fact in BINDING}, found["order_sha256"], list(found["states_sha256"]))
        if all(map(SHA256.fullmatch, [*golden.binding.values(), golden.order_sha256, *golden.states])):
            return golden
        raise ValueError("a digest is malformed")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged: it has no golden digests ({error}). Install jaxmlp again.") from error


def record(name: str, dataset: data.Dataset) -> Path:
    """Train an experiment of `GOLDEN`, write its digests as the golden digests, and return the file."""
    training = _training(GOLDEN[name], dataset)
    last = training.last_step if name == QUICKSTART.name else training.steps_per_epoch
    found = {
        **binding(GOLDEN[name], dataset),
        "order_sha256": training.order_sha256(1),
        "states_sha256": [digest(state) for state in states(training, last)],
    }
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(found, indent=0).encode() + b"\n")
    return path
