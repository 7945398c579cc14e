"""How does training start? `fit` checks its arguments, sets up data, devices and the run, and starts the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from jaxmlp import data, shards, train
from jaxmlp.engine.feed import RESIDENT_BYTES
from jaxmlp.engine.history import History
from jaxmlp.engine.network import check_network
from jaxmlp.engine.programs import Programs
from jaxmlp.engine.progress import Progress, Verbose, make_progress
from jaxmlp.engine.run_loop import Hook, RunLoop
from jaxmlp.errors import ConfigError, DivergedError, RunError, did_you_mean
from jaxmlp.experiment.config import DataConfig, ExperimentConfig
from jaxmlp.experiment.controllers import check_monitors
from jaxmlp.experiment.parts import FlaxModel
from jaxmlp.run import code
from jaxmlp.run.digest import restore
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.run.opening import open_data_of, open_run, refusal
from jaxmlp.run.weights import WEIGHTS
from jaxmlp.source.code import code_of
from jaxmlp.source.file import Code, Experiment, placed
from jaxmlp.system import distributed, runtime
from jaxmlp.system.signals import Stop

CHECKPOINT_S = 60.0
"""Default time between two checkpoints, in seconds."""
MAX_STEPS = 2**31 - 1
"""Largest number of updates in a run, because an int32 counts them."""


def fit(
    config: ExperimentConfig | data.Pair | None = None,
    dataset: data.Dataset | data.Pair | ExperimentConfig | None = None,
    *,
    out: str | Path | None = None,
    run: RunDirectory | str | Path | None = None,
    epochs: int | None = None,
    start: str | Path | None = None,
    experiment: Experiment = (),
    accept_changed_code: bool = False,
    verbose: Verbose = 0,
    progress: Progress | None = None,
    hooks: Sequence[Hook] = (),
    devices: int | None = None,
    stop: Stop | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    digest_every: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
) -> History:
    """Train the experiment `config`. If `run` has a checkpoint, continue from its newest good checkpoint.

    Args:
        config: The experiment. Default: the config of `run`.
        dataset: The data. Default: the data set that `config.data` names. May also be arrays or frames, as
            `data.as_dataset` takes them: `(inputs, targets)`, or two such pairs. Arrays may come first, and the
            experiment second or not at all.
        out: New folder for metrics, digests and checkpoints, as `jaxmlp train` writes. Default: nothing is written.
        run: Run to continue, instead of `out`: its folder, or an open run directory, which may be new.
        epochs: Total number of epochs to which `run` continues; it may be finished. The bits equal a run with
            this many epochs from its start, unless the optimizer's rate depends on the number of epochs; then a note
            says so.
        start: Folder of another run, whose last weights replace the initial weights of this new run.
        experiment: The user's own code of `run`, if no `config` is given: the experiment's file, several files, or an
            `ExperimentConfig`.
        accept_changed_code: Whether `run` may continue with code that has changed. The run records the change.
        verbose: What is printed: 0 only essentials, such as a download; 1 a live line on a terminal; 2 a line per
            epoch; `auto` is 1 on a terminal, else 2.
        progress: Receives all events of the run, in place of the output that `verbose` selects.
        hooks: Functions to call after each epoch.
        devices: Number of devices that split each batch. Default: the largest number that divides `config.grad_shards`.
        stop: Checked between chunks of updates. If it holds a signal, the run is saved and ends as `interrupted`.
        checkpoint_s: Seconds between two checkpoints.
        digest_every: Number of updates between two digests of the state in the run's `trace.jsonl`. Default: no
            digests.
        resident_bytes: Largest size in bytes of a split's images that stay on the device. A larger split is streamed.
            The bits do not depend on it.

    Returns:
        The history, with the last state.

    Raises:
        CodeError: The code of `run` was not given, or has changed and the change was not accepted.
        ConfigError: The config does not fit the data or the devices.
        DataError: The data cannot be loaded.
        DeviceError: The devices do not exist.
        DivergedError: The loss or a parameter is no longer finite.
        DiskError: The run directory cannot be written.
        PeerLostError: Another process of the run is gone.
        RunError: `out` already holds a run; `run` has another config or other data; its checkpoints do not fit or are
            all damaged; or its processes differ in something that the bits depend on.
    """
    config, dataset = _in_order(config, dataset)
    if callable(hooks):
        raise ConfigError("hooks", f"must be a list of functions: hooks=[{getattr(hooks, '__name__', hooks)}]")
    if start is not None and run is not None:
        raise ConfigError("start", "needs a new run: a continued run has its own weights")
    if out is not None and run is not None:
        raise ConfigError("out", "is for a new run: a continued run stays in its own folder")
    with contextlib.ExitStack() as stack:
        stack.enter_context(runtime.settings(exact=config is None or config.exact))
        if isinstance(run, str | Path):
            source, longer = config or experiment, epochs is not None
            opened = open_run(run, source, write=True, longer=longer, accept_changed_code=accept_changed_code)
            run = stack.enter_context(opened)
        if not config:
            if not run:
                raise ConfigError("config", "must be given, unless run names a run to continue")
            config = run.config
        config = placed(config)
        shown = progress or stack.enter_context(make_progress(verbose, epochs or config.epochs))
        if run:
            _check_run(run, config, accept_changed_code)
            dataset = open_data_of(run.path, config.data, run.manifest, dataset, report=shown.note)
        dataset = dataset or data.load(config.data, report=shown.note)
        if epochs is not None:
            config = _longer(config, epochs, run, dataset, shown)
        check_data(config, dataset)
        for note in [*dataset.notes, *_precision_notes(config)]:
            shown.note(note)
        mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
        if jax.process_count() > 1:
            distributed.agree(config.to_dict() | manifest(config, dataset)["binding"])
        weights = weights_of(start, config, dataset) if start is not None else None
        if out and distributed.is_first():
            facts = manifest(config, dataset, devices=mesh.size)
            run = stack.enter_context(RunDirectory.create(out, config, facts, weights))
        programs = Programs(config, dataset, mesh, resident_bytes, run.start() if run else weights)
        return _run(RunLoop(config, programs, run, shown, hooks, stop or Stop(), checkpoint_s, digest_every))


def _precision_notes(config: ExperimentConfig) -> list[str]:
    """A note if the user's own module does not receive the config's precision."""
    if config.precision != "bfloat16" or not isinstance(config.model, FlaxModel):
        return []
    name = type(config.model.value).__name__
    problem = f"{name} does not receive bfloat16. Give its layers a dtype, or write a Model: its module() gets it"
    return [f"precision: {problem}."]


def _in_order(config: Any, given: Any) -> tuple[ExperimentConfig | None, data.Dataset | None]:
    """The experiment and the data of a call, which may have them in either order.

    Raises:
        ConfigError: The first argument is neither; the message says what to write.
        DataError: As `data.as_dataset`.
    """
    if isinstance(config, tuple | list | data.Dataset):
        config, given = given if given is not None else ExperimentConfig(), config
    if config is not None and not isinstance(config, ExperimentConfig):
        got = (
            type(config).__name__
            if given is None or isinstance(given, data.Dataset)
            else "inputs and targets as two arguments"
        )
        wanted = "must be an ExperimentConfig: fit(ExperimentConfig(...)), or fit((inputs, targets), config) for arrays"
        raise ConfigError("config", f"{wanted}; got {got}")
    if given is None:
        return config, None
    return config, data.as_dataset(given, (config or ExperimentConfig()).data.validation)


def _run(loop: RunLoop) -> History:
    with distributed.peers():
        try:
            return loop.run_all()
        except DivergedError:
            if loop.run:
                loop.run.finish("diverged", None)
            raise


def _longer(
    config: ExperimentConfig, epochs: int, run: RunDirectory | None, dataset: data.Dataset, progress: Progress
) -> ExperimentConfig:
    """The config of a run that continues to more epochs. Its directory records the new number."""
    if not run:  # With several processes, only the first one has the run.
        if jax.process_count() == 1:
            raise ConfigError("epochs", "needs run, a run to continue; for a new run, set epochs in its config")
        return dataclasses.replace(config, epochs=epochs)
    done, before = len(run.epochs()), config.epochs
    if epochs < done:
        raise ConfigError("epochs", f"must be at least the {done} epochs that are done, got {epochs}")
    config = dataclasses.replace(config, epochs=epochs)
    check_data(config, dataset)
    if epochs != before:
        same_bits = not done or not reads_length(config, dataset)
        if not same_bits:
            was = f"The learning rate depends on the number of epochs, which was {before} until now"
            progress.note(f"{was}: the bits differ from a run with {epochs} epochs from the start.")
        if why := (run.manifest["result"] or {}).get("stopped"):
            progress.note(f"{run.path} stopped in epoch {done}, as a run of {epochs} epochs would have: {why}.")
        run.lengthen(epochs, same_bits=same_bits)
    return config


def reads_length(config: ExperimentConfig, dataset: data.Dataset) -> bool:
    """Whether the optimizer's updates depend on the length of the run, as with the schedule `Cosine`."""

    def update(total_steps: Any, params: Any) -> Any:
        rule = config.optimizer.transformation(total_steps)
        return rule.update(params, rule.init(params), params)

    state = jax.eval_shape(train.init_state, config.on_data(dataset.num_classes, 1), dataset.facts.zeros(1).inputs)
    jaxpr = jax.make_jaxpr(update)(jnp.int32(1), state.params)
    return dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))[1][0]


