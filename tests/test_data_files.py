"""A file is what it says it is, or a message says its name, what was found and what was wanted."""

from __future__ import annotations

import errno
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mnist_stand_in
import numpy as np
import pytest
from mnist_stand_in import (
    NAMES,
    idx_bytes,
    load,
    read_stand_in,
    same,
    stand_in_source,
    without_tfds,
    write_stand_in,
)
from refusals import assert_names, refused

from jaxmlp import data
from jaxmlp.data import official
from jaxmlp.errors import DataError

nothing_named = mnist_stand_in.nothing_named
files = mnist_stand_in.files


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_idx_file_reads_as_it_was_written(kind: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    array = np.arange(-6, 6).astype(kind).reshape(2, 3, 2)
    (tmp_path / "file").write_bytes(compress(idx_bytes(array)))
    found = data.read_idx(tmp_path / "file")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


HEADER = b"\0\0\x08\x01\0\0\0\x0a"
ZIPPED = gzip.compress(HEADER + bytes(range(10)), mtime=0)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", [0]),
        (b"\0\0", ["0x0000"]),
        (b"\0\0\x07\x01" + HEADER[4:] + bytes(10), ["0x00000701"]),
        (b"\x89PNG" + bytes(100), ["0x89504e47"]),
        (HEADER[:6], [2, 4]),
        (HEADER + bytes(9), [10, 9]),
        (HEADER + bytes(11), [10]),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(10), [10]),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12 + bytes(10), mtime=0), []),
        (gzip.compress(HEADER + bytes(9), mtime=0), [9, 10]),
        (ZIPPED[:-9], []),
        (ZIPPED[:-8] + b"oh no..!", []),
        (ZIPPED + b"more", []),
    ],
)
def test_a_faulty_idx_file_is_refused_by_name_with_what_was_found(
    content: bytes, found: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "digits.idx"
    path.write_bytes(content)
    with refused(DataError, path, *found):
        data.read_idx(path)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(HEADER + bytes(100_000_000)))
    tracemalloc.start()
    try:
        with refused(DataError, path, 10):
            data.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_readable_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "", "loop", "pipe"):
        with refused(DataError, tmp_path / name):
            data.read_idx(tmp_path / name)


def test_files_are_prepared_by_tfds_and_loaded_in_their_order(files: Path, tmp_path: Path) -> None:
    dataset = load(manual_dir=files)
    train, test = read_stand_in(files)
    assert same(dataset.train, train)
    assert same(dataset.test, test)
    assert (dataset.sha256, dataset.notes) == (official.SOURCES["mnist"].sha256, ())
    info = json.loads((tmp_path / "data/jaxmlp_mnist/1.0.0/dataset_info.json").read_text())
    assert (info["fileFormat"], info["disableShuffling"]) == ("array_record", True)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "jaxmlp_mnist", "mnist.idx"]


