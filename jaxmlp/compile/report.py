"""What would a target run? The report shows the compiled program beside what is counted without a compiler."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from jaxmlp.compile import count, hlo, promises, reading
from jaxmlp.compile.count import Memory
from jaxmlp.compile.program import Program
from jaxmlp.compile.promises import Finding
from jaxmlp.compile.reading import Reading
from jaxmlp.compile.targets import Target, compiling_anew
from jaxmlp.errors import ConfigError, DeviceError
from jaxmlp.experiment.config import ExperimentConfig

Trace: TypeAlias = Callable[[ExperimentConfig, int | None], Program]
"""Traces the program of an experiment with a number of lanes."""


@dataclass(frozen=True)
class Compiled:
    """A program compiled for a target."""

    program: Program
    seconds: float
    text: str
    """Text of the optimised module."""
    memory: Memory
    """Memory according to the compiler."""
    reading: Reading


@dataclass(frozen=True)
class Report:
    """What a target would run, compiled and counted."""

    target: Target
    program: Program
    counted: Memory
    counted_flops: int
    compiled: Compiled | None
    """The compiled program. None if the target has too little memory for it."""
    refusal: str
    """The compiler's message in that case."""
    precision: str
    fits: bool
    largest: int | None
    """If the program does not fit: the largest batch or number of lanes that fits, by counting; 0 if none fits."""

    @property
    def findings(self) -> list[Finding]:
        """Findings of the promises on the program."""
        return promises.findings(self.compiled.reading, self.program.donated) if self.compiled else []

    @property
    def bounds(self) -> dict[str, float]:
        """Smallest number of seconds per iteration, by limit. The data sheet's peaks are never reached."""
        chip = self.target.chip
        if not self.compiled:
            return {}
        found = self.compiled.reading
        peak = chip.flops.get(self.precision) or max(chip.flops.values(), default=None)
        received = sum(each.received for each in found.collectives)
        whole = {
            "products": (found.flops, peak),
            "memory": (found.large_bytes, chip.bandwidth),
            "interconnect": (received, chip.interconnect),
        }
        return {name: amount / rate for name, (amount, rate) in whole.items() if rate}


def compile_for(target: Target, program: Program) -> Compiled:
    """Compile a program for its devices.

    Raises:
        DeviceError: The program needs the device itself, as a callback does.
        jax.errors.JaxRuntimeError: The target has too little memory, or the compiler fails.
    """
    began = time.perf_counter()
    try:
        lowered = program.traced.lower()
    except (RuntimeError, NotImplementedError) as error:  # For example a callback, for a device that is not here.
        line = str(error).partition("\n")[0]
        raise DeviceError(f"device: the program cannot be compiled for {target.name} from here: {line}") from error
    with compiling_anew():
        compiled = lowered.compile(compiler_options=target.flags or None)
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    found = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    read = reading.read(hlo.parse(text), program.carried, target.chip.cache_bytes)
    return Compiled(program, seconds, text, memory, read)


def report(
    target: Target,
    config: ExperimentConfig,
    trace: Trace,
    lanes: int | None = None,
) -> Report:
    """Compile an experiment's program for a target, and count it.

    Args:
        target: Target whose devices the program is traced for.
        config: The experiment.
        trace: Traces the program of a config with a number of lanes.
        lanes: Number of lanes of a sweep.
    """
    program = trace(config, lanes)
    counted = count.memory(program, target.chip.platform)
    compiled, refusal = None, ""
    try:
        compiled = compile_for(target, program)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = re.sub(r"^RESOURCE_EXHAUSTED: ", "", str(error)).partition("\n")[0]
    fits = compiled is not None and compiled.memory.total <= target.memory()
    largest = None if fits else _largest(target, config, trace, program)
    return Report(target, program, counted, count.products(program), compiled, refusal, config.precision, fits, largest)


