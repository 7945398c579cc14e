"""Whether arrays are images and labels: checked once, on the host, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxmlp.data.dataset import Dataset, Split, digest, make_dataset
from jaxmlp.errors import DataError

Pair: TypeAlias = Sequence[Any]
"""Two: images and labels, as `as_images` and `as_labels` take them."""
CHANNELS = (1, 2, 3, 4)
"""Lengths by which the channel axis is known where no shape is given."""


def as_images(array: Any, *, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Images as the models take them.

    Args:
        array: [n, height, width, channels], [n, channels, height, width], [n, height, width], or flat
            [n, height * width]. Integers must be in [0, 255]; floats must be finite.
        shape: (height, width) or (height, width, channels) of one image. Without it flat rows are square, and four
            axes are channels last unless only the second axis has 1 to 4 entries.

    Returns:
        uint8, or float32 for floats, [n, height, width, channels]; the given array itself where it is that already.

    Raises:
        DataError: Another shape or type, no example, or a value out of range: found and wanted.
    """
    images = _as_pixels(np.asarray(array))
    if images.ndim < 2 or not images.size:
        raise DataError(f"data: images must be [n, height, width, channels] or flat [n, pixels], got {images.shape}")
    height, width, channels = _image_shape(images, shape)
    rows = len(images)
    last = (rows, height, width, channels)
    flat = (rows, height * width * channels)
    if images.shape in (last, flat) or (channels == 1 and images.shape == last[:3]):
        return np.ascontiguousarray(images).reshape(last)
    if images.shape == (rows, channels, height, width):
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    wanted = f"[n, {height}, {width}, {channels}] or flat [n, {flat[1]}]"
    raise DataError(f"data: images must be {wanted}, got {images.shape}")


def _as_pixels(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):
            images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            raise DataError("data: images must be finite, got nan or inf, or a number beyond float32")
        return images
    if np.issubdtype(images.dtype, np.integer) or images.dtype == np.bool_:
        if images.size and not 0 <= images.min() <= images.max() <= 255:
            raise DataError(f"data: whole-number pixels must be in [0, 255], got {images.min()} to {images.max()}")
        return images.astype(np.uint8)
    raise DataError(f"data: images must be numbers, got an array of {images.dtype}")


def _image_shape(images: np.ndarray, shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Height, width and channels of one image."""
    if shape is not None:
        if len(shape) not in (2, 3):
            raise DataError(f"data: shape must be (height, width) or (height, width, channels), got {shape}")
        height, width, channels = shape if len(shape) == 3 else (*shape, 1)
        return height, width, channels
    found = images.shape[1:]
    if len(found) == 1:
        side = math.isqrt(found[0])
        if side * side != found[0]:
            raise DataError(f"data: {found[0]} pixels a row are no square image: give shape=(height, width)")
        return side, side, 1
    if len(found) == 2:
        return found[0], found[1], 1
    if len(found) == 3 and found[2] in CHANNELS:
        return found[0], found[1], found[2]
    if len(found) == 3 and found[0] in CHANNELS:
        return found[1], found[2], found[0]
    raise DataError(f"data: images must have 1 to 4 channels, last or first, or a given shape, got {images.shape}")


def as_labels(array: Any, num_classes: int | None) -> np.ndarray:
    """Labels as the losses take them.

    Args:
        array: Integers [n] or [n, 1] in [0, num_classes), or one-hot [n, num_classes].
        num_classes: None takes any number of classes.

    Returns:
        int32 [n].

    Raises:
        DataError: Another shape or type, a label out of range, or a row that is not one-hot, by its index.
    """
    labels = np.asarray(array)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "buif":
        if num_classes is not None and labels.shape[1] != num_classes:
            raise DataError(f"data: one-hot labels must be [n, {num_classes}], got {labels.shape}")
        wrong = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1) | ((labels == 1).sum(axis=1) != 1))
        if wrong.size:
            found = f"row {wrong[0]}: {labels[wrong[0]]}"
            raise DataError(f"data: one-hot labels must be zeros and a single one, got {found}")
        return labels.argmax(axis=1).astype(np.int32)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"data: labels must be integers [n] or one-hot [n, classes], got {labels.dtype} {labels.shape}")
    high = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    wrong = np.flatnonzero((labels < 0) | (labels > high))
    if wrong.size:
        raise DataError(f"data: labels must be in [0, {high}], got {labels[wrong[0]]} at index {wrong[0]}")
    return labels.astype(np.int32)


def from_arrays(
    train: Pair,
    test: Pair,
    *,
    validation: Pair | float | str | None = None,
    name: str = "arrays",
    num_classes: int | None = None,
) -> Dataset:
    """A data set of arrays in memory.

    Args:
        train: Images and labels, as `as_images` and `as_labels` take them.
        test: The same, of images of the same shape and type.
        validation: Images and labels; or what `DataConfig.validation` may be.
        name: Shown to people.
        num_classes: None takes one more than the largest label, or the width of one-hot labels.

    Raises:
        DataError: Arrays that are no images and labels, or do not fit each other: found and wanted.
        ConfigError: A validation that is no fraction in (0, 1), no split's name, or leaves a side empty.
    """
    pairs = {"train": train, "test": test}
    if not isinstance(validation, float | str | None):
        pairs["validation"] = validation
    for split, pair in pairs.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"data: {split} must be a pair of images and labels, got {type(pair).__name__}")
    if num_classes is None:
        num_classes = max(_classes(labels) for _, labels in pairs.values())
    splits = {split: _as_split(split, pair, num_classes) for split, pair in pairs.items()}
    wanted = splits["train"].inputs
    for split, (images, _, _) in splits.items():
        if images.shape[1:] != wanted.shape[1:] or images.dtype != wanted.dtype:
            found = f"{images.dtype} {images.shape[1:]}"
            raise DataError(f"data: {split} images must be as train's, {wanted.dtype} {wanted.shape[1:]}, got {found}")
    return make_dataset(
        name,
        splits["train"],
        splits["test"],
        validation=validation if isinstance(validation, float | str | None) else splits["validation"],
        num_classes=num_classes,
        sha256=digest(splits["train"], splits["test"]),
    )


def _classes(labels: Any) -> int:
    shape = np.shape(labels)
    return shape[1] if len(shape) == 2 and shape[1] > 1 else int(as_labels(labels, None).max(initial=0)) + 1


def _as_split(split: str, pair: Pair, num_classes: int) -> Split:
    images, labels = pair
    checked = Split(as_images(images), as_labels(labels, num_classes))
    if len(checked.inputs) != len(checked.targets):
        found = f"{len(checked.inputs)} images and {len(checked.targets)} labels"
        raise DataError(f"data: {split} must have a label for each image, got {found}")
    return checked
