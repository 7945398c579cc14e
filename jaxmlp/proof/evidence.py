"""What does a run or reference record about its states, and at which step does a training first differ?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp.engine.position import Position
from jaxmlp.errors import RunError
from jaxmlp.proof import bits
from jaxmlp.proof.training import Training
from jaxmlp.run import checkpoint
from jaxmlp.run.digest import digest, leaf_digests, leaves
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.weights import as_trained

PARTS = ("params", "opt_state", "variables", "controllers")


@dataclass
class Evidence:
    """What is recorded about the state after `step` updates."""

    step: int
    sha256: dict[str, str] = field(default_factory=dict)
    """Digests by part, such as `params` and `opt_state`."""
    leaves_sha256: dict[str, str] = field(default_factory=dict)
    """Digests of leaves, by path."""
    checkpoint: Path | None = None
    ends_epoch: bool = False
    """Whether an epoch ended at this step. A run may end an epoch before its last update."""

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Evidence:
        """Evidence from a line of `digests.jsonl`, or from a reference."""
        if type(line.get("steps")) is not int:
            raise RunError("a log of digests is damaged: a line lacks its steps")
        sha256 = {part: line[f"{part}_sha256"] for part in PARTS if f"{part}_sha256" in line}
        return cls(line["steps"], sha256, line.get("leaves_sha256", {}))


class FirstDifference(NamedTuple):
    """Where two trainings first differ."""

    epoch: int
    steps: tuple[int, int]
    """First and last update, counted from 1, that can have caused the difference: those between two pieces of
    evidence."""
    leaf: str
    """The leaf that differs most, if values are known; else a parameter rather than a leaf of the optimizer."""
    leaves: tuple[str, ...]
    """All leaves that differ."""
    max_ulp: int | None
    """Largest distance of two values. None if no checkpoint has the values."""
    problem: str
    """What differs in `leaf`."""

    def __str__(self) -> str:
        first, last = self.steps
        updates = f"update {first}" + (f" to {last}" if last > first else "")
        more = f" and {len(self.leaves) - 1} more" if len(self.leaves) > 1 else ""
        return f"epoch {self.epoch}, {updates}: {self.leaf}{more}: {self.problem}"


def of_run(run: RunDirectory) -> tuple[list[Evidence], dict[int, str]]:
    """Everything that a run records about its states, sorted by step, and the hash of each epoch's batch order.

    Raises:
        RunError: A log is damaged.
    """
    lines = run.digests()
    ends = [dataclasses.replace(Evidence.from_line(line), ends_epoch=True) for line in lines]
    found = {piece.step: piece for piece in [*map(Evidence.from_line, run.trace()), *ends]}
    for path in run.checkpoints.paths():
        step = int(path.stem.removeprefix("step-"))
        found.setdefault(step, Evidence(step)).checkpoint = path
    orders = {line["epoch"]: line["order_sha256"] for line in lines if "order_sha256" in line}
    return [found[step] for step in sorted(found)], orders


def first_difference(
    training: Training,
    evidence: Iterable[Evidence],
    orders: Mapping[int, str],
    report: Callable[[Evidence], object],
) -> FirstDifference | None:
    """Train from one piece of evidence to the next until a difference appears.

    Args:
        training: Before the first piece. Afterwards it stands at the last piece compared.
        evidence: Pieces sorted by step.
        orders: Hashes of the batch orders that must be equal, by epoch.
        report: Called with each piece that agrees.

    Raises:
        RunError: A checkpoint is damaged.
    """
    agreed, seen = training.step, 0
    for piece in evidence:
        epoch = training.epoch_of(piece.step)
        if epoch != seen and orders.get(epoch, (order := training.order_sha256(epoch))) != order:
            return FirstDifference(
                epoch, (agreed + 1, agreed + 1), "order", ("order",), None, "the batch order differs"
            )
        training.advance(piece.step, ends=piece.ends_epoch)
        if found := _differences(training, piece):
            return _first(training, agreed, piece, found)
        agreed, seen = piece.step, epoch
        report(piece)
    return None


def bisect(
    training: Training, evidence: Iterable[Evidence], report: Callable[[Evidence], object]
) -> tuple[FirstDifference | None, Position]:
    """Halve the updates until the first update is found whose result differs from the record.

    From the last state that agrees, train to the last evidence in the first half of the remaining updates, or else to
    the first evidence in the second half. If the states agree, the trained updates are done with; if they differ, at
    most half of the rest was trained. So the total is at most the number of updates up to the last piece.

    A difference must persist: a difference that disappears before the next inspected piece is not seen.

    Args:
        training: Before the first piece.
        evidence: Pieces sorted by step.
        report: Called with each piece that agrees.

    Returns:
        The difference, and the last position that agrees, from which the training continues.

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
            report(piece)
            agreed, mark = piece.step, training.mark()
            left = [each for each in left if each.step > agreed]
    return found and found._replace(steps=(min(agreed + 1, found.steps[1]), found.steps[1])), mark


def _first(training: Training, agreed: int, piece: Evidence, found: list[bits.Difference]) -> FirstDifference:
    """The difference in a piece, given that the piece before agrees."""
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
