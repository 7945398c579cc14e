"""`jaxmlp train`: train a new run of an experiment, or continue an interrupted run."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxmlp.cli import STARTED, Answer, flags, say, summary
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.errors import CheckFailed, ConfigError, RunError, UsageError
from jaxmlp.experiment.fields import ranged
from jaxmlp.system import runtime

if TYPE_CHECKING:
    from jaxmlp.data import Dataset
    from jaxmlp.experiment.config import ExperimentConfig
    from jaxmlp.report.tracking import TensorBoard
    from jaxmlp.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class ResumeFlags(flags.CodeFlags, flags.DataFlags, flags.DeviceFlags):
    """Continue from a run's newest good checkpoint, with its stored config. For a finished run, show its result."""

    resume: str | None = None
    """Run to continue, a folder or `last`, instead of EXPERIMENT.py."""
    accept_changed_code: flags.Switch = False
    """Go on although the code has changed since the run began. The run records the change."""
    devices: int | None = ranged(None, "[1, 65536]")
    """Number of devices that split each batch. Default: the largest available number that divides the gradient
    shards."""
    distributed: str | None = None
    """Join other processes: auto (Slurm, Open MPI, Kubernetes, TPU pods) or HOST:PORT,PROCESSES,INDEX. The port of
    process 0 has no password: keep it inside a network that you trust."""
    checkpoint_s: float = ranged(60.0, "[0, inf)")
    """Seconds between two checkpoints."""
    digest_every: int | None = ranged(None, "[1, 2147483647]")
    """Number of updates between two digests of the state in trace.jsonl. Default: digests of epochs only, in
    digests.jsonl."""
    resident_mb: float = ranged(4096.0, "(0, inf)")
    """Largest size in megabytes of a split's images that stay on the device. A larger split is streamed. The bits do
    not depend on it."""
    min_accuracy: float | None = ranged(None, "[0, 1]")
    """Exit with 3 if the test accuracy is lower."""
    verbose: Literal["auto", "0", "1", "2"] = "auto"
    """What is shown: 0 nothing, 1 a live line on a terminal, 2 a line per epoch; auto is 1 on a terminal, else 2."""
    tensorboard: flags.Switch = False
    """Also write TensorBoard's files, to tensorboard/ in the run. Needs the extra jaxmlp[tensorboard]."""


@dataclass(frozen=True, kw_only=True)
class GoOnFlags(ResumeFlags):
    """Continue from a run's newest good checkpoint, with its stored config. For a finished run, show its result."""

    epochs: int | None = ranged(None, "[1, 1000000]")
    """Total number of epochs to go on to, also with a finished run."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(ResumeFlags):
    """Train the CONFIG of an experiment's file, or continue a run: --resume DIR.

    Every value of the config is a flag. Flags such as --optimizer adam or --metrics accuracy,top_k choose other parts.
    """

    from_run: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Run whose last weights replace the initial weights: a folder or `last`."""
    out: Path | None = None
    """Folder of the run. Default: a new folder in JAXMLP_RUNS_DIR, or in runs."""
    dry_run: flags.Switch = False
    """Show layers, parameters and FLOPs. Train and write nothing."""


def run(argv: Sequence[str]) -> Answer:
    """Train, and return the run's result."""
    if any(word.partition("=")[0] == "--resume" for word in argv):
        hint = " The run's stored config applies; other values need a new run."
        resumed = flags.parse(GoOnFlags(), argv, "train --resume DIR", hint=hint)[0]
        join("train", argv, resumed.device, resumed.distributed)
        return _resume(resumed)
    chosen, config = parse_experiment(TrainFlags, argv, "train")
    refuse_code(chosen)
    if chosen.dry_run:
        runtime.configure(chosen.device)
        return summary.show(config)
    join("train", argv, chosen.device, chosen.distributed, exact=config.exact)
    runtime.configure(chosen.device, exact=config.exact)
    return _begin(chosen, config)


def refuse_code(chosen: flags.CodeFlags) -> None:
    """Refuse `--experiment` for a new run, and say what it is for.

    Raises:
        UsageError: It was given.
    """
    if chosen.experiment:
        raise UsageError("--experiment needs --resume: it names the code of a run. For a new run, name the file first")


