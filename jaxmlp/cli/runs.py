"""`jaxmlp runs`: list the runs, sorted, and show what differs between named runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import printable

if TYPE_CHECKING:
    from jaxmlp.run.listing import Listed


@dataclass(frozen=True, kw_only=True)
class RunsFlags(flags.Flags):
    """List the runs and sweeps in JAXMLP_RUNS_DIR, or in runs; or named runs, with the values and versions that differ.

    A run is `damaged` if a small file or a checkpoint's header has changed. `jaxmlp verify` checks every byte.
    """

    sort: Literal["begun", "name", "test_accuracy", "test_loss", "val_loss", "train_s"] = "begun"
    """Order: begun (latest first, or as named), name, or a figure (best first)."""


def run(argv: Sequence[str]) -> Answer:
    """List all runs, or compare RUNs."""
    chosen, names = flags.parse(RunsFlags(), argv, "runs", "[RUN]...")
    from jaxmlp.run import listing
    from jaxmlp.run.directory import RunDirectory
    from jaxmlp.run.find import find_run, list_runs, runs_dir

    paths = [find_run(name) for name in names]
    for path in paths:
        # A named run must exist.
        RunDirectory.open(path, write=False)
    found = listing.ordered(map(listing.read, paths or list_runs()), chosen.sort)
    values = [{**(each.facts or {}), **each.config} for each in found if each.config]
    differences = listing.different_values(values) if names else {}
    sweeps = [] if names else _sweeps()
    if found:
        say("\n".join(_table(found)))
    elif not sweeps:
        say(f"{runs_dir()} has no runs. Train one: jaxmlp train quickstart")
    if differences:
        say("\n".join(["", *_differences(differences)]))
    for sweep in sweeps:
        state = sweep["problem"] or f"{sweep['ended']} of {sweep['lanes']} lanes ended"
        say(f"sweep {Path(sweep['sweep_dir']).name}: {sweep['status']}, {state}")
    runs = [{**each._asdict(), "config": each.config} for each in found]
    return Answer({"runs": runs, "differences": differences, "sweeps": sweeps})


def _sweeps() -> list[dict[str, Any]]:
    """Each sweep as JSON values."""
    from jaxmlp.errors import CodeError, RunError
    from jaxmlp.run.lock import is_held
    from jaxmlp.sweep.directory import LOCK, list_sweeps, load, read_manifest, standing

    found = []
    for path in list_sweeps():
        row: dict[str, Any] = {"sweep_dir": str(path), "status": "damaged", "lanes": None, "ended": None}
        try:
            try:
                plan, lanes = load(path)
                row |= {"lanes": len(plan.seeds) * len(plan.settings), "ended": len(lanes)}
            except CodeError:
                row |= dict(zip(("lanes", "ended"), standing(path), strict=True))
            status = read_manifest(path)["status"]
            row["status"] = "interrupted" if status == "running" and not is_held(path / LOCK) else status
        except RunError as error:
            row["problem"] = str(error)
        found.append({"problem": "", **row})
    return found


def _table(found: Sequence[Listed]) -> Iterator[str]:
    names = [printable(Path(each.run_dir).name, lines=False) for each in found]
    width = max(map(len, names))
    yield f"{'run':{width}}  status       seed  epochs   val_loss  test_accuracy  test_loss  train_s  parameters"
    for name, each in zip(names, found, strict=True):
        begin = f"{name:{width}}  {each.status:11}"
        if not each.config:
            yield f"{begin}  {each.problem}"
            continue
        epochs = f"{each.epochs}/{each.config['epochs']}"
        figures = [
            f"{_figure(each.val_loss):>8}",
            f"{_figure(each.test_accuracy):>13}",
            f"{_figure(each.test_loss):>9}",
        ]
        seconds = "-" if each.train_s is None else f"{each.train_s:.1f}"
        digest = (each.params_sha256 or "-")[:12]
        yield f"{begin}  {each.seed:4}  {epochs:>7}  {'  '.join(figures)}  {seconds:>7}  {digest}"
        if each.problem:
            yield f"{'':{width}}  {each.problem}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _differences(differences: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    yield "They differ in:"
    width = max(map(len, differences))
    for name, values in differences.items():
        yield f"  {name:{width}}  {'  '.join('-' if value is None else str(value) for value in values)}"
