"""A run trained again from its stored config, and compared with what it left, as far as a promise reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp import data
from jaxmlp.errors import RunError
from jaxmlp.experiment import Experiment
from jaxmlp.feed import RESIDENT_BYTES
from jaxmlp.opening import open_data, open_run
from jaxmlp.proof import evidence
from jaxmlp.proof.evidence import Evidence, FirstDifference
from jaxmlp.proof.experiments import bands
from jaxmlp.proof.promise import Level, Promise, promise
from jaxmlp.proof.training import Training
from jaxmlp.run.manifest import COMPILED, manifest


class Judgement(NamedTuple):
    """A figure of the new training, and its experiment's band over seeds."""

    figure: str
    value: float
    low: float
    high: float

    @property
    def is_in_band(self) -> bool:
        """Whether a right run would give it."""
        return self.low <= self.value <= self.high


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What `reproduce` found."""

    level: Level
    """The promise that was checked: the strongest that the two manifests leave."""
    changed: tuple[str, ...]
    """The facts of the manifest that are others now, with both values."""
    same: bool | None
    """Whether the promise held; none where nothing that is still promised could be checked."""
    steps: int
    """Updates whose result was compared."""
    first_difference: FirstDifference | None
    """Of the bits; at L4 it is no failure, unless it is the batch order's and that was promised."""
    judgements: tuple[Judgement, ...] = ()
    """At L4, where the bits differ."""


def reproduce(
    run: str | Path,
    dataset: data.Dataset | None = None,
    *,
    experiment: Experiment = (),
    manual_dir: Path | None = None,
    devices: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
    report: Callable[[str], None] = lambda _: None,
) -> Reproduction:
    """Train a run again and compare state and batch order wherever the run tells of them; stop where they differ.

    Compared are the digests of each epoch, those of `trace.jsonl`, and the tensors of each checkpoint, all bit for bit.
    Where the manifests leave L4 alone, the training goes on to its end, and its result must lie in the experiment's
    band over seeds.

    Args:
        run: Its folder.
        dataset: Its data; by default what its config names.
        experiment: The user's own code that the run was made with: the experiment's file, several, or an experiment in
            hand. Other code leaves L4.
        manual_dir: As in `data.load`, where no data set is given.
        devices: How many share a batch; by default as many as divide the gradient shards.
        resident_bytes: As in `fit`.
        report: Told of each epoch that agrees.

    Raises:
        ConfigError, DataError, DeviceError: As `fit`.
        CodeError: The run was made with code of the user's own, which is not given.
        RunError: There is no run, it is damaged, or it tells of no state to compare with.
    """
    with open_run(run, experiment) as stored:
        config, there = stored.config, stored.manifest
        pieces, orders = evidence.of_run(stored)
        start = stored.start()
    if not pieces:
        raise RunError(f"{run} has neither digests nor checkpoints: there is nothing to compare with.")
    dataset = open_data(stored, dataset, manual_dir=manual_dir, report=report)
    training = Training(config, dataset, devices=devices, resident_bytes=resident_bytes, start=start)
    left = promise(there, manifest(config, dataset, devices=training.devices))
    for changed in left.changed:
        report(changed)
    if left.level == "L1" and there.get(COMPILED) not in (None, training.compiled_sha256()):
        report("compiled otherwise: XLA made another program of the same experiment than the run's.")
    compared = 0

    def agreed(piece: Evidence) -> None:
        nonlocal compared
        compared = piece.step
        if piece.step % training.steps_per_epoch == 0:
            report(f"epoch {training.epoch_of(piece.step)}: the same bits")

    found = evidence.first_difference(training, pieces, orders if left.same_order else {}, agreed)
    same: bool | None = found is None
    judgements: tuple[Judgement, ...] = ()
    if found and not left.same_program:
        same = None
    elif found and left.level == "L4" and found.leaf != "order":
        report(f"epoch {found.epoch}: other bits, as they may be: on to the end")
        same, judgements = _judge(training, there, left, orders)
    return Reproduction(
        level=left.level, changed=left.changed, same=same, steps=compared, first_difference=found, judgements=judgements
    )


def _judge(
    training: Training, there: Mapping[str, Any], left: Promise, orders: Mapping[int, str]
) -> tuple[bool | None, tuple[Judgement, ...]]:
    """Whether what L4 promises held, as far as anything is known to check it by."""
    checks = [training.order_sha256(epoch) == sha256 for epoch, sha256 in orders.items()] if left.same_order else []
    judgements: tuple[Judgement, ...] = ()
    if there["status"] == "finished" and (known := bands(training.config, there["binding"]["data_sha256"])):
        training.advance(training.last_step)
        figures = training.test()
        judgements = tuple(Judgement(name, figures[name], band.low, band.high) for name, band in known.items())
    checks += [judgement.is_in_band for judgement in judgements]
    is_known = checks and (left.same_code or judgements or not all(checks))
    return (all(checks) if is_known else None), judgements
