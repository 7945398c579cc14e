"""How is a run certified? By a signed statement of what its bits depend on, its digests, results and files' hashes.

It is an in-toto statement in a DSSE envelope, signed with ed25519. A certificate says who vouches for a run. It does
not prove that the run was trained as its config says: only `reproduce` shows that.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlp.errors import CheckFailed, RunError, UsageError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.proof.verify import verify
from jaxmlp.run import files, jsonl, sums
from jaxmlp.run.directory import DIGESTS, SUMS
from jaxmlp.run.record import CONFIG, MANIFEST, METRICS, read_manifest, read_plain_config

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "urn:jaxmlp:run:v1"
PAYLOAD = "application/vnd.in-toto+json"
"""`payloadType` of the envelope."""
MAX_KEY = 1 << 14
"""Largest key file that is read, in bytes."""
MAKE_A_KEY = (
    "Make a key: openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"
)


def certify(run: str | Path, key: Path) -> bytes:
    """The certificate of a run, as the text of a file.

    Args:
        run: Folder of the run, which must have ended and be undamaged.
        key: File with an ed25519 private key in PEM, without a password.

    Raises:
        RunError: The run does not exist, has not ended, or is damaged.
        UsageError: The file has no such key, or the package `cryptography` is not installed.
    """
    secret, found = _private_key(key), verify(run)
    if found.damaged:
        raise RunError(f"{run} is damaged: {found.damaged[0].file}: {found.damaged[0].problem}.")
    if not found.ended:
        raise RunError(f"{run} has not ended, so its files have no hashes yet. Certify it after its end.")
    body = json.dumps(_statement(Path(run))).encode()
    signature = {"keyid": key_id(secret.public_key()), "sig": _in_base64(secret.sign(signed_bytes(body)))}
    return _text({"payload": _in_base64(body), "payloadType": PAYLOAD, "signatures": [signature]})


def statement(certificate: Path, public_key: Path | None) -> dict[str, Any]:
    """What a certificate states, after its signature was checked with the key.

    Args:
        certificate: The file.
        public_key: File with an ed25519 public key in PEM. None leaves the signature unchecked.

    Raises:
        CheckFailed: The file is not a certificate, or is not signed with the key.
        UsageError: A file cannot be read or has no such key, or the package `cryptography` is not installed.
    """
    text = _file(certificate, files.MAX_TEXT)
    try:
        envelope = parse_json(text)
        (signature,) = envelope["signatures"]
        body = base64.b64decode(envelope["payload"], validate=True)
        signed = base64.b64decode(signature["sig"], validate=True)
        said = {"keyid": str(signature["keyid"]), "sig": _in_base64(signed)}
        # Each content has exactly one text, so that changing any byte of the file changes its meaning.
        if text != _text({"payload": _in_base64(body), "payloadType": PAYLOAD, "signatures": [said]}):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        said_why = "is not a certificate in the form that `certify` writes, or was altered"
        raise CheckFailed(f"{certificate} {said_why}.") from None
    if public_key:
        _check_signature(certificate, public_key, said["keyid"], signed, body)
    try:
        found = parse_json(body)
        is_ours = (found["_type"], found["predicateType"]) == (STATEMENT, PREDICATE)
        predicate = found["predicate"]
        kinds = {"config": dict, "manifest": dict, "digests": list}
        if is_ours and all(isinstance(predicate[name], kind) for name, kind in kinds.items()):
            return dict(found)
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckFailed(f"{certificate} states nothing about a run of jaxmlp, or has another version's form.")


def check_run(run: Path, stated: Mapping[str, Any]) -> None:
    """Check that an undamaged run is the run that a certificate states.

    Args:
        run: Folder of the run, after `verify` has found no damage.
        stated: From `statement`.

    Raises:
        CheckFailed: It is another run. The message says what differs.
        RunError: The run has not ended.
    """
    mine = _statement(run)
    try:
        there, here = ({file["name"]: file["digest"] for file in each["subject"]} for each in (stated, mine))
    except (KeyError, TypeError):
        raise CheckFailed("the certificate states no hashes of files.") from None
    if other := sorted(name for name in {*there, *here} if there.get(name) != here.get(name)):
        raise CheckFailed(f"{run} is not the run of this certificate: {', '.join(other)} differ.")
    if stated["predicate"] != mine["predicate"]:
        raise CheckFailed(f"{run} is not the run of this certificate: it states another config, result or digest.")


@contextlib.contextmanager
def as_run(stated: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder with what `reproduce` needs of a run, made from its certificate alone.

    Raises:
        CheckFailed: The certificate contradicts itself.
        RunError: The run began with weights, which certificates do not hold.
    """
    predicate = stated["predicate"]
    config = (json.dumps(predicate["config"], indent=2) + "\n").encode()
    binding = predicate["manifest"].get("binding")
    if not isinstance(binding, dict) or binding.get("config_sha256") != hashlib.sha256(config).hexdigest():
        raise CheckFailed("the certificate contradicts itself: its config has another SHA-256 than it states.")
    if predicate["manifest"].get("start"):
        raise RunError(
            "the run began with another run's weights, which certificates do not hold: reproduce the run itself."
        )
    with tempfile.TemporaryDirectory(prefix="jaxmlp-certificate-") as name:
        folder = Path(name)
        lines = "".join(json.dumps(line) + "\n" for line in predicate["digests"])
        manifest = json.dumps(predicate["manifest"])
        for file, text in [(CONFIG, config), (MANIFEST, manifest.encode()), (DIGESTS, lines.encode()), (METRICS, b"")]:
            files.write(folder / file, text)
        (folder / "checkpoints").mkdir()
        yield folder


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key's 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _statement(run: Path) -> dict[str, Any]:
    covered = {**sums.read(run / SUMS), SUMS: sums.sha256(run / SUMS)}
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in covered.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "config": read_plain_config(run),
            "manifest": read_manifest(run),
            "digests": jsonl.read(run / DIGESTS),
        },
    }


