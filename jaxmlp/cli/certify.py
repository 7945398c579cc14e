"""`jaxmlp certify`: sign a run's files, digests and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import Answer, flags, say, writing_to
from jaxmlp.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CertifyFlags(flags.Flags):
    """Verify a run, then sign what its bits depend on, its digests, its results and the hashes of its files.

    To make a key: openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem
    """

    key: Path | None = None
    """File of an ed25519 private key, in PEM, without a password."""
    out: Path | None = None
    """File to write. Default: RUN.certificate.json beside the run."""


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
    say(f"{out}: the signed contents of {path}. Anyone with your public key can check them:")
    say(f"jaxmlp verify {path} --certificate {out} --public-key FILE")
    return Answer({"certificate": str(out)})
