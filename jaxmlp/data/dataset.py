"""What a data set is: its splits in host memory, their digest, and how a validation split is cut off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmlp.data.idx import idx_parts
from jaxmlp.errors import ConfigError, did_you_mean


class Split(NamedTuple):
    """Examples in host memory."""

    images: np.ndarray
    """uint8, or float32 where the caller gave floats, [examples, height, width, channels]."""
    labels: np.ndarray
    """int32 [examples]."""

    def __repr__(self) -> str:
        return f"Split({len(self.labels)} images of {self.images.dtype} {self.images.shape[1:]})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Everything a run reads. A validation split may be `train` or `test` itself, shared and not copied."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    sha256: str
    """`digest` of train and test as loaded, before the validation cut."""
    notes: tuple[str, ...] = ()
    """Lines that people must see."""


def serialized(*splits: Split) -> Iterator[bytes | memoryview]:
    r"""The bytes that a data set's SHA-256 is over: each split's images, then its labels, as uncompressed IDX files.

    Images of one channel have the axes examples, height, width; others have channels last. Labels are unsigned bytes
    where all are below 256, else 32-bit. So the digest of MNIST is that of its four files, one after the other:

        zcat train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \
             t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz | sha256sum
    """
    for images, labels in splits:
        yield from idx_parts(images[..., 0] if images.shape[-1] == 1 else images)
        yield from idx_parts(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.int32))


def digest(*splits: Split) -> str:
    """SHA-256 over `serialized`, in hexadecimal."""
    sha256 = hashlib.sha256()
    for part in serialized(*splits):
        sha256.update(part)
    return sha256.hexdigest()


def cut_validation(train: Split, test: Split, validation: Split | float | str | None) -> tuple[Split, Split | None]:
    """The training split that is left, and the validation split.

    Args:
        train: n examples.
        test: The test split, for `validation="test"`.
        validation: A fraction f in (0, 1): examples `int(n * (1 - f))` to n, the last ones, cut off before any
            shuffle; `train` or `test`: that split, shared; another split; or None.
            Source: Keras 2.2.4, `validation_split`.

    Raises:
        ConfigError: An unknown split, or a fraction that leaves no example on one side.
    """
    if isinstance(validation, str):
        named = {"train": train, "test": test}
        if validation not in named:
            wanted = f"must be a fraction in (0, 1), one of train, test, or none, got {validation!r}"
            raise ConfigError("data.validation", f"{wanted}.{did_you_mean(validation, named)}")
        return train, named[validation]
    if validation is None or isinstance(validation, Split):
        return train, validation
    examples = len(train.labels)
    split_at = int(examples * (1 - validation))
    if not 0 < split_at < examples:
        wanted = f"must leave examples on both sides of the cut, got {validation:g} of {examples}"
        raise ConfigError("data.validation", wanted)
    return (
        Split(train.images[:split_at], train.labels[:split_at]),
        Split(train.images[split_at:], train.labels[split_at:]),
    )


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    *,
    validation: Split | float | str | None,
    num_classes: int,
    sha256: str,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """The data set with its validation split cut off, and a note where the cut leaves a class untrained.

    Raises:
        ConfigError: As `cut_validation`.
    """
    left, held_out = cut_validation(train, test, validation)
    untrained = np.setdiff1d(train.labels, left.labels)
    if untrained.size:
        classes = ", ".join(map(str, untrained))
        cut = f"data.validation {validation} takes the last {len(train.labels) - len(left.labels):,} training images"
        notes += (f"{cut}, and with them all of class {classes}: none is trained on",)
    return Dataset(
        name=name, train=left, validation=held_out, test=test, num_classes=num_classes, sha256=sha256, notes=notes
    )
