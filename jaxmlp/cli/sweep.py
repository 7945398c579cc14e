"""`jaxmlp sweep`: train many seeds and values of an experiment, or continue an interrupted sweep."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jaxmlp.cli import STARTED, Answer, flags, say
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.cli.train import join, refuse_code
from jaxmlp.errors import ConfigError, DivergedError, UsageError
from jaxmlp.experiment.fields import ranged
from jaxmlp.sweep.values import MAX_LANES, Choices, Range
from jaxmlp.system import runtime

if TYPE_CHECKING:
    from jaxmlp.experiment.config import ExperimentConfig
    from jaxmlp.sweep.progress import SweepProgress
    from jaxmlp.sweep.result import SweepResult
    from jaxmlp.system.signals import Stop

RANGE = re.compile(r"(log|uniform)\(([^,()]+),([^,()]+)\)")


@dataclass(frozen=True, kw_only=True)
class SweepResumeFlags(flags.CodeFlags, flags.DataFlags, flags.DeviceFlags):
    """Continue a sweep, lane by lane, to the same bits. For a finished sweep, show its result."""

    resume: str | None = None
    """Sweep to continue, a folder or `last`, instead of EXPERIMENT.py."""
    accept_changed_code: flags.Switch = False
    """Go on although the code has changed since the sweep began. The sweep records the change."""
    devices: int | None = ranged(None, "[1, 65536]")
    """Number of devices that share the lanes. Default: all; on the CPU one per core."""
    distributed: str | None = None
    """Join other processes, as for train: auto or HOST:PORT,PROCESSES,INDEX. The port of process 0 has no password:
    keep it inside a network that you trust."""
    checkpoint_s: float = ranged(60.0, "[0, inf)")
    """Seconds between two checkpoints of the lanes in training."""
    digest_every: int | None = ranged(None, "[1, 2147483647]")
    """Number of updates between two digests in the trace.jsonl of kept runs. Default: digests of epochs only."""
    resident_mb: float = ranged(4096.0, "(0, inf)")
    """Largest size in megabytes of a split's inputs that stay on the devices. A larger split is streamed. The bits do
    not depend on it."""
    verbose: Literal["auto", "0", "1", "2"] = "auto"
    """What is shown: 0 only the table, 1 a live line on a terminal, 2 a line per epoch; auto is 1 on a terminal, else
    2."""


@dataclass(frozen=True, kw_only=True)
class SweepFlags(SweepResumeFlags):
    """Train every seed of every setting of an experiment's CONFIG, or continue a sweep: --resume DIR.

    Lanes that differ only in seed, rates, momenta and decays share one compiled program. Other values compile once
    each.
    """

    seeds: str | None = None
    """Seeds, such as 0:16 (0 to 15), 3, or 1,5,7. Default: the experiment's own seed."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=a,b,...: a lane for each value, such as optimizer.learning-rate=0.001,0.003. Several --set give all
    combinations. A list is written as several words: "model.hidden-sizes=512 512,256". With --random,
    FIELD=log(1e-4,1e-1) or FIELD=uniform(0,0.9) is a range to draw from."""
    random: int | None = ranged(None, "[1, 65536]")
    """Number of settings to draw from the ranges, in place of all combinations."""
    random_seed: int = ranged(0, "[0, inf)")
    """Seed of the drawn settings."""
    batching: Literal["map", "vmap"] = "map"
    """map: a lane has the bits of its solo run. vmap: a device trains its lanes together, for accelerators; the last
    bits may differ from a solo run."""
    out: Path | None = None
    """Folder of the sweep. Default: a new folder in JAXMLP_RUNS_DIR, or in runs."""
    keep_runs: flags.Switch = False
    """Keep a run directory for each lane in the sweep's folder."""