def planned_rates(config: ExperimentConfig, dataset: data.Dataset) -> list[tuple[int, float, float]]:
    """The schedule's learning rate over a run: (update, from 0; its epoch; rate) for at most 101 updates.

    Empty if the optimizer's rate is not known.
    """
    steps_per_epoch = -(-len(dataset.train.targets) // config.batch_size)
    on_data, last = config.on_data(dataset.num_classes, steps_per_epoch), config.epochs * steps_per_epoch - 1
    steps = sorted({last * part // 100 for part in range(101)})
    rates = jax.jit(jax.vmap(train.learning_rate, in_axes=(None, 0)))(on_data, jnp.asarray(steps, jnp.int32))
    found = [(step, step / steps_per_epoch, float(rate)) for step, rate in zip(steps, rates, strict=True)]
    return [each for each in found if not math.isnan(each[2])]


def weights_of(path: str | Path, config: ExperimentConfig, dataset: data.Dataset) -> dict[str, Any] | None:
    """The last weights of a run, by their paths in a checkpoint. None in every process but the first.

    Raises:
        RunError: The run does not exist, has no checkpoint, or its weights have other shapes.
    """
    if not distributed.is_first():
        return None
    source = RunDirectory.open(path, write=False)
    found = source.newest_checkpoint(lambda text: None)
    if not found:
        raise RunError(f"{source.path} has no checkpoint yet, so there are no weights to start from.")
    weights = {name: array for name, array in found.arrays.items() if name.startswith(WEIGHTS)}
    state = jax.eval_shape(train.init_state, config.on_data(dataset.num_classes, 1), dataset.facts.zeros(1).inputs)
    restore({"state": {"params": state.params, "variables": state.variables}}, weights)
    return weights


def _check_run(run: RunDirectory, config: ExperimentConfig, accept_changed_code: bool) -> None:
    there, here = run.plain_config, config.to_dict()
    if other := [each for each in {**here, **there} if each != "name" and here.get(each) != there.get(each)]:
        raise RunError(
            f"{run.path} has a config with another {', '.join(other)}. Continue with fit(run=...), without a config."
        )
    changed = Code(config).changed(code.wanted(run.manifest))
    if changed and not accept_changed_code:
        raise refusal(run.path, changed)
    if changed:
        run.accept_code(code_of(config))


def check_data(config: ExperimentConfig, dataset: data.Dataset) -> None:
    """Check that config and data fit each other.

    There must be a full batch, and no more updates than an int32 counts. The network, loss and metrics must fit the
    examples, the class weights the classes, and the controllers' monitors the splits that are scored.

    Raises:
        ConfigError: They do not fit.
        DataError: Inputs are 0 to 1, but the config scales them as pixels of 0 to 255.
    """
    examples = len(dataset.train.targets)
    if config.batch_size > examples:
        raise ConfigError("batch_size", f"must be at most the {examples} training examples, got {config.batch_size}")
    most = MAX_STEPS // -(-examples // config.batch_size)
    if config.epochs > most:
        wanted = f"must be at most {most} for {examples} examples in batches of {config.batch_size}"
        raise ConfigError("epochs", f"{wanted}, because an int32 counts the updates; got {config.epochs}")
    check_network(config, dataset.facts)
    there = ("train", "test", *dataset.others)
    if unknown := [name for name in config.data.also if name not in there]:
        wanted = f"must be names among {', '.join(there)}, got {unknown[0]!r}"
        raise ConfigError("data.also", f"{wanted}.{did_you_mean(unknown[0], there)}")
    names = ["loss", *(metric.name for metric in config.metrics)]
    of_others = tuple(f"{name}_" for name in config.data.also)
    validated = [f"val_{name}" for name in config.validated if dataset.validation or name.startswith(of_others)]
    check_monitors(config, [*names, *validated])
    _check_class_weights(config.data, dataset.facts)
    data.check_pixels(dataset.train.inputs, config.data.pixel_scale)


def _check_class_weights(config: DataConfig, facts: data.Facts) -> None:
    classes = facts.outputs if facts.classes else 0
    if config.class_weights and len(config.class_weights) != classes:
        wanted = (
            f"must be one weight for each of the {classes} classes"
            if classes
            else "need classes, but the targets are numbers"
        )
        raise ConfigError("data.class_weights", f"{wanted}, got {len(config.class_weights)}")
