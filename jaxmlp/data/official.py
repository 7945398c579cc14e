"""Which files are MNIST and Fashion-MNIST, and are the files in a folder the right ones?"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple

from jaxmlp.data.dataset import Split
from jaxmlp.data.idx import idx_parts, opened, read_idx
from jaxmlp.errors import DataError


class File(NamedTuple):
    """One of a data set's four files."""

    name: str
    """Name without `.gz`."""
    shape: tuple[int, ...]
    gz_bytes: int
    gz_sha256: str
    """SHA-256 of the file as its server sends it. Source: tensorflow-datasets 4.9.10, `url_checksums`."""
    sha256: str
    """SHA-256 of the decompressed bytes. Files that were gzipped again (Debian's `dataset-fashion-mnist`) share it."""


class Source(NamedTuple):
    """Where a data set comes from, and its hashes."""

    url: str
    """URL of the folder with the four files, ending in a slash."""
    files: tuple[File, File, File, File]
    """Train images, train labels, test images, test labels."""
    sha256: str
    """`dataset.digest` in the files' order."""
    contents_sha256: str
    """`contents_digest`, which is the same for any order of the examples."""
    num_classes: int = 10


SOURCES = {
    "mnist": Source(
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        files=(
            File(
                "train-images-idx3-ubyte",
                (60000, 28, 28),
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            File(
                "train-labels-idx1-ubyte",
                (60000,),
                28881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            File(
                "t10k-images-idx3-ubyte",
                (10000, 28, 28),
                1648877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            File(
                "t10k-labels-idx1-ubyte",
                (10000,),
                4542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        sha256="b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a",
        contents_sha256="f771933d03a86cc5f6899b91d168d95717c342a985562a4a2b5d8d2517a4cb24",
    ),
    "fashion_mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=(
            File(
                "train-images-idx3-ubyte",
                (60000, 28, 28),
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            File(
                "train-labels-idx1-ubyte",
                (60000,),
                29515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            File(
                "t10k-images-idx3-ubyte",
                (10000, 28, 28),
                4422102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            File(
                "t10k-labels-idx1-ubyte",
                (10000,),
                5148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        sha256="14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214",
        contents_sha256="4de292442a22996b5d72c79883ebd803d1eb19709f86b3eb7c24b5f4c7be93a1",
    ),
}


def contents_digest(*splits: Split) -> str:
    """SHA-256 over the sorted SHA-256 hashes of each split's examples: pixels, then the label as a byte."""
    sha256 = hashlib.sha256()
    for images, labels, _ in splits:
        rows = (image.tobytes() + bytes((label,)) for image, label in zip(images, labels.tolist(), strict=True))
        sha256.update(b"".join(sorted(hashlib.sha256(row).digest() for row in rows)))
    return sha256.hexdigest()


def find(name: str, folder: Path) -> tuple[Path, ...] | None:
    """The four files of data set `name` in `folder`, gzipped or not; None if it has none of them.

    Raises:
        DataError: Only some of the files are there, or the folder cannot be read.
    """
    try:
        present = set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"data: {folder} cannot be read: {error.strerror}") from None
    names = [file.name for file in SOURCES[name].files]
    found = [next((n for n in (f"{name}.gz", name) if n in present), None) for name in names]
    if not any(found):
        return None
    if None in found:
        missing = [f"{name}.gz" for name, path in zip(names, found, strict=True) if path is None]
        raise DataError(f"data: {folder} lacks {', '.join(missing)} of {name}'s four files")
    return tuple(folder / str(path) for path in found)


def verify(name: str, paths: tuple[Path, ...]) -> None:
    """Compare each of the four files with data set `name`'s SHA-256.

    Raises:
        DataError: A file is damaged, cut off, altered or another file. The message says which, and what was found and
            wanted.
    """
    for path, wanted in zip(paths, SOURCES[name].files, strict=True):
        with opened(path, decompress=False) as file:
            as_sent = hashlib.file_digest(file, "sha256").hexdigest()
        if as_sent != wanted.gz_sha256:
            _verify_content(name, path, wanted)


def _verify_content(name: str, path: Path, wanted: File) -> None:
    largest = max(math.prod(file.shape) for source in SOURCES.values() for file in source.files)
    array = read_idx(path, limit_bytes=largest)
    sha256 = hashlib.sha256(b"".join(idx_parts(array))).hexdigest()
    if sha256 == wanted.sha256:
        return
    known = {file.sha256: f"{other}'s {file.name}" for other, source in SOURCES.items() for file in source.files}
    problem = f"data: {path} is not {name}'s {wanted.name}"
    if is_another := known.get(sha256):
        raise DataError(f"{problem}: it is {is_another}")
    if array.shape != wanted.shape or array.dtype != "uint8":
        raise DataError(f"{problem}: found {array.dtype} {array.shape}, wanted uint8 {wanted.shape}")
    sums = f"found {sha256}, wanted {wanted.sha256}"
    raise DataError(f"{problem}: its content was altered. SHA-256 of the decompressed bytes: {sums}")