def test_a_second_start_needs_neither_tfds_nor_the_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(manual_dir=files)
    without_tfds(monkeypatch)
    second = load()
    assert same(first.train, second.train)
    assert same(first.test, second.test)
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("place", ["files", "files/mnist"])
def test_the_named_folder_is_searched_below_the_name_and_then_itself(
    place: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "files/mnist":
        files = files.rename(tmp_path / "moved")
        (tmp_path / "files").mkdir()
        files.rename(tmp_path / place)
    monkeypatch.setenv("JAXMLP_MANUAL_DIR", str(tmp_path / "files"))
    assert load().sha256 == official.SOURCES["mnist"].sha256


@pytest.mark.parametrize("compress", [bytes, lambda content: gzip.compress(content, 1)])
def test_files_decompressed_or_gzipped_anew_are_the_same_files(compress: Callable[[bytes], bytes], files: Path) -> None:
    for name in NAMES:
        path = files / f"{name}.gz"
        content = compress(gzip.decompress(path.read_bytes()))
        path.unlink()
        (files / (f"{name}.gz" if content[:2] == b"\x1f\x8b" else name)).write_bytes(content)
    assert load(manual_dir=files).sha256 == official.SOURCES["mnist"].sha256


def altered(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    change(content)
    path.write_bytes(gzip.compress(content))


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def swapped(one: Path, other: Path) -> None:
    content = one.read_bytes(), other.read_bytes()
    other.write_bytes(content[0])
    one.write_bytes(content[1])


IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = (f"{name}.gz" for name in NAMES)
FAULTS: dict[str, tuple[Any, ...]] = {
    "truncated": (lambda f: os.truncate(f / IMAGES, 20_000), IMAGES),
    "altered": (lambda f: altered(f / IMAGES, lambda c: c.__setitem__(99, c[99] ^ 1)), IMAGES, "SHA-256"),
    "swapped": (lambda f: swapped(f / LABELS, f / TEST_LABELS), LABELS, NAMES[3]),
    "images for labels": (lambda f: swapped(f / LABELS, f / IMAGES), IMAGES, NAMES[1]),
    "wrong magic": (lambda f: altered(f / LABELS, lambda c: c.__setitem__(2, 7)), LABELS, "0x00000701"),
    "wrong type": (lambda f: altered(f / LABELS, lambda c: c.__setitem__(2, 9)), LABELS, "int8 (60,)", "uint8 (60,)"),
    "fewer": (lambda f: altered(f / LABELS, lambda c: (c.__setitem__(7, 59), c.pop())), LABELS, "(59,)", "(60,)"),
    "wrong count": (lambda f: altered(f / LABELS, lambda c: c.__setitem__(7, 61)), LABELS, 60, 61),
    "bomb": (lambda f: altered(f / LABELS, lambda c: c.extend(bytes(10**8))), LABELS, 60),
    "empty": (lambda f: os.truncate(f / TEST_LABELS, 0), TEST_LABELS, 0),
    "folder": (lambda f: replaced(f / LABELS, Path.mkdir), LABELS),
    "missing": (lambda f: (f / LABELS).unlink(), NAMES[1]),
    "unreadable": (lambda f: replaced(f / LABELS, lambda path: path.symlink_to(path)), LABELS),
    "not gzip": (lambda f: (f / LABELS).write_bytes(b"\x1f\x8b" + bytes(99)), LABELS),
    "wrong folder": (lambda f: [path.rename(path.with_suffix(".txt")) for path in f.iterdir()], "files", NAMES[0]),
    "no folder": (lambda f: f.rename(f.with_name("moved")), "files", NAMES[0]),
}
"""What makes a folder of mnist's files faulty, and what the refusal's first line names."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_named_folder_is_refused_although_good_data_is_cached(fault: str, files: Path, tmp_path: Path) -> None:
    plant, *named = FAULTS[fault]
    load(manual_dir=files, data_dir=tmp_path / "cached")
    plant(files)
    for data_dir in (tmp_path / "cached", tmp_path / "fresh"):
        with pytest.raises(DataError) as error:
            load(manual_dir=files, data_dir=data_dir)
        assert_names(str(error.value).splitlines()[0], *named)
    assert not (tmp_path / "fresh").exists()


def test_files_without_permission_are_refused_by_name(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised by hand, since root may read everything."""

    def denied(path: Any, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(Path, "open", denied)
    with refused(DataError, IMAGES, os.strerror(errno.EACCES)):
        load(manual_dir=files)
    monkeypatch.setattr(os, "listdir", denied)
    with refused(DataError, files / "mnist", os.strerror(errno.EACCES)):
        load(manual_dir=files)


def test_another_data_sets_files_are_recognised(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion = write_stand_in(tmp_path / "fashion", seed=1)
    monkeypatch.setitem(official.SOURCES, "fashion_mnist", stand_in_source(fashion))
    with refused(DataError, "fashion_mnist", "mnist", NAMES[0]):
        load("fashion_mnist", manual_dir=files)
    assert load("fashion_mnist", manual_dir=fashion).sha256 == official.SOURCES["fashion_mnist"].sha256
