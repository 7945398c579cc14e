"""A checkpoint never loads with a wrong bit, and a crash never costs the one before."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from test_digest import arrays_of_any_dtype

from jaxmlp.errors import DiskError, RunError
from jaxmlp.run import checkpoint
from jaxmlp.run.digest import digest

ARRAYS = {
    "params/Dense_0/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "params/Dense_0/bias": np.ones(4, ml_dtypes.bfloat16),
    "step": np.array(469, np.int32),
    "count": np.array(7, np.uint32),
    "images": np.arange(5, dtype=np.uint8),
    "mask": np.array([True, False]),
    "wide": np.array([1 / 3]),
    "long": np.array([-1, 2**62], np.int64),
    "empty": np.zeros((0, 3), np.float32),
}
META = {"epoch": 3, "best_val_loss": 0.1, "note": "ä"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-00000469.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    checkpoint.save(path, ARRAYS, META)
    return path


def hand_made(path: Path, header: dict[str, Any] | bytes, body: bytes = b"") -> None:
    """Write a file whose header has the right SHA-256 of itself, whatever else it says."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text = text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


DATA = np.arange(2, dtype=np.float32).tobytes()
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def header_of(name: str, entry: object, *, body: bytes = DATA, meta: object = "{}") -> dict[str, Any]:
    """The header of one tensor of the bytes `body`, with all its sums right."""
    sums = {"header_sha256": "0" * 64, "meta": meta, f"sha256:{name}": hashlib.sha256(body).hexdigest()}
    return {"__metadata__": sums, name: entry}


