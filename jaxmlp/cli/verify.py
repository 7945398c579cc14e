"""`jaxmlp verify`: is a run directory as its run left it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import Answer, flags, say
from jaxmlp.errors import RunError, UsageError, printable


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(flags.Flags):
    """Hash every file and tensor of a run again, and check that its files agree with each other. Nothing is trained."""

    certificate: Path | None = None
    """File from `jaxmlp certify`: check that it belongs to this run and was signed with the key."""
    public_key: Path | None = None
    """File of the signer's ed25519 public key, in PEM."""


def run(argv: Sequence[str]) -> Answer:
    """Verify RUN. Exit code 5 if it is damaged, as for a run that cannot be used."""
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
        # A report has many plots, so files are counted by folder.
        tops = Counter(name.partition("/")[0] + "/" * ("/" in name) for name in found.not_covered)
        names = ", ".join(f"{top} ({count} files)" if top.endswith("/") else top for top, count in tops.items())
        say(f"not covered by the run's hashes, so not checked: {names}")
    if not found.ended:
        say(f"The run has not ended: its logs have no hashes until {SUMS} is written.")
    if found.damaged:
        problems = [f"{path} is damaged: {len(found.damaged)} of {found.files} files"]
        problems += [f"{printable(damage.file, lines=False)}: {damage.problem}" for damage in found.damaged]
        return Answer(document, RunError.exit_code, "\n".join(problems))
    say(f"{path}: {found.files} files and {found.tensors} tensors are as the run left them")
    if stated:
        certificate.check_run(path, stated)
        document["certified"] = True
        say(f"{chosen.certificate} belongs to this run and was signed with the key of {chosen.public_key}.")
        say("That shows who vouches for the run. Only `jaxmlp reproduce` shows that it was trained as it says.")
    return Answer(document)