def _largest(target: Target, config: ExperimentConfig, trace: Trace, program: Program) -> int:
    """The largest number of lanes, or batch size, below the given number that fits by the count, to within 1/64."""
    lanes = program.lanes
    unit = program.devices if lanes else config.grad_shards
    lowest, highest = 0, (lanes or config.batch_size) // unit

    def fits(units: int) -> bool:
        try:
            changed = config if lanes else dataclasses.replace(config, batch_size=units * unit)
            smaller = trace(changed, units * unit if lanes else None)
            return count.memory(smaller, target.chip.platform).total <= target.memory()
        except ConfigError:  # Shards would have a single row.
            return False

    while highest - lowest > max(1, highest // 64):
        middle = (lowest + highest) // 2
        lowest, highest = (middle, highest) if fits(middle) else (lowest, middle)
    return lowest * unit


def document(found: Report) -> dict[str, Any]:
    """The report as JSON."""
    compiled, target = found.compiled, found.target
    by_op: dict[str, list[int]] = {}
    for each in compiled.reading.collectives if compiled else ():
        by_op.setdefault(each.op, []).append(each.received)
    return {
        "program": found.program.name,
        "target": target.name,
        "devices": found.program.devices,
        "lanes": found.program.lanes,
        "compile_s": compiled and compiled.seconds,
        "memory": _memory(compiled.memory if compiled else None) | {"device": target.memory(), "fits": found.fits},
        "memory_counted": _memory(found.counted),
        "flops_per_step": compiled and compiled.reading.flops,
        "flops_per_step_counted": found.counted_flops,
        "bytes_per_step": compiled and compiled.reading.bytes,
        "kernels_per_step": compiled and compiled.reading.kernels_per_turn,
        "kernels": dict(compiled.reading.kernels) if compiled else {},
        "collectives": [{"op": op, "count": len(sizes), "bytes": sum(sizes)} for op, sizes in by_op.items()],
        "known_trip_count": compiled and compiled.reading.trip_count is not None,
        "findings": [{**each._asdict(), "flags": flags(target)} for each in found.findings],
        "lower_bound_s_per_step": max(found.bounds.values(), default=None),
        "lower_bounds_s": found.bounds,
        "source": target.chip.source or None,
        "flags": flags(target),
        "largest_that_fits": found.largest,
    }


def _memory(memory: Memory | None) -> dict[str, Any]:
    if memory is None:
        return dict.fromkeys((*Memory._fields, "total"))
    return {**memory._asdict(), "total": memory.total}


def flags(target: Target) -> list[str]:
    """The XLA flags with which a target's programs are compiled."""
    chosen: Mapping[str, Any] = {"xla_gpu_deterministic_ops": True, **target.flags}
    return [f"--{name}={str(value).lower()}" for name, value in chosen.items()]


def table(found: Report) -> str:
    """The report for people."""
    compiled, program, target = found.compiled, found.program, found.target
    devices = f"{program.devices} {'device' if program.devices == 1 else 'devices'}"
    lanes = f", {program.lanes} lanes" if program.lanes else ""
    seconds = f"compiled in {compiled.seconds:.1f} s" if compiled else "not compiled: out of memory"
    lines = [f"{program.name} on {devices} of {target.name}{lanes}: {seconds}", ""]
    lines += [f"{'memory per device':24}{'counted':>16}{'compiler':>16}"]
    theirs = compiled.memory if compiled else None
    for name in (*Memory._fields[:-1], "without_code", "code", "total"):
        ours = None if name == "total" else getattr(found.counted, name)
        lines.append(f"  {name.replace('_', ' '):22}{_shown(ours):>16}{_shown(theirs and getattr(theirs, name)):>16}")
    fits = "it fits" if found.fits else "it does not fit"
    lines += [f"  {'of the device':22}{'':16}{_shown(target.memory()):>16}   {fits}", ""]
    if compiled:
        read = compiled.reading
        turn = "an update" if program.name == "train" else "a batch"
        lines += [f"{turn + ' on a device':24}{'counted':>16}{'compiler':>16}"]
        lines += [f"  {'FLOPs of products':22}{found.counted_flops:>16,}{read.flops:>16,}"]
        lines += [f"  {'bytes moved':22}{'':16}{_shown(read.bytes):>16}"]
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(read.kernels.items()))
        lines += [f"  {'kernels':22}{'':16}{read.kernels_per_turn:>16,}   {kinds}"]
        for each in document(found)["collectives"]:
            lines.append(f"  {each['op']:22}{'':16}{each['count']:>16,}   {_shown(each['bytes'])} received")
        length = f"known, {read.trip_count:,}" if read.trip_count is not None else "not known"
        lines += [f"  {'length of the loop':22}{'':16}{length:>16}", ""]
        if found.bounds:
            name, least = max(found.bounds.items(), key=lambda item: item[1])
            lines += [
                f"at least {least * 1e6:,.1f} us, by the data sheet's peak of the {name}: {target.chip.source}",
                "",
            ]
        lines += [f"{len(found.findings)} findings, compiled under {' '.join(flags(target))}"]
        lines += [f"  {each.rule}: {each.what} ({each.where})" for each in found.findings]
    return "\n".join(lines)


def _shown(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.2f} MB"
