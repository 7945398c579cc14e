"""`jaxmlp data`: where is the data? Prepare it before a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from jaxmlp.data import Status

ACTIONS = ("status", "prepare")


@dataclass(frozen=True, kw_only=True)
class DataCommandFlags(flags.DataFlags):
    """status: where each data set is, and its hash. prepare: prepare the named data sets, or mnist, before a run."""

    data_dir: Path | None = None
    """Folder of prepared and decoded data. Default: JAXMLP_DATA_DIR, else the user's cache."""


def run(argv: Sequence[str]) -> Answer:
    """Show where the data is, or prepare it."""
    chosen, (action, *names) = flags.parse(DataCommandFlags(), argv, "data", "status|prepare", "[NAME]...")
    if action not in ACTIONS:
        raise UsageError(f"data takes {' or '.join(ACTIONS)}, not {action}.{did_you_mean(action, ACTIONS)}")
    from jaxmlp import data

    folders = {"manual_dir": chosen.manual_dir, "data_dir": chosen.data_dir}
    if action == "prepare":
        found = [data.prepare(name, **folders, report=say) for name in names or ["mnist"]]
    else:
        known = {each.name: each for each in data.status(**folders)}
        for name in names:
            if name not in known:
                raise UsageError(f"{name} is not a known data set: {', '.join(known)}.{did_you_mean(name, known)}")
        found = [known[name] for name in names or known]
    for each in found:
        say("\n".join(_lines(each)))
    return Answer({"data": [each._asdict() for each in found]})


def _lines(status: Status) -> list[str]:
    """The lines about one data set, for people."""
    if not status.where:
        return [f"{status.name}: {status.problem or 'not on this machine'}"]
    ready = "ready" if status.prepared else "prepared on first use"
    lines = [f"{status.name}: {ready}, {status.bytes / 1e6:.1f} MB, {status.where}"]
    lines += [f"  SHA-256 {status.sha256}"] if status.sha256 else []
    return [*lines, f"  {status.problem}"] if status.problem else lines