def test_arrays_and_meta_come_back_with_every_bit(saved: Path) -> None:
    arrays, meta = checkpoint.load(saved)
    assert digest(arrays) == digest(ARRAYS)
    assert meta == META
    assert checkpoint.load_meta(saved) == META


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.text(st.characters(categories=["L", "N"]), min_size=1), arrays_of_any_dtype(), max_size=4))
def test_any_arrays_come_back_with_every_bit(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("run") / "step-00000001.safetensors"
    checkpoint.save(path, arrays, {})
    assert digest(checkpoint.load(path)[0]) == digest(arrays)


def test_loaded_arrays_can_be_written_to(saved: Path) -> None:
    arrays, _ = checkpoint.load(saved)
    arrays["params/Dense_0/kernel"] += 1


def test_any_safetensors_reader_opens_it(saved: Path) -> None:
    with safetensors.safe_open(saved, "np") as file:
        assert set(file.keys()) == set(ARRAYS)
        assert json.loads(file.metadata()["meta"]) == META
        for name in ARRAYS.keys() - {"params/Dense_0/bias"}:  # The NumPy reader has no bfloat16.
            assert digest({name: file.get_tensor(name)}) == digest({name: ARRAYS[name]})


def test_every_tensor_starts_at_a_multiple_of_its_item_size(saved: Path) -> None:
    length = int.from_bytes(saved.read_bytes()[:8], "little")
    header = json.loads(saved.read_bytes()[8 : 8 + length])
    for name, array in ARRAYS.items():
        assert (8 + length + header[name]["data_offsets"][0]) % array.dtype.itemsize == 0


def test_equal_arrays_and_meta_make_equal_files(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    checkpoint.save(other, dict(reversed(ARRAYS.items())), META)
    assert other.read_bytes() == saved.read_bytes()


def test_none_of_1000_files_with_one_bit_flipped_loads(saved: Path) -> None:
    whole, draw = saved.read_bytes(), random.Random(0)
    for _ in range(1000):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        saved.write_bytes(flipped)
        with refused(RunError, saved.name):
            checkpoint.load(saved)


def test_none_of_100_files_cut_off_loads(saved: Path) -> None:
    whole, draw = saved.read_bytes(), random.Random(0)
    for length in [0, 7, 8, *(draw.randrange(len(whole)) for _ in range(97))]:
        saved.write_bytes(whole[:length])
        with refused(RunError, saved.name):
            checkpoint.load(saved)


def test_a_file_with_a_byte_added_does_not_load(saved: Path) -> None:
    size = saved.stat().st_size
    saved.write_bytes(saved.read_bytes() + b"\0")
    with refused(RunError, saved.name, size + 1, size):
        checkpoint.load(saved)


def test_the_damaged_tensor_is_named(saved: Path) -> None:
    whole = saved.read_bytes()
    place = whole.rindex(ARRAYS["params/Dense_0/kernel"].tobytes())
    saved.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    with refused(RunError, saved.name, "params/Dense_0/kernel"):
        checkpoint.load(saved)


def test_a_safetensors_file_of_another_program_is_told_apart(path: Path) -> None:
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with refused(RunError, path.name):
        checkpoint.load(path)


@pytest.mark.parametrize("length", [2**63, 2**40, checkpoint.MAX_HEADER + 1])
def test_a_header_bomb_is_refused_before_anything_is_allocated(path: Path, length: int) -> None:
    with open(path, "wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(2**41)  # Takes no room on the disk.
    with refused(RunError, path.name):
        checkpoint.load(path)


def test_a_hand_made_file_with_nothing_wrong_loads(path: Path) -> None:
    hand_made(path, header_of("x", ENTRY), DATA)
    assert checkpoint.load(path)[0]["x"].tobytes() == DATA


@pytest.mark.parametrize(
    "header",
    [
        b'{"header_sha256":"' + b"0" * 64 + b'"}',
        b'{"header_sha256":"' + b"0" * 64 + b'","deep":' + b"[" * 100_000,
        header_of("x", None),
        header_of("x", {"dtype": "F32", "shape": [2]}),
        header_of("x", ENTRY | {"data_offsets": [0, 8, 8]}),
        header_of("x", ENTRY | {"data_offsets": [0, 8.0]}),
        header_of("x", ENTRY | {"shape": [True, 2]}),
        header_of("x", ENTRY | {"shape": [-1, -2]}),
        header_of("x", ENTRY | {"shape": 2}),
        header_of("x", ENTRY | {"shape": [1] * 32 + [2]}),
        header_of("x", ENTRY | {"shape": [0, 2**70], "data_offsets": [0, 0]}, body=b""),
        header_of("x", ENTRY | {"dtype": "C64"}),
        header_of("x", ENTRY | {"dtype": []}),
        header_of("x", ENTRY, meta=3),
        header_of("x", ENTRY, meta="{"),
        header_of("x", ENTRY, meta="[]"),
        header_of("x", ENTRY | {"shape": [2**40], "data_offsets": [0, 2**42]}),
        header_of("x", ENTRY | {"shape": [1], "data_offsets": [0, 4]}),
    ],
)
def test_a_header_that_no_checkpoint_has_is_refused(path: Path, header: dict[str, Any] | bytes) -> None:
    hand_made(path, header, DATA)
    with refused(RunError, path.name):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "header",
    [
        header_of("x", ENTRY, body=b"other"),
        header_of("x", ENTRY | {"shape": [3]}),
        header_of("x", ENTRY | {"shape": [1], "data_offsets": [4, 8]}),
        header_of("x", ENTRY | {"data_offsets": [4, 8]}),
    ],
)
def test_a_tensor_that_does_not_fit_the_file_is_named(path: Path, header: dict[str, Any]) -> None:
    hand_made(path, header, DATA)
    with refused(RunError, path.name, "x"):
        checkpoint.load(path)


def test_an_empty_tensor_of_an_impossible_shape_is_refused(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0, 2**47, 2**47], "data_offsets": [0, 0]}
    hand_made(path, header_of("x", entry, body=b""))
    with refused(RunError, path.name, "x"):
        checkpoint.load(path)


def test_tensors_that_overlap_are_refused(path: Path) -> None:
    header = header_of("x", ENTRY)
    header["y"] = ENTRY
    header["__metadata__"]["sha256:y"] = header["__metadata__"]["sha256:x"]
    hand_made(path, header, DATA)
    with refused(RunError, path.name, "y"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a/./b", "a\nb", "\x1b[2Jx", ""])
def test_a_name_that_would_lead_out_of_a_folder_or_into_a_terminal_is_refused(path: Path, name: str) -> None:
    with refused(ValueError, repr(name)):
        checkpoint.save(path, {name: np.zeros(2)}, {})
    hand_made(path, header_of(name, ENTRY), DATA)
    with refused(RunError, path.name):
        checkpoint.load(path)


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/hosts"), os.mkfifo, Path.mkdir, lambda p: None])
def test_only_a_plain_file_is_read(path: Path, make: Callable[[Path], object]) -> None:
    make(path)
    with refused(RunError, path.name):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("arrays", "meta"),
    [({"x": np.zeros(2, np.complex64)}, {}), ({"x": np.array([None])}, {}), ({}, {"loss": float("nan")})],
)
def test_what_cannot_be_held_is_refused_before_a_file_is_made(
    path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]
) -> None:
    with refused(ValueError):
        checkpoint.save(path, arrays, meta)
    assert not list(path.parent.iterdir())


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_save_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        folder = facts.st_ino == path.parent.stat().st_ino
        calls.append("fsync of the folder" if folder else f"fsync of {facts.st_size} bytes")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    checkpoint.save(path, ARRAYS, META)
    assert calls == [f"fsync of {path.stat().st_size} bytes", f"rename to {path.name}", "fsync of the folder"]


def test_a_crash_before_the_rename_leaves_the_old_file_whole(saved: Path) -> None:
    before = saved.read_bytes()
    code = (
        "import os, sys; from pathlib import Path; from jaxmlp.run import checkpoint\n"
        "os.replace = lambda *_: os._exit(9); checkpoint.save(Path(sys.argv[1]), {}, {})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(saved)]).returncode == 9
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2


def test_a_full_disk_is_told_and_the_old_file_is_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused(DiskError, saved, os.strerror(errno.ENOSPC)):
        checkpoint.save(saved, {}, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
