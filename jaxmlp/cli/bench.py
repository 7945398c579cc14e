"""`jaxmlp bench`: how fast is jaxmlp on this device, and has it become slower?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import CheckFailed, ConfigError, DiskError, UsageError
from jaxmlp.experiment.fields import parse_json, ranged
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class BenchFlags(flags.DeviceFlags):
    """Time compiling, steps, epochs, evaluation and whole runs, and compare them with this device's peak rates."""

    suite: Literal["quick", "full"] = "quick"
    """Sizes to time. quick takes minutes and shows the time left. full times every combination of sizes and takes much
    longer."""
    processes: int | None = ranged(None, "[1, 1000]")
    """Number of fresh processes that are timed, one after the other. Default: 10; with --exactness 5 for each suite."""
    compare: Path | None = None
    """File from an earlier `bench --json`. Exit with 3 if a row is slower now: by more than --fail-slower and than the
    spread of its own processes, with p < 0.05 for the table as a whole."""
    fail_slower: str = "5%"
    """Percentage by which a row may be slower."""
    across_devices: flags.Switch = False
    """Allow a comparison with a file from another device."""
    mllog: flags.Switch = False
    """Also print MLPerf's log lines."""
    out: Path | None = None
    """Folder for bench.json and the pictures: roofline, throughput, scaling."""
    exactness: flags.Switch = False
    """Time what each level of exactness costs instead: updates that promise no bits, the same bits again, on several
    devices, or on any machine. Takes some minutes."""
    profile: Path | None = None
    """Folder for JAX's trace of an epoch. Also print its ten most expensive operations."""
    self_check: flags.Switch = False
    """Test the benchmark on work and slow-downs of known size instead. Exit with 3 if it errs."""


def run(argv: Sequence[str]) -> Answer:
    """Time a suite, compare it with a base, and write its pictures."""
    chosen = flags.parse(BenchFlags(), argv, "bench")[0]
    limit = _part(chosen.fail_slower)
    _check_together(chosen)
    for folder in (chosen.out, chosen.profile):
        if folder:
            _make(folder)
    base = read_benchmark(chosen.compare) if chosen.compare else None
    if chosen.self_check:
        runtime.configure(chosen.device)
        return _self_check()
    tell = partial(print, file=sys.stderr, flush=True)
    if chosen.exactness:
        return _exactness(chosen, tell)
    from jaxmlp.bench import processes
    from jaxmlp.bench.compare import check_comparable, check_processes

    wanted = chosen.processes or processes.SUITES[chosen.suite]
    units = {row["key"]: row["units"] for row in base["rows"]} if base else None
    if base:
        check_processes(base, wanted)

    def check(first: Mapping[str, Any]) -> None:
        if base:
            check_comparable(base, first, across_devices=chosen.across_devices)

    profiled = str(chosen.profile.absolute()) if chosen.profile else None
    document = processes.run_suite(
        chosen.suite,
        device=chosen.device,
        processes=wanted,
        units=units,
        profiled=profiled,
        check=check,
        tell=tell,
    )
    say("\n".join(_table(document)))
    if chosen.mllog:
        from jaxmlp.bench.mllog import mllog_lines

        say("\n".join(mllog_lines(document)))
    answer = Answer(document)
    if base:
        answer = _compare(base, document, limit, chosen)
    if chosen.out:
        _write(document, chosen.out)
    return answer


def _check_together(chosen: BenchFlags) -> None:
    """Refuse flags of a suite beside a measurement that is not a suite.

    Raises:
        UsageError: There are such flags.
    """
    for alone in ("exactness", "self_check"):
        others = [name for name in ("compare", "mllog", "out", "profile", "self_check") if name != alone]
        unused = [f"--{name.replace('_', '-')}" for name in others if getattr(chosen, name)]
        if getattr(chosen, alone) and unused:
            raise UsageError(f"--{alone.replace('_', '-')} measures no suite. Leave out {' and '.join(unused)}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {error.strerror}") from None


def _exactness(chosen: BenchFlags, tell: Callable[[str], None]) -> Answer:
    from jaxmlp.bench.exactness import run_exactness, table
    from jaxmlp.bench.noise import BUSY_CORES

    found = run_exactness(device=chosen.device, processes=chosen.processes, tell=tell)
    say("\n".join(table(found)))
    if found["others_cores"] > BUSY_CORES:
        say(f"The machine was noisy: other processes kept up to {found['others_cores']:.1f} cores busy.")
    return Answer(found)