def _check_signature(certificate: Path, public_key: Path, keyid: str, signature: bytes, body: bytes) -> None:
    serialization, ed25519, invalid = _cryptography()
    text = _file(public_key, MAX_KEY)
    try:
        key = serialization.load_pem_public_key(text)
        pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        if not isinstance(key, ed25519.Ed25519PublicKey) or key.public_bytes(*pem) != text:
            raise ValueError
    except Exception:  # The library raises various errors for bytes that are not a key.
        raise UsageError(f"{public_key} is not an ed25519 public key in PEM. {MAKE_A_KEY}") from None
    try:
        key.verify(signature, signed_bytes(body))
    except invalid:
        raise CheckFailed(f"{certificate} is not signed by {public_key}, or was altered.") from None
    if keyid != key_id(key):
        raise CheckFailed(f"{certificate} was altered: {public_key} signed it, but its keyid names another key.")


def _private_key(path: Path) -> Any:
    serialization, ed25519, _ = _cryptography()
    text = _file(path, MAX_KEY)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except Exception:  # As above. A key with a password raises TypeError.
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path} is not an ed25519 private key in PEM without a password. {MAKE_A_KEY}")
    return key


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise UsageError("certificates need cryptography: pip install 'jaxmlp[certificates]'") from None
    return serialization, ed25519, InvalidSignature


def _file(path: Path, limit: int) -> bytes:
    try:
        return files.read(path, limit)
    except RunError as error:
        raise UsageError(str(error)) from None


def signed_bytes(body: bytes) -> bytes:
    """The bytes that DSSE signs: type and body, each preceded by its length."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(body), body)


def _text(envelope: Mapping[str, Any]) -> bytes:
    return (json.dumps(envelope, indent=2) + "\n").encode()


def _in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
