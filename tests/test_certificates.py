"""A certificate binds a run: every altered byte of it, of the run or of the key is refused, and the file named."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from refusals import assert_names

from jaxmlp.cli import main
from jaxmlp.proof import certificate

ALTERATIONS = int(os.environ.get("JAXMLP_ALTERATIONS", "30"))


def keys(folder: Path, seed: int) -> tuple[Path, Path]:
    """A private and a public key, as openssl writes them."""
    key, pem = Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32)), serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    paths = folder / f"key-{seed}.pem", folder / f"public-{seed}.pem"
    for path, text in zip(paths, (private, public), strict=True):
        path.write_bytes(text)
    return paths


@pytest.fixture
def certified(two_runs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run, its certificate, and the public key."""
    run, (private, public) = tmp_path / "run", keys(tmp_path, 1)
    shutil.copytree(two_runs[0], run)
    assert main(["certify", str(run), "--key", str(private)]) == 0
    return run, tmp_path / "run.certificate.json", public


def command(run: Path, signed: Path, public: Path) -> list[str]:
    return ["verify", str(run), "--certificate", str(signed), "--public-key", str(public)]


def altered(rng: random.Random, content: bytes) -> bytes:
    """The bytes with one bit, byte or stretch of them changed, removed or added."""
    at = rng.randrange(len(content) + 1)
    begin, rest = content[:at], content[at:]
    kinds = [begin + bytes([rng.randrange(256)]) + rest, begin]
    if rest:
        kinds += [begin + bytes([rest[0] ^ 1 << rng.randrange(8)]) + rest[1:], begin + rest[1 + rng.randrange(9) :]]
    return rng.choice([kind for kind in kinds if kind != content])


def test_the_signed_bytes_are_those_of_the_dsse_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "PAYLOAD", "http://example.com/HelloWorld")
    assert certificate.signed_bytes(b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_every_alteration_is_refused_and_named(
    certified: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, signed, public = certified
    assert main(command(*certified)) == 0
    of_run = sorted(path for path in run.rglob("*") if path.is_file())
    capsys.readouterr()
    for number in range(ALTERATIONS):
        rng = random.Random(number)
        path = rng.choice([signed, public, rng.choice(of_run)])
        content = path.read_bytes()
        path.write_bytes(altered(rng, content))
        code = main(command(*certified))
        path.write_bytes(content)
        said = capsys.readouterr().err
        assert code == {signed: 3, public: 2}.get(path, 5) or (path == public and code == 3), (number, path, said)
        assert path.name in said, (number, path, said)
        assert "Traceback" not in said


def test_another_run_another_key_and_another_statement_are_refused(
    certified: tuple[Path, Path, Path], two_runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, signed, public = certified
    assert main(command(two_runs[1], signed, public)) == 3
    assert_names(capsys.readouterr().err, two_runs[1], "SHA256SUMS")
    assert main(command(run, signed, keys(tmp_path, 2)[1])) == 3
    assert_names(capsys.readouterr().err, signed, tmp_path / "public-2.pem")
    envelope = json.loads(signed.read_text())
    stated = base64.b64decode(envelope["payload"]).replace(b'"test_accuracy": 0.', b'"test_accuracy": 1.')
    envelope["payload"] = base64.b64encode(stated).decode()
    signed.write_text(json.dumps(envelope, indent=2) + "\n")
    assert main(command(run, signed, public)) == 3
    assert_names(capsys.readouterr().err, signed)


def test_a_certificate_alone_is_enough_to_train_again(
    certified: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, signed, public = certified
    shutil.rmtree(run)
    capsys.readouterr()
    words = ["reproduce", "quickstart", "--certificate", str(signed), "--public-key", str(public), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["level"], found["same"], found["steps"]) == ("L1", True, 40)


def test_an_unsigned_statement_of_any_shape_is_refused_or_answered_without_a_traceback(
    certified: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, signed, _ = certified
    envelope = json.loads(signed.read_text())
    stated = json.loads(base64.b64decode(envelope["payload"]))
    capsys.readouterr()
    shapes: list[dict[str, Any]] = [
        {"config": 5},
        {"config": {}},
        {"manifest": []},
        {"manifest": {**stated["predicate"]["manifest"], "binding": 5}},
        {"manifest": {"binding": stated["predicate"]["manifest"]["binding"]}},
        {"digests": 5},
        {"digests": [5]},
        {"digests": [{"epoch": 1}]},
    ]
    for shape in shapes:
        changed = {**stated, "predicate": {**stated["predicate"], **shape}}
        payload = base64.b64encode(json.dumps(changed).encode()).decode()
        signed.write_text(json.dumps({**envelope, "payload": payload}, indent=2) + "\n")
        code = main(["reproduce", "quickstart", "--certificate", str(signed)])
        said = capsys.readouterr().err
        assert code in (3, 5), (shape, said)
        assert "Traceback" not in said, (shape, said)


def test_a_run_that_has_not_ended_and_a_file_that_is_no_key_are_refused(
    certified: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, public = certified
    assert main(["certify", str(run), "--key", str(public)]) == 2
    assert_names(capsys.readouterr().err, public, "ed25519")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    (run / "SHA256SUMS").unlink()
    assert main(["certify", str(run), "--key", str(tmp_path / "key-1.pem")]) == 5
    assert_names(capsys.readouterr().err, run)
