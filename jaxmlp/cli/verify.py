"""`jaxmlp verify`: whether a run directory is as its run left it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import RunError, UsageError, printable


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(flags.Flags):
    """Hash every file and tensor of a run again, and compare what its files tell of each other. Trains nothing."""

    certificate: Path | None = None
    """A file of `jaxmlp certify`: is it of this run, and signed by the key?"""
    public_key: Path | None = None
    """The file of the ed25519 public key, in PEM, of who signed it."""


def run(argv: Sequence[str]) -> Answer:
    """Verify a RUN; one that is damaged ends as one that cannot be used does, with 5."""
    chosen, (name,) = flags.parse(VerifyFlags(), argv, "verify", "RUN")
    if bool(chosen.certificate) != bool(chosen.public_key):
        raise UsageError("--certificate FILE and --public-key FILE go together")
    from jaxmlp.proof.verify import verify
    from jaxmlp.run.directory import SUMS
    from jaxmlp.run.find import find_run

    path = find_run(name)
    stated = None
    if chosen.certificate:
        from jaxmlp.proof import certificate

        stated = certificate.statement(chosen.certificate, chosen.public_key)
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
    if stated:
        certificate.check_run(path, stated)
        document["certified"] = True
        say(f"{chosen.certificate} is of this run, and signed by {chosen.public_key}.")
        say("That says who vouches for it. Only `jaxmlp reproduce` shows that it was trained so.")
    return Answer(document)
