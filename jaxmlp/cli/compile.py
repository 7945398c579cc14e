"""`jaxmlp compile`: what a target that is not here would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags, say
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.compile import targets
from jaxmlp.errors import DeviceError, DiskError
from jaxmlp.fields import ranged

if TYPE_CHECKING:
    from jaxmlp.compile.program import Program
    from jaxmlp.compile.report import Report
    from jaxmlp.config import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class CompileFlags(flags.Flags):
    """Compile an experiment's program for an accelerator that need not be here: memory, work, messages, findings.

    Nothing is trained. Of MNIST's images only the shapes are needed.
    """

    for_target: Annotated[str, tyro.conf.arg(name="for")] = "cpu"
    """The target: tpu-v5e:2x2, tpu-v6e:2x4, tpu-v5p:2x2x1, h100, b200, cpu; of TPUs any slice."""
    devices: int | None = ranged(None, "[1, 65536]")
    """How many of its devices share a batch, or the lanes; by default the largest number that divides the gradient
    shards, of GPUs and CPUs one."""
    lanes: int | None = ranged(None, "[1, 65536]")
    """Compile a sweep of so many lanes."""
    batching: Literal["map", "vmap"] = "map"
    """How a device trains its lanes."""
    evaluate: flags.Switch = False
    """Compile the evaluation of the test split, in place of training."""
    hlo: Path | None = None
    """Write the compiler's optimised program to this file."""


def run(argv: Sequence[str]) -> Answer:
    """Compile, and answer with the report; 6 where the compiler is missing or the device's memory is too small."""
    targets.prepare(_devices(argv))
    chosen, config = parse_experiment(CompileFlags, argv, "compile")
    target = targets.Target.of(chosen.for_target)
    runtime.configure("cpu")
    from jaxmlp.compile.program import Examples, evaluation, training
    from jaxmlp.compile.report import document, report, table

    devices = target.devices(chosen.devices, chosen.lanes or config.grad_shards)
    examples = Examples.of(config.data)

    def trace(config: ExperimentConfig, lanes: int | None) -> Program:
        kind = evaluation if chosen.evaluate else training
        return kind(config, examples, devices, lanes=lanes, batching=chosen.batching)

    found = report(target, config, trace, chosen.lanes)
    say(table(found))
    if chosen.hlo and found.compiled:
        _write(chosen.hlo, found.compiled.text)
    answer = Answer(document(found))
    return answer if found.fits else answer._replace(exit_code=DeviceError.exit_code, message=_too_small(found))


def _devices(argv: Sequence[str]) -> int | None:
    """The value of --devices, before the flags are parsed, because JAX may start then."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        value = following if word == "--devices" else word.removeprefix("--devices=")
        if word.startswith("--devices") and value.isdigit():
            return int(value)
    return None


def _too_small(found: Report) -> str:
    memory = (found.compiled.memory if found.compiled else found.counted).total
    needs = f"{memory / 1e9:,.2f} GB, and a device of {found.target.name} has {found.target.memory() / 1e9:,.2f} GB"
    what = "lanes" if found.program.lanes else "batch size"
    told = f"The largest {what} that fits, as counted: {found.largest:,}" if found.largest else f"No {what} fits"
    return f"device: the program needs {needs}. {told}" + (f"\nThe compiler: {found.refusal}" if found.refusal else "")


def _write(path: Path, text: str) -> None:
    from jaxmlp.run import files

    try:
        files.write(path, text.encode())
    except OSError as error:
        raise DiskError(f"could not write {path}: {error.strerror}") from None
