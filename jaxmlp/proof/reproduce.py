"""Does a run, trained again from its stored config, give what it left, as far as that is promised?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmlp import data
from jaxmlp.engine.feed import RESIDENT_BYTES
from jaxmlp.engine.position import Position
from jaxmlp.errors import RunError, UsageError
from jaxmlp.proof import evidence
from jaxmlp.proof.blame import right_state, wrong_primitive
from jaxmlp.proof.evidence import Evidence, FirstDifference
from jaxmlp.proof.experiments import bands
from jaxmlp.proof.promise import Level, Promise, promise
from jaxmlp.proof.right_bits import batch_of
from jaxmlp.proof.training import Training
from jaxmlp.run import checkpoint
from jaxmlp.run.digest import digest, leaf_digests
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import COMPILED, manifest
from jaxmlp.run.opening import open_data, open_run
from jaxmlp.source.file import Experiment


class Judgement(NamedTuple):
    """A figure of the new training, with its experiment's band over seeds."""

    figure: str
    value: float
    low: float
    high: float

    @property
    def is_in_band(self) -> bool:
        """Whether the figure lies in the band."""
        return self.low <= self.value <= self.high


class Compared(NamedTuple):
    """A state of the run and the same state of the new training."""

    epoch: int
    step: int
    """Number of updates made."""
    there: dict[str, str]
    """SHA-256 by leaf, as far as the run recorded them."""
    here: dict[str, str]
    """SHA-256 by leaf in the new training."""
    same: bool


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Result of `reproduce`."""

    level: Level
    """The promise that was checked: the strongest that holds between the two manifests."""
    changed: tuple[str, ...]
    """The manifest's facts that have changed, with both values."""
    same: bool | None
    """Whether the promise held. None if nothing that is still promised could be checked."""
    steps: int
    """Number of updates up to the last state that agreed."""
    first_difference: FirstDifference | None
    """The first difference in bits. At L4 it is not a failure, unless a promised batch order differs."""
    judgements: tuple[Judgement, ...] = ()
    """Figures and their bands, at L4 if the bits differ."""
    trained: int = 0
    """Number of updates made, including repeated updates."""
    operation: str | None = None
    """For a single wrong update in portable precision: whether the run or this machine is wrong, and in which
    operation."""
    compared: tuple[Compared, ...] = ()
    """The compared states, sorted by step."""