def join(
    command: str,
    argv: Sequence[str],
    device: runtime.Device,
    address: str | None,
    *,
    cpu_devices: int | None = None,
    exact: bool = True,
) -> None:
    """Join the other processes of `--distributed`, if it was given.

    The process that the user started becomes the supervisor of a child. The child connects to the other processes.
    """
    if not address:
        return
    from jaxmlp.system import distributed

    cluster = distributed.Cluster.parse(address)
    if not distributed.is_supervised():
        raise SystemExit(distributed.supervise([command, *argv]))
    runtime.configure(device, cluster, cpu_devices=cpu_devices, exact=exact)


def _begin(chosen: TrainFlags, config: ExperimentConfig) -> Answer:
    from jaxmlp import data
    from jaxmlp.engine.fitting import check_data, weights_of
    from jaxmlp.run.directory import RunDirectory
    from jaxmlp.run.find import default_run_dir, find_run
    from jaxmlp.system import distributed

    _check_min_accuracy([metric.name for metric in config.metrics], chosen)
    dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=say)
    check_data(config, dataset)
    facts = _facts(config, dataset, chosen)
    if not distributed.is_first():
        return _train(config, dataset, chosen, None)
    weights = weights_of(find_run(chosen.from_run), config, dataset) if chosen.from_run else None
    path = chosen.out or default_run_dir(config, datetime.now(UTC))
    with RunDirectory.create(path, config, facts, weights) as stored:
        return _train(config, dataset, chosen, stored)


def _resume(chosen: GoOnFlags) -> Answer:
    from jaxmlp.run.find import find_run
    from jaxmlp.run.opening import finder, open_run
    from jaxmlp.source.file import Code
    from jaxmlp.system import distributed

    if chosen.experiment:
        runtime.configure(chosen.device)  # Set first, because the file's imports may start JAX.
    code = Code(chosen.experiment)
    if chosen.distributed and not distributed.is_first():
        facts = json.loads(distributed.share(b""))
        path = Path(facts["path"])
        if facts["result"]:
            return _answer(path, chosen, facts["result"])
        from jaxmlp.experiment.config import ExperimentConfig

        find = finder(path, facts["config"], facts["manifest"], code)
        return _continue(ExperimentConfig.from_dict(facts["config"], find), chosen, None)
    path, longer = find_run(str(chosen.resume)), chosen.epochs is not None
    with open_run(path, code, write=True, longer=longer, accept_changed_code=chosen.accept_changed_code) as stored:
        is_ended = stored.status == "finished" and chosen.epochs in (None, stored.plain_config["epochs"])
        result = stored.manifest["result"] if is_ended else None
        if chosen.distributed:
            facts = {"path": str(path), "result": result, "config": stored.plain_config, "manifest": stored.manifest}
            distributed.share(json.dumps(facts).encode())
        _check_min_accuracy([*result["metrics"]] if result else [each.name for each in stored.config.metrics], chosen)
        if not result:
            return _continue(stored.config, chosen, stored)
        for each in stored.code_changed:
            say(f"{each}: the result is the run's own.")
        return _answer(stored.path, chosen, result)


def _continue(config: ExperimentConfig, chosen: ResumeFlags, stored: RunDirectory | None) -> Answer:
    from jaxmlp import data
    from jaxmlp.run.manifest import differences
    from jaxmlp.run.opening import open_data

    runtime.configure(chosen.device, exact=config.exact)
    if stored:
        dataset = open_data(stored, manual_dir=chosen.manual_dir, report=say)
    else:
        dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=say)
    for difference in differences(stored.manifest, _facts(config, dataset, chosen)) if stored else []:
        say(f"The bits may differ from those of an uninterrupted run: {difference}.")
    return _train(config, dataset, chosen, stored)


def _facts(config: ExperimentConfig, dataset: Dataset, chosen: ResumeFlags) -> dict[str, Any]:
    from jaxmlp import shards
    from jaxmlp.run.manifest import manifest

    return manifest(config, dataset, devices=len(shards.pick_devices(config.grad_shards, chosen.devices)))


