"""What a run or a reference tells of its state at some steps, and the first step at which a training leaves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp.errors import RunError
from jaxmlp.position import Position
from jaxmlp.proof import bits
from jaxmlp.proof.training import Training
from jaxmlp.run import checkpoint
from jaxmlp.run.digest import digest, leaf_digests, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.weights import as_trained

PARTS = ("params", "opt_state", "variables", "controllers")


@dataclass
class Evidence:
    """Of the state after so many updates."""

    step: int
    sha256: dict[str, str] = field(default_factory=dict)
    """By part: `params`, `opt_state`."""
    leaves_sha256: dict[str, str] = field(default_factory=dict)
    """By path."""
    checkpoint: Path | None = None
    ends_epoch: bool = False
    """Whether an epoch ended there, as a run may end it before its last update."""

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Evidence:
        """Of a line of `digests.jsonl`, or of a reference."""
        if type(line.get("steps")) is not int:
            raise RunError("a log of digests is damaged: a line lacks its steps")
        sha256 = {part: line[f"{part}_sha256"] for part in PARTS if f"{part}_sha256" in line}
        return cls(line["steps"], sha256, line.get("leaves_sha256", {}))


class FirstDifference(NamedTuple):
    """Where two trainings part."""

    epoch: int
    steps: tuple[int, int]
    """The first and the last update, counted from 1, that can have made it: those between two pieces of evidence."""
    leaf: str
    """The one that is furthest off, where values are known; else a parameter before the optimizer's."""
    leaves: tuple[str, ...]
    """All that differ."""
    max_ulp: int | None
    """The largest distance of two values; none where no checkpoint has the values."""
    problem: str
    """What differs in `leaf`."""

    def __str__(self) -> str:
        first, last = self.steps
        updates = f"update {first}" + (f" to {last}" if last > first else "")
        more = f" and {len(self.leaves) - 1} more" if len(self.leaves) > 1 else ""
        return f"epoch {self.epoch}, {updates}: {self.leaf}{more}: {self.problem}"


def of_run(run: RunDirectory) -> tuple[list[Evidence], dict[int, str]]:
    """All that a run tells of its states, in order of the steps; and the sum of each epoch's batch order.

    Raises:
        RunError: A log is damaged.
    """
    lines = run.digests()
    ends = [dataclasses.replace(Evidence.from_line(line), ends_epoch=True) for line in lines]
    found = {piece.step: piece for piece in [*map(Evidence.from_line, run.trace()), *ends]}
    for path in run.checkpoints():
        step = int(path.stem.removeprefix("step-"))
        found.setdefault(step, Evidence(step)).checkpoint = path
    orders = {line["epoch"]: line["order_sha256"] for line in lines if "order_sha256" in line}
    return [found[step] for step in sorted(found)], orders


def first_difference(
    training: Training,
    evidence: Iterable[Evidence],
    orders: Mapping[int, str],
    told: Callable[[Evidence], object],
) -> FirstDifference | None:
    """Train from one piece of evidence to the next until one differs.

    Args:
        training: Before the first piece; afterwards, at the last one compared.
        evidence: In order of the steps.
        orders: Of the epochs whose batch order is to be the same.
        told: Called with each piece that agrees.

    Raises:
        RunError: A checkpoint is damaged.
    """
    agreed, seen = training.step, 0
    for piece in evidence:
        epoch = training.epoch_of(piece.step)
        if epoch != seen and orders.get(epoch, (order := training.order_sha256(epoch))) != order:
            at = (agreed + 1, agreed + 1)
            return FirstDifference(epoch, at, "order", ("order",), None, "the batch order differs")
        training.advance(piece.step, ends=piece.ends_epoch)
        if found := _differences(training, piece):
            return _first(training, agreed, piece, found)
        agreed, seen = piece.step, epoch
        told(piece)
    return None


def bisect(
    training: Training, evidence: Iterable[Evidence], told: Callable[[Evidence], object]
) -> tuple[FirstDifference | None, Position]:
    """Halve the updates until the first one is found whose result is not the recorded one.

    From the last state that agrees, train to the last evidence in the first half of what is left, or else to the first
    in the second half. What is trained is then no longer left, or, where the states differ, at most half of it was:
    so in all at most the updates from where the training stands to the last piece are made.

    It takes a difference to last: one that vanishes again before the next piece that is looked at is not seen.

    Args:
        training: Before the first piece.
        evidence: In order of the steps.
        told: Called with each piece that agrees.

    Returns:
        The difference, and the last position that agrees, from which the training goes on.

    Raises:
        RunError: A checkpoint is damaged.
    """
    agreed, mark, found = training.step, training.mark(), None
    left = list(evidence)
    end = left[-1].step + 1 if left else agreed
    while left:
        half = (agreed + end) / 2
        piece = max((each for each in left if each.step <= half), key=lambda each: each.step, default=left[0])
        training.advance(piece.step, ends=piece.ends_epoch)
        if differs := _differences(training, piece):
            found, end = _first(training, agreed, piece, differs), piece.step
            left = [each for each in left if each.step < end]
            training.go_back(mark)
        else:
            told(piece)
            agreed, mark = piece.step, training.mark()
            left = [each for each in left if each.step > agreed]
    return found and found._replace(steps=(min(agreed + 1, found.steps[1]), found.steps[1])), mark


def _first(training: Training, agreed: int, piece: Evidence, found: list[bits.Difference]) -> FirstDifference:
    """What differs in a piece, when the one before agrees."""
    far = max(found, key=lambda each: (each.max_ulp or 0, each.leaf.startswith("params")))
    between = (min(agreed + 1, piece.step), piece.step)
    names = tuple(each.leaf for each in found)
    return FirstDifference(training.epoch_of(piece.step), between, far.leaf, names, far.max_ulp, far.problem)


def _differences(training: Training, piece: Evidence) -> list[bits.Difference]:
    state = training.state()
    if piece.checkpoint:
        stored = as_trained(checkpoint.load(piece.checkpoint)[0])
        theirs = {name.removeprefix("state/"): array for name, array in stored.items() if name.startswith("state/")}
        if found := list(bits.differences(leaves(state), theirs)):
            return found
    bad = [part for part, sha256 in piece.sha256.items() if digest(getattr(state, part)) != sha256]
    if not bad:
        return []
    mine = leaf_digests({part: getattr(state, part) for part in bad})
    named = [leaf for leaf, sha256 in mine.items() if piece.leaves_sha256.get(leaf, sha256) != sha256]
    return [bits.Difference(leaf, "its digest differs") for leaf in named or bad]
