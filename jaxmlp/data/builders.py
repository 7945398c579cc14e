"""MNIST and Fashion-MNIST as tensorflow-datasets prepares and reads them, TensorFlow never loaded.

tfds's own builders need TensorFlow to decompress and to encode PNG, and shuffle what they write. These write plain
uint8 tensors in the files' order. Their names differ from tfds's, whose registry and folders they share.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds  # type: ignore[import-untyped]

from jaxmlp.data.dataset import Split
from jaxmlp.data.idx import read_idx
from jaxmlp.data.official import SOURCES
from jaxmlp.errors import DataError
from jaxmlp.fields import parse_json

FEATURES = re.compile(r"tensorflow_datasets\.core\.features\.[a-z_]+\.[A-Za-z]+")
"""Names of the classes that a folder's features may be of: tfds imports the module of whatever name it finds."""
READ_AT_ONCE = 2000
"""Records; one at a time takes six times as long."""


class _Info(tfds.core.DatasetInfo):  # type: ignore[misc]
    """What tfds knows of a data set."""

    def initialize_from_bucket(self) -> None:
        """Nothing: tfds's bucket knows none of these, and its own method leaves an empty folder in /tmp."""


class _IdxBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """A data set of `official.SOURCES`, from four verified files, or from where tfds finds or downloads them."""

    VERSION = tfds.core.Version("1.0.0")
    source: str
    files: Sequence[Path] | None = None

    def _info(self) -> Any:
        # Bytes, because the default writes each pixel as an integer of its own and takes three times as long.
        features = {
            "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=SOURCES[self.source].num_classes),
        }
        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        source = SOURCES[self.source]
        files = self.files or dl_manager.download([f"{source.url}{file.name}.gz" for file in source.files])
        return {"train": self._generate_examples(*files[:2]), "test": self._generate_examples(*files[2:])}

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
            yield index, {"image": image[..., np.newaxis], "label": int(label)}


class JaxmlpMnist(_IdxBuilder):
    """MNIST in the order of its files."""

    source = "mnist"


class JaxmlpFashionMnist(_IdxBuilder):
    """Fashion-MNIST in the order of its files."""

    source = "fashion_mnist"


BUILDERS = {builder.source: builder for builder in (JaxmlpMnist, JaxmlpFashionMnist)}


def write(name: str, files: Sequence[Path], data_dir: Path) -> Path:
    """Prepares data set `name` under `data_dir` as array_record.

    Args:
        name: A key of `BUILDERS`.
        files: Its four files, verified.
        data_dir: Where tfds makes the folder `<builder>/<version>`.

    Returns:
        That folder.

    Raises:
        OSError: Nothing can be written there.
    """
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    builder.files = files
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # tfds prints to stdout, which belongs to `--json`.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(download_dir=data_dir / "downloads", download_config=config)
        except RuntimeError as error:  # array_record's, for a full disk
            raise OSError(str(error)) from error
    return Path(builder.data_dir)


def read(folder: Path) -> tuple[Split, Split]:
    """Train and test of an array_record folder that tfds or `write` made, in the order of its records.

    Raises:
        DataError: It is damaged, or holds other than images and labels.
    """
    try:
        _check_features(parse_json((folder / "features.json").read_bytes()))
        builder = tfds.builder_from_directory(folder)
        return _read_split(builder, "train"), _read_split(builder, "test")
    # tfds, protobuf, array_record's C++ and Pillow each raise classes of their own for a damaged file.
    except Exception as error:
        raise DataError(f"data: {folder} cannot be read: {str(error).strip() or type(error).__name__}") from error


def _check_features(plain: Any) -> None:
    """Raise ValueError where a class would come from elsewhere than tfds's own features."""
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        if key in ("pythonClassName", "python_class_name", "type") and not FEATURES.fullmatch(str(value)):
            raise ValueError(f"features.json names the class {value!r}, which is none of tfds's features")
        _check_features(value)


def _read_split(builder: Any, split: str) -> Split:
    png = isinstance(builder.info.features["image"], tfds.features.Image)
    decoders = {"image": tfds.decode.SkipDecoding()} if png else None
    records = builder.as_data_source(split=split, decoders=decoders)
    images = np.empty((len(records), 28, 28, 1), np.uint8)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), READ_AT_ONCE):
        rows = slice(start, min(start + READ_AT_ONCE, len(records)))
        examples = records.__getitems__(range(rows.start, rows.stop))
        images[rows] = [_decoded(example["image"]) if png else example["image"] for example in examples]
        labels[rows] = [example["label"] for example in examples]
    return Split(images, labels)


def _decoded(png: bytes) -> np.ndarray:
    """One image, uint8 [28, 28, 1]."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=["png"]) as image:
        return np.asarray(image)[..., np.newaxis]
