"""Data that is cut off, altered, swapped or in the way ends in 4, names file and reason, and leaves no partial cache.

What is read in spite of a fault is right to the last bit.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import random
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mnist_stand_in
import numpy as np
import pytest
from mnist_stand_in import NAMES, idx_bytes, load, read_stand_in, same, without_tfds, write_stock
from refusals import refused

from faults.fuzz import answer
from jaxmlp import data
from jaxmlp.data import builders, official
from jaxmlp.errors import DataError, RunError
from jaxmlp.keras.files import parse_keras
from jaxmlp.trained.images import read_images

nothing_named = mnist_stand_in.nothing_named
files = mnist_stand_in.files

PLACES = 25 if os.environ.get("JAXMLP_FAULTS") == "all" else 2
"""Where in a file each fault is planted."""

Plant = Callable[[Path, random.Random], object]


def changed(change: Callable[[bytearray, random.Random], object]) -> Plant:
    def plant(path: Path, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        change(content, rng)
        path.write_bytes(content)

    return plant


def content_changed(change: Callable[[bytearray, random.Random], object]) -> Plant:
    """The same inside of the gzip stream, whose own sums are made right."""

    def plant(path: Path, rng: random.Random) -> None:
        content = bytearray(gzip.decompress(path.read_bytes()))
        change(content, rng)
        path.write_bytes(gzip.compress(content, 1))

    return plant


def flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def zero(content: bytearray, rng: random.Random) -> None:
    at, length = rng.randrange(len(content)), rng.randrange(1, 65)
    content[at : at + length] = bytes(255 - byte for byte in content[at : at + length])


def number(at: int) -> Callable[[bytearray, random.Random], None]:
    def change(content: bytearray, rng: random.Random) -> None:
        content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") ^ 1 << rng.randrange(32)).to_bytes(4, "big")

    return change


def in_the_way(make: Callable[[Path], object]) -> Plant:
    def plant(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return plant


def swapped(path: Path, rng: random.Random) -> None:
    other = rng.choice([each for each in path.parent.iterdir() if each != path])
    content = path.read_bytes(), other.read_bytes()
    path.write_bytes(content[1])
    other.write_bytes(content[0])


PLANTS: dict[str, Plant] = {
    "cut off": changed(cut),
    "a bit": changed(flip),
    "a stretch": changed(zero),
    "empty": lambda path, rng: os.truncate(path, 0),
    "added to": changed(lambda content, rng: content.extend(rng.randbytes(9))),
    "content cut off": content_changed(cut),
    "a bit of the content": content_changed(flip),
    "magic": content_changed(number(0)),
    "count": content_changed(number(4)),
    "bomb": content_changed(lambda content, rng: content.extend(bytes(10**7))),
    "swapped": swapped,
    "folder": in_the_way(Path.mkdir),
    "pipe": in_the_way(os.mkfifo),
    "link to nowhere": in_the_way(lambda path: path.symlink_to("/nowhere/at/all")),
    "missing": in_the_way(lambda path: None),
    "noise": lambda path, rng: path.write_bytes(rng.randbytes(5000)),
}


@pytest.mark.parametrize("fault", PLANTS)
def test_a_faulty_named_file_ends_in_4_with_its_name_and_leaves_no_cache(
    fault: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rng = {path: path.read_bytes() for path in files.iterdir()}, random.Random(fault)
    contents = {path: gzip.decompress(content) for path, content in whole.items()}
    without_tfds(monkeypatch)  # Files with other sums must not be prepared.
    tries = 0
    for path in sorted(whole):
        for _ in range(PLACES):
            PLANTS[fault](path, rng)
            tries += 1
            # The bits of a gzip stream that decide nothing, such as its time, may differ.
            if not path.is_file() or unzipped(path) != contents[path]:
                code, printed = answer("data", "prepare", "mnist", "--manual-dir", str(files))
                assert code == 4, printed
                first = printed.splitlines()[0]
                assert first.startswith("data: ")
                assert str(files) in first and any(name in first for name in NAMES)
                assert fault == "swapped" or path.name in first
            assert not (tmp_path / "data").exists()
            for each, content in whole.items():
                remove(each)
                each.write_bytes(content)
    print(f"faults, named files, {fault}: {tries} tries")


def unzipped(path: Path) -> bytes | None:
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error):
        return None


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The stand-in's files, and folders that we and tfds itself prepared of them."""
    folder = tmp_path_factory.mktemp("prepared")
    named = mnist_stand_in.write_stand_in(folder / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(official.SOURCES, "mnist", mnist_stand_in.stand_in_source(named))
        ours = builders.write("mnist", [named / f"{name}.gz" for name in NAMES], folder / "ours")
    return named, ours, write_stock(named, folder / "stock")


FOLDER_PLANTS: dict[str, Plant] = {
    name: PLANTS[name]
    for name in ("cut off", "a bit", "a stretch", "empty", "added to", "swapped", "folder", "missing", "noise")
} | {"link to nowhere": PLANTS["link to nowhere"]}


def loaded_or_refused(folder: Path) -> tuple[data.Dataset | None, str]:
    try:
        return load(manual_dir=folder / "manual", data_dir=folder / "fresh", report=lambda line: None), ""
    except DataError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("fault", FOLDER_PLANTS)
def test_a_faulty_prepared_folder_gives_the_right_examples_or_ends_in_4_and_leaves_no_cache(
    fault: str,
    kind: str,
    prepared: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named, ours, stock = prepared
    monkeypatch.setitem(official.SOURCES, "mnist", mnist_stand_in.stand_in_source(named))
    train, test = read_stand_in(named)
    whole, rng = (ours if kind == "ours" else stock), random.Random(f"{kind} {fault}")
    refused = tries = 0
    for name in sorted(path.name for path in whole.iterdir()) * (PLACES // 2):
        tries += 1
        folder = Path(shutil.copytree(whole, tmp_path / "manual" / "1.0.0"))
        FOLDER_PLANTS[fault](folder / name, rng)
        found, message = loaded_or_refused(tmp_path)
        if not found:
            refused += 1
            assert message.startswith("data: ")
            assert str(tmp_path / "manual") in message
            assert not list((tmp_path / "fresh").glob("*.idx"))
        else:
            rows = [np.argsort([row.tobytes() for row in split.inputs]) for split in (found.train, train)]
            assert np.array_equal(found.train.inputs[rows[0]], train.inputs[rows[1]])
            assert np.array_equal(found.train.targets[rows[0]], train.targets[rows[1]])
            assert kind == "stock" or (same(found.train, train) and same(found.test, test))
        shutil.rmtree(tmp_path / "manual")
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    print(f"faults, prepared folder, {kind}, {fault}: {tries} tries, {refused} refused")
    assert refused


def test_what_lies_in_the_place_of_the_decoded_copy_is_named_and_left(files: Path, tmp_path: Path) -> None:
    (tmp_path / "data/mnist.idx/mine").mkdir(parents=True)
    code, printed = answer("data", "prepare", "mnist", "--manual-dir", str(files))
    assert code == 8
    assert "mnist.idx" in printed and "directory" in printed
    assert (tmp_path / "data/mnist.idx/mine").is_dir()
    assert [path.name for path in (tmp_path / "data").iterdir() if path.name.startswith(".making")] == []


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Inside, this process may read what everybody may, and no more, although root started it."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_refused_by_name_with_the_reason(
    two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(two_runs[0], folder / "run")
        for each in (folder / "run").rglob("*"):
            each.chmod(0o755 if each.is_dir() else 0o644)
        (folder / "run").chmod(0o755)
        wholes = {"x.png": b"\x89PNG", "x.npy": b"\x93NUMPY", "x-ubyte": b"\0\0\x08\x01", "x.h5": b"\x89HDF"}
        for file, content in wholes.items():
            (folder / file).write_bytes(content)
        closed = [*wholes, "run/config.json", "run/manifest.json", "run/metrics.jsonl", "run/SHA256SUMS"]
        for file in closed:
            path = folder / file
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(0)
            with nobody():
                if file in wholes:
                    with refused((DataError, RunError), path.name) as error:
                        parse_keras(path) if file == "x.h5" else read_images(path, (28, 28, 1))
                    assert "permission denied" in str(error.value).lower()
                else:
                    code, printed = answer("verify", str(folder / "run"))
                    assert (code, "Permission denied" in printed, path.name in printed) == (5, True, True)
                    assert file != "run/config.json" or answer("runs", str(folder / "run"))[0] == 5
            path.chmod(mode)


def test_a_data_set_of_the_users_own_is_checked_as_any_other() -> None:
    """Values that no image or label may have, in each place of each split."""
    images, labels = np.zeros((6, 4, 4), np.float32), np.arange(6, dtype=np.int64) % 3
    pairs: Any
    good = (images, labels)
    for value, at in itertools.product((np.nan, np.inf, -np.inf, 1e39), range(6)):
        poisoned = images.astype(np.float64)
        poisoned[at, at % 4, 0] = value
        for pairs in ((poisoned, labels), good), (good, (poisoned, labels)):
            with refused(DataError, "float32"):
                data.from_arrays(*pairs)
    for value, at in itertools.product((-1, 3, 1 << 40), range(6)):
        wrong = labels.copy()
        wrong[at] = value
        for pairs in ((images, wrong), good), (good, (images, wrong)):
            with refused(DataError, "[0, 2]", value):
                data.from_arrays(*pairs, num_classes=3)


def test_every_length_of_a_cut_idx_file_is_refused(tmp_path: Path) -> None:
    whole = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    path = tmp_path / "x-ubyte"
    for content in (whole, gzip.compress(whole, mtime=0)):
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with refused(DataError, path):
                data.read_idx(path)