def _train(config: ExperimentConfig, dataset: Dataset, chosen: ResumeFlags, stored: RunDirectory | None) -> Answer:
    """Train. Only the first process has `stored` and writes to it."""
    import jax

    from jaxmlp import shards
    from jaxmlp.engine.fitting import fit
    from jaxmlp.engine.progress import make_progress
    from jaxmlp.run import code
    from jaxmlp.source.code import roots_of
    from jaxmlp.system import distributed
    from jaxmlp.system.signals import stop_signals

    path = Path(distributed.share(str(stored.path.resolve() if stored else "").encode()).decode())
    again = code.flags(roots_of(config)) + flags.repeated(chosen, ResumeFlags)
    distributed.tell("run_dir", path)
    distributed.tell("flags", again)
    used = len(shards.pick_devices(config.grad_shards, chosen.devices))
    longer = chosen.epochs if isinstance(chosen, GoOnFlags) else None
    epochs = longer or config.epochs
    verbose = chosen.verbose if stored else "0"
    if verbose != "0":
        devices = f"{used} of {jax.device_count()} devices ({jax.devices()[0].device_kind})"
        say(f"{path}: {len(dataset.train.targets):,} examples, {epochs} epochs, {devices}")
    boards = [_tensorboard(path, config, dataset)] if chosen.tensorboard and stored else []
    with make_progress(verbose, epochs) as progress, stop_signals() as stop:
        history = fit(
            config,
            dataset,
            run=stored,
            epochs=longer,
            progress=progress,
            hooks=boards,
            devices=chosen.devices,
            stop=stop,
            checkpoint_s=chosen.checkpoint_s,
            digest_every=chosen.digest_every,
            resident_bytes=int(chosen.resident_mb * 2**20),
            accept_changed_code=chosen.accept_changed_code,
        )
    for board in boards:
        board.finish(history.result())
    answer = _answer(path, chosen, history.result())
    if history.status == "finished" or not stop.signal:
        return answer
    saved = f"step {history.result()['steps']} is saved, {len(history.records)} of {epochs} epochs done"
    resume = f"Go on: jaxmlp train --resume {shlex.quote(str(path))}{again}"
    return answer._replace(exit_code=stop.exit_code, message=f"{stop.signal.name}: {saved}. {resume}")


def _tensorboard(path: Path, config: ExperimentConfig, dataset: Dataset) -> TensorBoard:
    try:
        from jaxmlp.report.tracking import TensorBoard
    except ModuleNotFoundError as error:
        raise UsageError(f"--tensorboard needs {error.name}: pip install 'jaxmlp[tensorboard]'") from None
    if (path / "tensorboard").is_symlink():
        raise RunError(f"{path / 'tensorboard'} is a symbolic link: it must lie in the run directory. Remove it.")
    return TensorBoard(path / "tensorboard", config, dataset.facts.image_shape)


def _check_min_accuracy(names: Sequence[str], chosen: ResumeFlags) -> None:
    if chosen.min_accuracy is not None and "accuracy" not in names:
        raise ConfigError("min_accuracy", f"cannot be checked: the metrics are {', '.join(names) or 'none'}")


def _answer(path: Path, chosen: ResumeFlags, result: Any) -> Answer:
    loss, accuracy = result["test_loss"], result["test_accuracy"]
    if loss is not None:
        tested = {"loss": loss, **{name: figures["test"] for name, figures in result["metrics"].items()}}
        shown = {name: "nan" if value is None else f"{value:.4f}" for name, value in tested.items()}
        say(" - ".join([*(f"test_{name}: {value}" for name, value in shown.items()), str(path)]))
    if result.get("stopped"):
        say(f"stopped in epoch {result['epochs']}, at update {result['steps']:,}: {result['stopped']}")
    document = {"run_dir": str(path), "stopped": None, **result, "total_s": time.perf_counter() - STARTED}
    if chosen.min_accuracy is None or accuracy is None or accuracy >= chosen.min_accuracy:
        return Answer(document)
    below = f"the test accuracy {accuracy:.4f} is below the wanted {chosen.min_accuracy:g}"
    return Answer(document, CheckFailed.exit_code, below)