def _part(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not text.endswith("%") or not 0 <= percent < 1000:
        raise ConfigError("fail_slower", f"must be a percentage such as 5%, got {text!r}")
    return percent / 100


def read_benchmark(path: Path) -> dict[str, Any]:
    """The JSON document that `bench --json` printed.

    Raises:
        UsageError: The file cannot be read, or holds something else.
    """
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}. Make one: jaxmlp bench --json > {path}") from None
    if not _is_of_bench(document):
        wanted = "is not a benchmark's document, or is from a version that did not record processes"
        raise UsageError(f"{path} {wanted}. Make one: jaxmlp bench --json > {path}")
    found: dict[str, Any] = document
    return found


def _is_of_bench(document: Any) -> bool:
    """Whether a document has the values that a comparison reads."""
    try:
        facts = [document["manifest"][name] for name in ("binding", "not_binding")]
        times = [seconds for row in document["rows"] for seconds in row["process_s"] or [0.0]]
        texts = [document["suite"], *(row[name] for row in document["rows"] for name in ("key", "what"))]
        noise = document["noise"]
        texts += [noise["message"]] if noise["noisy"] else []
        times += [noise["load_factor"]]
        are_alike = len({len(row["process_s"]) for row in document["rows"]}) <= 1
        are_counts = all(type(row["units"]) is int and 0 < row["units"] <= 1 << 20 for row in document["rows"])
        are_times = all(type(seconds) in (int, float) and 0 < seconds < 1e9 for seconds in times)
        are_named = all(isinstance(text, str) for text in texts) and all(isinstance(fact, dict) for fact in facts)
        return are_alike and are_counts and are_times and are_named
    except (AttributeError, KeyError, TypeError):
        return False


def _self_check() -> Answer:
    from jaxmlp.bench.self_check import self_check

    found = self_check()
    say("\n".join(f"{name}: {value}" for name, value in found.items()))
    failed = "the benchmark missed known answers: see above. A busy machine can cause this"
    return Answer(found) if found["passed"] else Answer(found, CheckFailed.exit_code, failed)