def run(argv: Sequence[str]) -> Answer:
    """Sweep, and return the result."""
    if any(word.partition("=")[0] == "--resume" for word in argv):
        hint = " The stored sweep applies; other values need a new sweep."
        return _resume(flags.parse(SweepResumeFlags(), argv, "sweep --resume DIR", hint=hint)[0], argv)
    return _begin(*parse_experiment(SweepFlags, argv, "sweep"), argv)


def _begin(chosen: SweepFlags, config: ExperimentConfig, argv: Sequence[str]) -> Answer:
    if chosen.seeds is None and not chosen.set:
        such = "--seeds 0:16 or --set optimizer.learning-rate=0.001,0.003"
        raise UsageError(f"sweep needs --seeds or --set, such as {such}")
    refuse_code(chosen)
    seeds = parse_seeds(chosen.seeds) if chosen.seeds is not None else [config.seed]
    vary = parse_vary(chosen.set, config)
    from jaxmlp.sweep.lanes import make_plan, make_settings, with_values

    # Report mistakes before JAX starts.
    settings = make_settings(config, vary, draws=chosen.random, random_seed=chosen.random_seed)
    make_plan(config, seeds, settings)
    _configure(chosen, argv, len(seeds) * len(settings), config.exact)
    from jaxmlp import data
    from jaxmlp.run.find import new_folder
    from jaxmlp.source.code import roots_of
    from jaxmlp.sweep import sweep
    from jaxmlp.system import distributed

    dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=say)
    path = None
    if distributed.is_first():
        path = chosen.out or new_folder(f"{config.name}-sweep", datetime.now(UTC))

    def train(progress: SweepProgress, stop: Stop) -> SweepResult:
        return sweep(
            config, dataset, seeds=seeds, vary=vary, draws=chosen.random, random_seed=chosen.random_seed,
            batching=chosen.batching, out=path, keep_runs=chosen.keep_runs, progress=progress,
            devices=chosen.devices, stop=stop, checkpoint_s=chosen.checkpoint_s, digest_every=chosen.digest_every,
            resident_bytes=int(chosen.resident_mb * 2**20),
        )  # fmt: skip

    roots = roots_of(*(with_values(config, values) for values in settings))
    return _train(train, path, chosen, roots)


def _resume(chosen: SweepResumeFlags, argv: Sequence[str]) -> Answer:
    _configure(chosen, argv, MAX_LANES)
    from jaxmlp.sweep import resume
    from jaxmlp.sweep.directory import find_sweep
    from jaxmlp.system import distributed

    path = find_sweep(str(chosen.resume)) if distributed.is_first() else None

    def train(progress: SweepProgress, stop: Stop) -> SweepResult:
        return resume(
            path, experiment=chosen.experiment, accept_changed_code=chosen.accept_changed_code,
            manual_dir=chosen.manual_dir, progress=progress, devices=chosen.devices, stop=stop,
            checkpoint_s=chosen.checkpoint_s, digest_every=chosen.digest_every,
            resident_bytes=int(chosen.resident_mb * 2**20),
        )  # fmt: skip

    return _train(train, path, chosen, chosen.experiment)


def _configure(chosen: SweepResumeFlags, argv: Sequence[str], lanes: int, exact: bool = True) -> None:
    join("sweep", argv, chosen.device, chosen.distributed, cpu_devices=lanes, exact=exact)
    runtime.configure(chosen.device, cpu_devices=lanes, exact=exact)


