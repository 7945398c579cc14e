"""`jaxmlp train`: a new run of an experiment, or the rest of one that was interrupted."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxmlp import runtime
from jaxmlp.cli import STARTED, Answer, flags, summary
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import CheckFailed, RunError
from jaxmlp.fields import ranged

if TYPE_CHECKING:
    from jaxmlp.data import Dataset
    from jaxmlp.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class ResumeFlags(flags.DataFlags, flags.DeviceFlags):
    """Go on from the newest good checkpoint of a run, with its stored config; a finished run shows its result."""

    resume: str | None = None
    """Go on with this run, a folder or `last`, in place of EXPERIMENT.py."""
    devices: int | None = ranged(None, "[1, 65536]")
    """How many devices share a batch; by default the largest number there is that divides the gradient shards."""
    min_accuracy: float | None = ranged(None, "[0, 1]")
    """Exit with 3 where the test accuracy is lower."""
    verbose: Literal["auto", "0", "1", "2"] = "auto"
    """0: silent; 1: a live line on a terminal; 2: one line an epoch; auto: 1 on a terminal, 2 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(ResumeFlags, flags.ExperimentFlags):
    """Train the CONFIG of an experiment's file; every value of it is a flag. Or go on with a run: --resume DIR."""

    out: Path | None = None
    """Folder of the run; by default a new one in JAXMLP_RUNS_DIR, or in runs."""
    dry_run: flags.Switch = False
    """Show layers, parameters and FLOPs; train and write nothing."""


def run(argv: Sequence[str]) -> Answer:
    """Train, and answer with the run's result."""
    if any(word.partition("=")[0] == "--resume" for word in argv):
        hint = " The run's stored config holds; another one is another run."
        return _resume(flags.parse(ResumeFlags(), argv, "train --resume DIR", hint=hint)[0])
    chosen = parse_experiment(TrainFlags, argv, "train")
    runtime.configure(chosen.device)
    return summary.show(chosen.config) if chosen.dry_run else _begin(chosen)


def _begin(chosen: TrainFlags) -> Answer:
    from jaxmlp import data
    from jaxmlp.run.directory import RunDirectory, default_run_dir

    dataset = data.load(chosen.config.data, manual_dir=chosen.manual_dir, report=print)
    facts = _facts(chosen.config, dataset, chosen)
    path = chosen.out or default_run_dir(chosen.config, datetime.now(UTC))
    with RunDirectory.create(path, chosen.config, facts) as stored:
        return _train(stored, dataset, chosen)


def _resume(chosen: ResumeFlags) -> Answer:
    from jaxmlp import data
    from jaxmlp.run.directory import RunDirectory, find_run
    from jaxmlp.run.manifest import differences

    with RunDirectory.open(find_run(str(chosen.resume)), write=True) as stored:
        if stored.status == "finished":
            return _answer(stored, chosen, stored.manifest["result"])
        runtime.configure(chosen.device)
        dataset = data.load(stored.config.data, manual_dir=chosen.manual_dir, report=print)
        for difference in differences(stored.manifest, _facts(stored.config, dataset, chosen)):
            if difference.startswith("data_sha256"):
                raise RunError(f"{stored.path} was trained on other data: {difference}.")
            print(f"The bits may differ from an uninterrupted run's: {difference}.")
        return _train(stored, dataset, chosen)


def _facts(config: ExperimentConfig, dataset: Dataset, chosen: ResumeFlags) -> dict[str, Any]:
    from jaxmlp import shards
    from jaxmlp.run.manifest import manifest

    return manifest(config, dataset.sha256, devices=len(shards.pick_devices(config.grad_shards, chosen.devices)))


def _train(stored: RunDirectory, dataset: Dataset, chosen: ResumeFlags) -> Answer:
    import jax

    from jaxmlp.fit import fit
    from jaxmlp.progress import make_progress
    from jaxmlp.signals import stop_signals

    config, kind = stored.config, jax.devices()[0].device_kind
    devices = f"{stored.manifest['not_binding']['devices']} of {jax.device_count()} devices ({kind})"
    for note in dataset.notes:
        print(note)
    if chosen.verbose != "0":
        print(f"{stored.path}: {len(dataset.train.labels):,} examples, {config.epochs} epochs, {devices}")
    with make_progress(chosen.verbose, config.epochs) as progress, stop_signals() as stop:
        history = fit(config, dataset, run=stored, progress=progress, devices=chosen.devices, stop=stop)
    answer = _answer(stored, chosen, history.result())
    if history.status == "finished" or not stop.signal:
        return answer
    saved = f"step {history.result()['steps']} is saved, {len(history.records)} of {config.epochs} epochs done"
    go_on = f"Go on: jaxmlp train --resume {shlex.quote(str(stored.path))}"
    return answer._replace(exit_code=stop.exit_code, message=f"{stop.signal.name}: {saved}. {go_on}")


def _answer(stored: RunDirectory, chosen: ResumeFlags, result: Any) -> Answer:
    accuracy = result["test_accuracy"]
    if accuracy is not None:
        print(f"test_loss: {result['test_loss']:.4f} - test_accuracy: {accuracy:.4f} - {stored.path}")
    document = {"run_dir": str(stored.path), **result, "total_s": time.perf_counter() - STARTED}
    if chosen.min_accuracy is None or accuracy is None or accuracy >= chosen.min_accuracy:
        return Answer(document)
    below = f"the test accuracy {accuracy:.4f} is below the wanted {chosen.min_accuracy:g}"
    return Answer(document, CheckFailed.exit_code, below)
