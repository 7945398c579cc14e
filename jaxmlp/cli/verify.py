"""`jaxmlp verify`: whether a run directory is as its run left it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import RunError, printable


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(flags.Flags):
    """Hash every file and tensor of a run again, and compare what its files tell of each other. Trains nothing."""


def run(argv: Sequence[str]) -> Answer:
    """Verify a RUN; one that is damaged ends as one that cannot be used does, with 5."""
    _, (name,) = flags.parse(VerifyFlags(), argv, "verify", "RUN")
    from jaxmlp.proof.verify import verify
    from jaxmlp.run.directory import SUMS
    from jaxmlp.run.find import find_run

    path = find_run(name)
    found = verify(path)
    document = {
        "files": found.files,
        "tensors": found.tensors,
        "damaged": [damage._asdict() for damage in found.damaged],
        "not_covered": list(found.not_covered),
        "ended": found.ended,
    }
    if found.not_covered:
        # A report has many plots.
        tops = Counter(name.partition("/")[0] + "/" * ("/" in name) for name in found.not_covered)
        told = ", ".join(f"{top} ({count} files)" if top.endswith("/") else top for top, count in tops.items())
        say(f"not the run's own, so nothing vouches for it: {told}")
    if not found.ended:
        say(f"The run has not ended: its logs have no sums until {SUMS} is written.")
    if found.damaged:
        problems = [f"{path} is damaged: {len(found.damaged)} of {found.files} files"]
        problems += [f"{printable(damage.file, lines=False)}: {damage.problem}" for damage in found.damaged]
        return Answer(document, RunError.exit_code, "\n".join(problems))
    say(f"{path}: {found.files} files and {found.tensors} tensors are as the run left them")
    return Answer(document)