def _compare(base: Mapping[str, Any], document: Mapping[str, Any], limit: float, chosen: BenchFlags) -> Answer:
    from jaxmlp.bench.compare import compare_benchmarks

    differences, device_ratio = compare_benchmarks(base, document, limit=limit, across_devices=chosen.across_devices)
    width = max(len(found.key) for found in differences)
    say(f"\n{'':{width}}     base s     here s  ratio  spread  effect       p")
    for found in differences:
        figures = (
            f"{found.base_s:10.3g} {found.here_s:10.3g} {found.ratio:6.3f} {found.spread:7.1%} {found.effect:7.2f}"
        )
        say(f"{found.key:{width}} {figures} {found.p:7.2g}  {found.verdict}")
    say(f"A plain step took {device_ratio:.2f} of its time in the base. The times of jaxmlp are relative to it.")
    for name, measured in (("The base", base), ("This one", document)):
        if measured["noise"]["noisy"]:
            say(f"{name}: {measured['noise']['message']}")
    compared = {"comparison": [found._asdict() for found in differences], "device_ratio": device_ratio}
    answer = Answer({**document, **compared})
    judged = [found for found in differences if found.verdict != "device"]
    slower = [f"{found.key} ({found.ratio:.2f})" for found in judged if found.verdict == "slower"]
    unstable = sum(found.verdict == "unstable" for found in judged)
    if unstable:
        say(f"{unstable} of {len(judged)} rows are unstable: their processes disagree too much for a conclusion")
    if not slower:
        return answer
    message = f"{len(slower)} of {len(judged)} rows are slower by more than {chosen.fail_slower}: {', '.join(slower)}"
    return answer._replace(exit_code=CheckFailed.exit_code, message=message)


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    width = max(len(row["key"]) for row in document["rows"])
    yield f"{'':{width}}     median   spread  examples/s   GFLOP/s    GB/s  of roof"
    for row in document["rows"]:
        rates = [row["examples_per_s"], row["flops_per_s"] / 1e9, row["bytes_per_s"] / 1e9]
        shown = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate else "-" for rate in rates]
        roof = f"{row['of_roof']:.0%}" if "of_roof" in row else "-"
        times = f"{_time(row['median_s'])} {row['iqr_s'] / row['median_s']:8.1%}"
        yield f"{row['key']:{width}} {times} {shown[0]:>11} {shown[1]:>9} {shown[2]:>7} {roof:>8}"
    yield ""
    yield from _legend(document)
    peaks = document["peaks"]
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in peaks["flops_per_s"].items())
    yield f"Peaks measured here: {products}; {peaks['bytes_per_s'] / 1e9:.1f} GB/s"
    for row in document["rows"]:
        if "of_products" in row:
            alone, rate = f"{row['of_products']:.0%}", f"; {row['mfu']:.1%} of the maker's peak" if "mfu" in row else ""
            yield f"An update in {row['precision']}: its products alone take {alone} of its time{rate}"
    for fit in document["scaling"]:
        yield f"{fit['what']} grows as {fit['size'].replace('_', ' ')} ^ {fit['exponent']:.2f}".capitalize()
    if (seconds := _mnist_epoch_s(document)) is not None:
        yield f"MNIST epoch: {seconds:.3g} s: relu experiment, 469 updates and 10,000 images evaluated, from these rows"
    machine, energy, peak = document["machine"], document["energy"], document["machine"]["peak_bytes"]
    joules = energy["joules"]
    yield f"Energy: {f'{joules / energy["updates"]:.3g} J per update' if joules is not None else 'not known'}"
    held = f"; {peak['device'] / 2**20:,.0f} MiB on the device" if peak["device"] is not None else ""
    yield f"Peak memory of a process: {peak['host'] / 2**20:,.0f} MiB on the host{held}"
    host = f"{machine['cores']} cores of {machine['processor'] or 'an unknown processor'}"
    yield f"Measured on {machine['devices']} x {machine['device_kind']}, {host}"
    for one in document["profile"] or ():
        yield f"{one['seconds'] * 1e3:9.2f} ms in {one['count']:5} x {one['op']} ({one['module']})"
    if document["noise"]["noisy"]:
        yield document["noise"]["message"]


def _legend(document: Mapping[str, Any]) -> Iterator[str]:
    letters = {"b": "batch size", "w": "width of both hidden layers", "m": "MiB of an array", "n": "examples"}
    letters |= {"l": "lanes of a sweep", "d": "devices", "g": "gradient shards, if not one per device"}
    used = {word[0] for row in document["rows"] for word in row["key"].split() if word[1:].isdecimal()}
    yield "; ".join(f"{letter} {meaning}" for letter, meaning in letters.items() if letter in used)
    yield f"median: of {document['processes']} processes; spread: their interquartile range over the median."
    yield "of roof: the least time, at the rates of product and copy measured here, over the measured time."
    if any(row.get("of_roof", 0) > 1 for row in document["rows"]):
        yield "Above 100 %: caches held bytes that the roof counts as moved, so memory does not bound the row."


def _mnist_epoch_s(document: Mapping[str, Any]) -> float | None:
    """Seconds of an MNIST epoch of the relu experiment, from the rows of its sizes. None if the rows are missing."""
    wanted = {"batch_size": 128, "width": 512, "precision": "float32", "devices": 1, "grad_shards": 1}
    found = {row["what"]: row for row in document["rows"] if all(row[name] == size for name, size in wanted.items())}
    if not {"step", "evaluation"} <= found.keys():
        return None
    evaluated = found["evaluation"]
    return float(469 * found["step"]["median_s"] + 10_000 / evaluated["examples"] * evaluated["median_s"])


def _time(seconds: float) -> str:
    for unit, size in (("s ", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:7.3f} {unit}"
    return f"{seconds * 1e6:7.1f} us"


def _write(document: Mapping[str, Any], folder: Path) -> None:
    try:
        (folder / "bench.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        from jaxmlp.bench.plots import draw
    except ModuleNotFoundError:
        say(f"{folder}/bench.json; pictures need matplotlib: pip install 'jaxmlp[report]'")
        return
    say(", ".join(map(str, [folder / "bench.json", *draw(document, folder)])))
