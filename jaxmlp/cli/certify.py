"""`jaxmlp certify`: a run's files, digests and results, signed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import Answer, flags, say, writing_to
from jaxmlp.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CertifyFlags(flags.Flags):
    """Sign what binds a run's bits, its digests, its results and the sums of its files. Verifies it first.

    A key: openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem
    """

    key: Path | None = None
    """The file of an ed25519 private key, in PEM, without a password."""
    out: Path | None = None
    """The file; by default beside the run, RUN.certificate.json."""


def run(argv: Sequence[str]) -> Answer:
    """Certify a RUN."""
    chosen, (name,) = flags.parse(CertifyFlags(), argv, "certify", "RUN")
    if not chosen.key:
        raise UsageError("certify needs --key FILE, an ed25519 private key: jaxmlp certify RUN --key FILE")
    from jaxmlp.proof.certificate import certify
    from jaxmlp.run import files
    from jaxmlp.run.find import find_run

    path = find_run(name)
    text = certify(path, chosen.key)
    out = chosen.out or path.parent / f"{path.name}.certificate.json"
    with writing_to(chosen.out):
        files.write(out, text)
    say(f"{out}: what {path} holds, signed. Who trusts your public key can check it:")
    say(f"jaxmlp verify {path} --certificate {out} --public-key FILE")
    return Answer({"certificate": str(out)})