def _train(
    train: Callable[[SweepProgress, Stop], SweepResult],
    path: Path | None,
    chosen: SweepResumeFlags,
    experiment: Sequence[Path],
) -> Answer:
    """Train and report. Only the first process has a path."""
    from jaxmlp.run import code
    from jaxmlp.sweep.progress import make_progress
    from jaxmlp.system import distributed
    from jaxmlp.system.signals import stop_signals

    folder = distributed.share(str(path.resolve() if path else "").encode()).decode()
    distributed.tell("run_dir", folder)
    again = code.flags(experiment) + flags.repeated(chosen, SweepResumeFlags)
    distributed.tell("flags", again)
    with make_progress(chosen.verbose if path else "0") as progress, stop_signals() as stop:
        result = train(progress, stop)
    document = {"sweep_dir": folder, **result.result(), "total_s": time.perf_counter() - STARTED}
    if result.lanes and path:
        say(f"{result.table()}\n{folder}")
    if result.status != "finished":
        assert stop.signal
        saved = f"{len(result.lanes)} of {result.total} lanes are done, lanes in training are saved"
        resume = f"Go on: jaxmlp sweep --resume {shlex.quote(folder)}{again}"
        return Answer(document, stop.exit_code, f"{stop.signal.name}: {saved}. {resume}")
    if all(lane.status == "diverged" for lane in result.lanes):
        message = "every lane diverged. Try smaller learning rates, or check the data's scale (--data.pixel-scale)."
        return Answer(document, DivergedError.exit_code, message)
    return Answer(document)


def parse_seeds(text: str) -> list[int]:
    """Seeds from `0:16`, `3`, `1,5,7`, or several of these joined by commas.

    Raises:
        ConfigError: The text has another form, or a range is empty or too long.
    """
    seeds: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?::(\d{1,19}))?\s*", word)
        if not match:
            raise ConfigError("seeds", f"must look like 0:16, 3 or 1,5,7, got {text!r}")
        first, end = int(match[1]), int(match[2] or int(match[1]) + 1)
        if first >= end:
            raise ConfigError("seeds", f"must not be empty, got {word.strip()}, which ends before it begins")
        if end - first > MAX_LANES:
            raise ConfigError("seeds", f"must be at most {MAX_LANES:,}, got {end - first:,}")
        seeds += range(first, end)
    return seeds


def parse_vary(words: Sequence[str], config: ExperimentConfig) -> dict[str, Choices]:
    """The values of each `--set`, by the field's path.

    Raises:
        ConfigError: A field is set twice, or is a part with fields of its own.
        UsageError: A word is not FIELD=VALUES.
    """
    vary: dict[str, Choices] = {}
    for word in words:
        flag, equals, text = word.partition("=")
        name = flag.strip().removeprefix("--").replace("-", "_")
        if not equals or not name:
            raise UsageError(f"--set must be FIELD=a,b,..., such as optimizer.learning-rate=0.001,0.003, got {word!r}")
        if name in vary:
            raise ConfigError(name, "is set twice: give all its values in one --set")
        if match := RANGE.fullmatch(text.strip()):
            try:
                vary[name] = Range(low=float(match[2]), high=float(match[3]), log=match[1] == "log")
            except ValueError:
                raise ConfigError(name, f"must have two numbers in its range, got {text}") from None
        else:
            vary[name] = [_value(name, each.split(), config) for each in text.split(",")] if text.strip() else []
    return vary


def _value(name: str, words: Sequence[str], config: ExperimentConfig) -> Any:
    """The value of these words, by the field's type. For an unknown field they are left for a later check to refuse."""
    from jaxmlp.experiment.parts import Part

    *parts, last = name.split(".")
    part: Any = config
    for each in parts:
        named = dict(enumerate(part)) if isinstance(part, tuple) else {}
        part = named.get(int(each)) if re.fullmatch(r"[0-9]{1,9}", each) else getattr(part, each, None)
    if not isinstance(part, Part):
        return flags.value_of(words, int | float | str)
    value, hint = getattr(part, last, None), typing.get_type_hints(type(part)).get(last)
    if isinstance(value, Part):
        if value.rule:
            return " ".join(words)
        such = f"{name}.{dataclasses.fields(value)[0].name}"  # type: ignore[arg-type]
        raise ConfigError(name, f"is a part of the experiment, not a value: set its fields, such as {such}")
    if hint is bool:
        return {"true": True, "false": False}.get(" ".join(words).lower(), " ".join(words))
    return flags.value_of(words, hint)
