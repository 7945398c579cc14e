"""`jaxmlp compile`: what would a target that is not here run?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxmlp.cli import Answer, flags, say
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.compile import targets
from jaxmlp.errors import DeviceError
from jaxmlp.experiment.fields import ranged
from jaxmlp.run import files
from jaxmlp.system import runtime

if TYPE_CHECKING:
    from jaxmlp.compile.program import Program
    from jaxmlp.compile.report import Report
    from jaxmlp.experiment.config import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class CompileFlags(flags.Flags):
    """Compile an experiment's program for an accelerator, which need not be here: memory, work, messages, findings.

    Nothing is trained. For MNIST the data need not be present, because only its shapes matter.
    """

    for_target: Annotated[str, tyro.conf.arg(name="for")] = "cpu"
    """Target: tpu-v4:2x2x1, tpu-v5e:2x2, tpu-v6e:2x4, tpu-v5p:2x2x1, h100, h200, b200 or cpu. TPUs may have any
    slice."""
    devices: int | None = ranged(None, "[1, 65536]")
    """Number of devices that split each batch, or the lanes. Default: for TPUs the largest number that divides the
    gradient shards or the lanes; for GPUs and CPUs one."""
    lanes: int | None = ranged(None, "[1, 65536]")
    """Number of lanes of a sweep to compile. Default: a single run."""
    batching: Literal["map", "vmap"] = "map"
    """How a device trains its lanes: one after another (map) or together (vmap)."""
    evaluate: flags.Switch = False
    """Compile the evaluation of the test split instead of training."""
    hlo: Path | None = None
    """File to write the compiler's optimised program to."""


def run(argv: Sequence[str]) -> Answer:
    """Compile and report. Exit code 6 if the compiler is missing or the program does not fit the device's memory."""
    # Read before the flags are parsed, because JAX may start then.
    counts = (int(word) for word in flags.words_after("--devices", argv) if re.fullmatch("[0-9]{1,6}", word))
    targets.prepare(next(counts, None))
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
        files.write(chosen.hlo, found.compiled.text.encode())
    answer = Answer(document(found))
    return answer if found.fits else answer._replace(exit_code=DeviceError.exit_code, message=_too_small(found))


def _too_small(found: Report) -> str:
    memory = (found.compiled.memory if found.compiled else found.counted).total
    needs = f"{memory / 1e9:,.2f} GB, but a device of {found.target.name} has {found.target.memory() / 1e9:,.2f} GB"
    what = "lanes" if found.program.lanes else "batch size"
    fits = f"The largest {what} that fits is {found.largest:,}, by counting" if found.largest else f"No {what} fits"
    return f"device: the program needs {needs}. {fits}" + (f"\nThe compiler: {found.refusal}" if found.refusal else "")
