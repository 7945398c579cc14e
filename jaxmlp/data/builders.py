"""How does tensorflow-datasets prepare and read MNIST and Fashion-MNIST without loading TensorFlow?

tfds's own builders need TensorFlow to decompress and to encode PNG, and they shuffle what they write. The builders here
write plain uint8 tensors in the files' order. Their names differ from tfds's names, with which they share a registry
and folders.
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
from jaxmlp.experiment.fields import parse_json

FEATURES = re.compile(r"tensorflow_datasets\.core\.features\.[a-z_]+\.[A-Za-z]+")
"""Names of the feature classes that a folder may use. tfds would import the module of any name that it finds."""
READ_AT_ONCE = 2000
"""Number of records to read at a time. Reading single records takes six times as long."""


class _Info(tfds.core.DatasetInfo):  # type: ignore[misc]
    """tfds's description of a data set."""

    def initialize_from_bucket(self) -> None:
        """Do nothing.

        tfds's bucket does not know these data sets, and its own method leaves an empty folder in /tmp.
        """


class _IdxBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """A data set in `official.SOURCES`, made from four verified files, or from files that tfds finds or downloads."""

    VERSION = tfds.core.Version("1.0.0")
    source: str
    files: Sequence[Path] | None = None

    def _info(self) -> Any:
        # Bytes: the default encoding writes each pixel as an integer of its own and takes three times as long.
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
    """Prepare data set `name` under `data_dir` as array_record.

    Args:
        name: A key of `BUILDERS`.
        files: Its four files, verified.
        data_dir: Folder in which tfds makes `<builder>/<version>`.

    Returns:
        The folder `<builder>/<version>`.

    Raises:
        OSError: The folder cannot be written.
    """
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    builder.files = files
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # tfds prints to stdout, which belongs to `--json`.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(download_dir=data_dir / "downloads", download_config=config)
        except RuntimeError as error:  # array_record raises it if the disk is full
            raise OSError(str(error)) from error
    return Path(builder.data_dir)


def read(folder: Path) -> tuple[Split, Split]:
    """Read train and test from an array_record folder made by tfds or `write`, in the order of its records.

    Raises:
        DataError: The folder is damaged, or holds something other than images and labels.
    """
    try:
        _check_features(parse_json((folder / "features.json").read_bytes()))
        builder = tfds.builder_from_directory(folder)
        return _read_split(builder, "train"), _read_split(builder, "test")
    # For a damaged file, tfds, protobuf, array_record and Pillow each raise exceptions of their own.
    except Exception as error:
        raise DataError(f"data: {folder} cannot be read: {str(error).strip() or type(error).__name__}") from error


def _check_features(plain: Any) -> None:
    """Raise ValueError if the description names a class that is not one of tfds's features."""
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ():
        if key in ("pythonClassName", "python_class_name", "type") and not FEATURES.fullmatch(str(value)):
            raise ValueError(f"features.json names the class {value!r}, which is not one of tfds's features")
        _check_features(value)


def _read_split(builder: Any, split: str) -> Split:
    png = isinstance(builder.info.features["image"], tfds.features.Image)
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()} if png else None)
    images = np.empty((len(records), 28, 28, 1), np.uint8)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), READ_AT_ONCE):
        rows = slice(start, min(start + READ_AT_ONCE, len(records)))
        examples = records.__getitems__(range(rows.start, rows.stop))
        images[rows] = [_decoded(example["image"]) if png else example["image"] for example in examples]
        labels[rows] = [example["label"] for example in examples]
    return Split(images, labels)


def _decoded(png: bytes) -> np.ndarray:
    """Decode one image to uint8 [28, 28, 1]."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=["png"]) as image:
        return np.asarray(image)[..., np.newaxis]
