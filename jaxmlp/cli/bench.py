"""`jaxmlp bench`: how fast this program is on this device, and whether it has become slower."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import CheckFailed, ConfigError, DiskError, UsageError
from jaxmlp.fields import parse_json


@dataclass(frozen=True, kw_only=True)
class BenchFlags(flags.DeviceFlags):
    """Time compiling, steps, epochs, evaluation and whole runs, beside this device's fastest product and copy."""

    suite: Literal["quick", "full"] = "quick"
    """quick takes under a minute on two cores; full takes every combination of sizes."""
    compare: Path | None = None
    """A file that an earlier `bench --json` wrote; exit with 3 where a row is slower than there, p < 0.01."""
    fail_slower: str = "5%"
    """By how much a row may be slower."""
    across_devices: flags.Switch = False
    """Compare with a file of another device."""
    mllog: flags.Switch = False
    """Print MLPerf's log lines, too."""
    out: Path | None = None
    """Folder for bench.json and the pictures: roofline, throughput, scaling."""
    self_check: flags.Switch = False
    """Try the instrument on work and slow-downs of known size instead; exit with 3 where it errs."""


def run(argv: Sequence[str]) -> Answer:
    """Time, compare, draw."""
    chosen = flags.parse(BenchFlags(), argv, "bench")[0]
    limit = _part(chosen.fail_slower)
    base = _read(chosen.compare) if chosen.compare else None
    runtime.configure(chosen.device)
    if chosen.self_check:
        return _self_check()
    from jaxmlp.bench.suite import run_suite

    document = run_suite(chosen.suite)
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


def _part(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not text.endswith("%") or not 0 <= percent < 1000:
        raise ConfigError("fail_slower", f"must be a percentage such as 5%, got {text!r}")
    return percent / 100


def _read(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}. Make one: jaxmlp bench --json > {path}") from None
    if not _is_of_bench(document):
        raise UsageError(f"{path} is not a benchmark's. Make one: jaxmlp bench --json > {path}")
    found: dict[str, Any] = document
    return found


def _is_of_bench(document: Any) -> bool:
    """Whether it has what a comparison reads."""
    try:
        facts = [document["manifest"][name] for name in ("binding", "not_binding")]
        times = [seconds for row in document["rows"] for seconds in row["seconds"] or [0.0]]
        texts = [document["suite"], *(row["key"] for row in document["rows"])]
        noise = document["noise"]
        texts += [noise["message"]] if noise["noisy"] else []
        are_times = all(type(seconds) in (int, float) and 0 < seconds < 1e9 for seconds in times)
        return are_times and all(isinstance(text, str) for text in texts) and all(isinstance(f, dict) for f in facts)
    except (AttributeError, KeyError, TypeError):
        return False


def _self_check() -> Answer:
    from jaxmlp.bench.self_check import self_check

    found = self_check()
    say("\n".join(f"{name}: {value}" for name, value in found.items()))
    failed = "the instrument erred on known answers: see above; a busy machine does that"
    return Answer(found) if found["passed"] else Answer(found, CheckFailed.exit_code, failed)


def _compare(base: Mapping[str, Any], document: Mapping[str, Any], limit: float, chosen: BenchFlags) -> Answer:
    from jaxmlp.bench.compare import compare

    differences = compare(base, document, limit=limit, across_devices=chosen.across_devices)
    say(f"\n{'':36}     base s     here s  ratio  effect       p")
    for found in differences:
        figures = f"{found.base_s:10.3g} {found.here_s:10.3g} {found.ratio:6.3f} {found.effect:7.2f} {found.p:7.2g}"
        say(f"{found.key:36} {figures}  {found.verdict}")
    if base["noise"]["noisy"]:
        say(f"The base: {base['noise']['message']}")
    answer = Answer({**document, "comparison": [found._asdict() for found in differences]})
    slower = [found.key for found in differences if found.verdict == "slower"]
    if not slower:
        return answer
    message = f"{len(slower)} of {len(differences)} rows are slower by more than {limit:.3g}, p < 0.01: {slower[0]}"
    return answer._replace(exit_code=CheckFailed.exit_code, message=message)


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'':36}     median      IQR  examples/s   GFLOP/s    GB/s  of roof"
    for row in document["rows"]:
        rates = [row["examples_per_s"], row["flops_per_s"] / 1e9, row["bytes_per_s"] / 1e9]
        shown = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate else "-" for rate in rates]
        roof = f"{row['of_roof']:.0%}" if "of_roof" in row else "-"
        times = f"{_time(row['median_s'])} {row['iqr_s'] / row['median_s']:8.1%}"
        yield f"{row['key']:36} {times} {shown[0]:>11} {shown[1]:>9} {shown[2]:>7} {roof:>8}"
    peaks = document["peaks"]
    products = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in peaks["flops_per_s"].items())
    yield f"peaks measured here: {products}; {peaks['bytes_per_s'] / 1e9:.1f} GB/s"
    for fit in document["scaling"]:
        yield f"{fit['what']} grows as {fit['size'].replace('_', ' ')} ^ {fit['exponent']:.2f}"
    if document["noise"]["noisy"]:
        yield document["noise"]["message"]


def _time(seconds: float) -> str:
    for unit, size in (("s ", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:7.3f} {unit}"
    return f"{seconds * 1e6:7.1f} us"


def _write(document: Mapping[str, Any], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        from jaxmlp.bench.plots import draw
    except ModuleNotFoundError:
        say(f"{folder}/bench.json; pictures need matplotlib: pip install 'jaxmlp[report]'")
        return
    say(", ".join(map(str, [folder / "bench.json", *draw(document, folder)])))
