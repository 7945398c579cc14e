"""Four small IDX files that stand in for MNIST's: same format, same checks, other sums; fixtures that install them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlp import data
from jaxmlp.data import download, idx, official
from jaxmlp.data.dataset import Split
from jaxmlp.experiment.config import DataConfig

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array: np.ndarray) -> bytes:
    return b"".join(idx.idx_parts(array))


def write_stand_in(folder: Path, seed: int = 0) -> Path:
    """60 training and 20 test images of noise, every class in both, as four gzipped IDX files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name, rows in zip(NAMES, (60, 60, 20, 20), strict=True):
        array = rng.integers(0, 256, (rows, 28, 28), np.uint8) if "images" in name else rng.permutation(rows) % 10
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array.astype(np.uint8)), mtime=0))
    return folder


def read_stand_in(folder: Path) -> tuple[Split, Split]:
    arrays = [data.read_idx(folder / f"{name}.gz") for name in NAMES]
    splits = [Split(arrays[i][..., np.newaxis], arrays[i + 1].astype(np.int32)) for i in (0, 2)]
    return splits[0], splits[1]


def stand_in_source(folder: Path, url: str = "http://localhost:9/") -> official.Source:
    """What `official.SOURCES` would say of `write_stand_in`'s files."""
    files = []
    for name in NAMES:
        sent = (folder / f"{name}.gz").read_bytes()
        content = gzip.decompress(sent)
        shape = data.read_idx(folder / f"{name}.gz").shape
        sums = hashlib.sha256(sent).hexdigest(), hashlib.sha256(content).hexdigest()
        files.append(official.File(name, shape, len(sent), *sums))
    train, test = read_stand_in(folder)
    sha256 = hashlib.sha256(b"".join(gzip.decompress((folder / f"{name}.gz").read_bytes()) for name in NAMES))
    return official.Source(
        url=url,
        files=(files[0], files[1], files[2], files[3]),
        sha256=sha256.hexdigest(),
        contents_sha256=official.contents_digest(train, test),
    )


def write_stock(files: Path, data_dir: Path) -> Path:
    """What tfds's own `mnist` writes as array_record: PNG images, shuffled."""
    import tensorflow_datasets as tfds  # type: ignore[import-untyped]
    from PIL import Image

    class StockMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
        name = "mnist"
        VERSION = tfds.core.Version("3.0.1")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            train, test = read_stand_in(files)
            return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

        def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(zip(split.inputs, split.targets, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image[..., 0]).save(png, "png")
                png.seek(0)
                yield index, {"image": png, "label": int(label)}

    StockMnist(data_dir=data_dir, file_format="array_record").download_and_prepare(download_dir=data_dir)
    info = data_dir / "mnist/3.0.1/dataset_info.json"
    described = json.loads(info.read_text())
    info.write_text(json.dumps(described | {"moduleName": "tensorflow_datasets.image_classification.mnist"}))
    return info.parent


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user has named no folder, the data folder is empty, and a connection may take 0.2 s."""
    monkeypatch.delenv("JAXMLP_MANUAL_DIR", raising=False)
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(download, "CONNECT_LIMIT_S", 0.2)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in's four files, which are `mnist` while the test runs."""
    folder = write_stand_in(tmp_path / "files")
    monkeypatch.setitem(official.SOURCES, "mnist", stand_in_source(folder))
    return folder


@pytest.fixture
def lines() -> list[str]:
    """The lines that a test collects with `report=lines.append`."""
    return []


def load(name: str = "mnist", validation: float | str | None = None, **folders: Any) -> data.Dataset:
    return data.load(DataConfig(name=name, validation=validation), **folders)


def same(found: Split, wanted: Split) -> bool:
    return np.array_equal(found.inputs, wanted.inputs) and np.array_equal(found.targets, wanted.targets)


def without_tfds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jaxmlp.data.builders", None)