def reproduce(
    run: str | Path,
    dataset: data.Dataset | None = None,
    *,
    experiment: Experiment = (),
    manual_dir: Path | None = None,
    devices: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
    from_step: int = 0,
    to_step: int | None = None,
    bisect: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Train a run again and compare state and batch order wherever the run recorded them, up to the first difference.

    The digests of each epoch, the digests in `trace.jsonl` and the tensors of each checkpoint are compared bit for bit.
    If the manifests leave only L4, the training continues to its end, and its result must lie in the experiment's band
    over seeds.

    Args:
        run: Folder of the run.
        dataset: The data set. Default: the data set in the config.
        experiment: The user's own code that the run used: the experiment's file, several files, or an
            `ExperimentConfig`. Changed code leaves only L4.
        manual_dir: As in `data.load`, if no data set is given.
        devices: Number of devices that split each batch. Default: the largest number that divides the gradient shards.
        resident_bytes: As in `fit`.
        from_step: Update after which to begin, from the run's own checkpoint, which is not checked.
        to_step: Last update to train. Default: the last update that the run recorded.
        bisect: Whether to halve the updates instead of comparing all. With a trace of every update, the exact update is
            found, and no more updates are trained than lie between the two ends.
        report: Called with a line about each epoch that agrees.

    Raises:
        ConfigError, DataError, DeviceError: As `fit`.
        CodeError: The run used code of the user's own, which was not given.
        RunError: The run does not exist, is damaged, or recorded no state to compare with.
        UsageError: The run has no checkpoint at `from_step`, or recorded nothing about its state at `to_step`.
    """
    with open_run(run, experiment) as stored:
        config, there = stored.config, stored.manifest
        pieces, orders = evidence.of_run(stored)
        start = stored.start()
        began_at = _checkpoint(stored, from_step) if from_step else None
    if not pieces:
        raise RunError(f"{run} has neither digests nor checkpoints: there is nothing to compare with.")
    pieces = _between(pieces, from_step, to_step)
    dataset = open_data(stored, dataset, manual_dir=manual_dir, report=report)
    training = Training(config, dataset, devices=devices, resident_bytes=resident_bytes, start=start)
    if began_at:
        training.start_at(*checkpoint.load(began_at))
    left = promise(there, manifest(config, dataset, devices=training.devices))
    if left.level == "L1" and there.get(COMPILED) not in (None, training.compiled_sha256()):
        report("compiled differently: XLA made another program of this experiment than in the run.")
    agreeing: list[Evidence] = []

    def agreed(piece: Evidence) -> None:
        agreeing.append(piece)
        if piece.step % training.steps_per_epoch == 0:
            report(f"epoch {training.epoch_of(piece.step)}: the same bits")

    mark: Position | None = None
    if bisect:
        found, mark = evidence.bisect(training, pieces, agreed)
    else:
        found = evidence.first_difference(training, pieces, orders if left.same_order else {}, agreed)
    compared = [
        Compared(training.epoch_of(piece.step), piece.step, piece.leaves_sha256, piece.leaves_sha256, True)
        for piece in agreeing
    ]
    operation = None
    if found and found.leaf != "order":
        (wrong,) = (piece for piece in pieces if piece.step == found.steps[1])
        if mark:
            training.advance(wrong.step, ends=wrong.ends_epoch)
        here = leaf_digests({part: getattr(training.state(), part) for part in wrong.sha256})
        compared.append(Compared(found.epoch, wrong.step, wrong.leaves_sha256, here, False))
        if mark and config.precision == "portable" and left.same_program:
            operation = _operation(training, dataset, mark, wrong)
    same: bool | None = found is None
    judgements: tuple[Judgement, ...] = ()
    if found and (not left.same_program or (left.level == "L4" and (from_step or to_step is not None or bisect))):
        same = None
    elif found and left.level == "L4" and found.leaf != "order":
        report(f"epoch {found.epoch}: the bits differ, which is allowed; training on to the end")
        same, judgements = _judge(training, there, left, orders)
    return Reproduction(
        level=left.level,
        changed=left.changed,
        same=same,
        steps=max((piece.step for piece in agreeing), default=0),
        first_difference=found,
        judgements=judgements,
        trained=training.made,
        operation=operation,
        compared=tuple(compared),
    )


def _checkpoint(run: RunDirectory, step: int) -> Path:
    """File of the checkpoint to begin from."""
    there = {int(path.stem.removeprefix("step-")): path for path in run.checkpoints.paths()}
    if step not in there:
        raise UsageError(f"--from-step must be 0 or a checkpoint of {run.path}: {_told(there)}, got {step}")
    return there[step]


def _between(pieces: list[Evidence], first: int, last: int | None) -> list[Evidence]:
    """What the run recorded about its states after update `first`, up to `last`."""
    steps = [piece.step for piece in pieces if piece.step > first]
    if last is not None and last not in steps:
        said = f"--to-step must be an update after {first} whose state the run recorded"
        raise UsageError(f"{said}: {_told(steps)}, got {last}. To record every update: train --digest-every 1")
    if first and not steps:
        raise UsageError(f"--from-step {first} is the last state that the run recorded: nothing comes after it")
    return [piece for piece in pieces if first <= piece.step <= (last or piece.step)]


def _told(steps: Iterable[int]) -> str:
    ordered = sorted(steps)
    more = f", ... {ordered[-1]}" if len(ordered) > 8 else ""
    return ", ".join(map(str, ordered[:8])) + more or "there are none"


def _operation(training: Training, dataset: data.Dataset, mark: Position, wrong: Evidence) -> str | None:
    """Which side is wrong in a portable update, as NumPy evaluates it from the state before; and the wrong primitive.

    None if more than one update lies between two states, or an epoch's end changed the state of controllers.
    """
    here = training.state()
    if wrong.step - mark.step != 1 or here.controllers:
        return None
    training.go_back(mark)
    before, batch = training.state(), batch_of(training, dataset, wrong.step)
    right = jax.tree.unflatten(jax.tree.structure(here), right_state(training.on_data, before, batch))
    if all(digest(getattr(right, part)) == sha256 for part, sha256 in wrong.sha256.items()):
        named = wrong_primitive(training.on_data, before, batch)
        said = f"wrong primitive: {named}" if named else "each primitive is right on its own"
        return f"by NumPy, the run has the right bits and this machine does not; {said}"
    if digest(right) == digest(here):
        return "by NumPy, this machine has the right bits and the run does not"
    return "NumPy's evaluation differs from both the run and this machine"


def _judge(
    training: Training, there: Mapping[str, Any], left: Promise, orders: Mapping[int, str]
) -> tuple[bool | None, tuple[Judgement, ...]]:
    """Whether the promise L4 held, as far as it can be checked."""
    checks = [training.order_sha256(epoch) == sha256 for epoch, sha256 in orders.items()] if left.same_order else []
    judgements: tuple[Judgement, ...] = ()
    if there["status"] == "finished" and (known := bands(training.config, there["binding"]["data_sha256"])):
        training.advance(training.last_step)
        figures = training.test()
        judgements = tuple(Judgement(name, figures[name], band.low, band.high) for name, band in known.items())
    checks += [judgement.is_in_band for judgement in judgements]
    is_known = checks and (left.same_code or judgements or not all(checks))
    return (all(checks) if is_known else None), judgements
