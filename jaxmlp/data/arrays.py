"""Are arrays valid examples and targets? They are checked once, on the host, before anything is compiled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxmlp.data.dataset import CHANNELS, SPLITS, Dataset, Split, arrays_of, digest, make_dataset
from jaxmlp.errors import DataError

Pair: TypeAlias = Sequence[Any]
"""A pair of examples and targets, as `as_inputs` and `as_targets` take them."""
LEAST_SIDE = 8
"""Side, in pixels, of the smallest square image that a flat row is taken for."""
TESTED = 0.1
"""Fraction of a single pair of examples and targets that becomes the test split, cut off its end."""
SMALL_SCALE = 0.01
"""A pixel scale below this value is meant for pixels of 0 to 255."""


def as_images(array: Any, *, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Convert an array to images as the models take them.

    Args:
        array: [n, height, width, channels], [n, channels, height, width], [n, height, width], or flat [n, height *
            width]. Integers must be in [0, 255]; floats must be finite.
        shape: (height, width) or (height, width, channels) of one image. Without it, flat rows are square, and four
            axes are channels last unless only the second axis has 1 to 4 entries.

    Returns:
        [n, height, width, channels], float32 for floats, else uint8. An array that already has this form is returned
        itself.

    Raises:
        DataError: The shape or type is wrong, there is no example, or a value is out of range. The message says what
            was found and wanted.
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
        return _as_float32(images, "images")
    if np.issubdtype(images.dtype, np.integer) or images.dtype == np.bool_:
        if images.size and not 0 <= images.min() <= images.max() <= 255:
            raise DataError(f"data: integer pixels must be in [0, 255], got {images.min()} to {images.max()}")
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
            raise DataError(f"data: {found[0]} pixels per row do not form a square image: pass shape=(height, width)")
        return side, side, 1
    if len(found) == 2:
        return found[0], found[1], 1
    if len(found) == 3 and found[2] in CHANNELS:
        return found[0], found[1], found[2]
    if len(found) == 3 and found[0] in CHANNELS:
        return found[1], found[2], found[0]
    raise DataError(f"data: images must have 1 to 4 channels, last or first, or a given shape, got {images.shape}")


def as_labels(array: Any, num_classes: int | None) -> np.ndarray:
    """Convert an array to labels as the losses take them.

    Args:
        array: Integers [n] or [n, 1] in [0, num_classes), or one-hot rows [n, num_classes].
        num_classes: Number of classes. None allows any number.

    Returns:
        int32 [n].

    Raises:
        DataError: The shape or type is wrong, a label is out of range, or a row is not one-hot. The message gives the
            index.
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
            raise DataError(f"data: one-hot labels must have a single 1 and zeros elsewhere, got {found}")
        return labels.argmax(axis=1).astype(np.int32)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        way = ". Number them: np.unique(labels, return_inverse=True)[1]" if labels.dtype.kind in "OTUS" else ""
        found = f"got {labels.dtype} {labels.shape}{way}"
        raise DataError(f"data: labels must be integers [n] or one-hot [n, classes], {found}")
    high = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    wrong = np.flatnonzero((labels < 0) | (labels > high))
    if wrong.size:
        raise DataError(f"data: labels must be in [0, {high}], got {labels[wrong[0]]} at index {wrong[0]}")
    return labels.astype(np.int32)


def as_inputs(array: Any, *, images: bool | None = None) -> Any:
    """Convert arrays to examples as the models take them: images, or arrays of any other shape.

    Args:
        array: An array whose first axis is the examples, or a mapping of names to such arrays, which are not images.
        images: Whether the array holds images, as `as_images` takes them. Default: it does if its axes are [n, height,
            width], or four axes with 1 to 4 channels last or first, or flat rows that form squares of 8 x 8 or more.

    Returns:
        Images as `as_images` returns them. Other floats and booleans become float32, uint8 stays, and other integers
        become int32, which the training step does not scale.

    Raises:
        DataError: The type is wrong, there is no example, or a number is not finite or does not fit int32.
    """
    if isinstance(array, Mapping):
        if not array:
            raise DataError("data: a mapping of arrays must not be empty")
        return {str(name): _as_numbers(each, f"inputs {name}") for name, each in sorted(array.items())}
    inputs = np.asarray(array)
    return as_images(inputs) if _are_images(inputs, images) else _as_numbers(inputs, "inputs")


def _are_images(inputs: np.ndarray, images: bool | None) -> bool:
    if images is not None or inputs.dtype.kind not in "buif":
        return bool(images)
    shape = inputs.shape[1:]
    if len(shape) == 1:
        return bool(shape[0] >= LEAST_SIDE**2) and math.isqrt(shape[0]) ** 2 == shape[0]
    return len(shape) == 2 or (len(shape) == 3 and not {shape[0], shape[2]}.isdisjoint(CHANNELS))


def _as_numbers(array: Any, name: str) -> np.ndarray:
    numbers = np.asarray(array)
    if not numbers.ndim or not numbers.size:
        raise DataError(f"data: {name} must be [n, ...], got {numbers.shape}")
    if numbers.dtype == np.uint8:
        return numbers
    if numbers.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        if not limits.min <= numbers.min() <= numbers.max() <= limits.max:
            raise DataError(f"data: {name} must fit int32, got {numbers.min()} to {numbers.max()}")
        return numbers.astype(np.int32, copy=False)
    if numbers.dtype.kind in "fb":
        return _as_float32(numbers, name)
    raise DataError(f"data: {name} must be numbers, got an array of {numbers.dtype}")


def _as_float32(numbers: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise DataError(f"data: {name} must be finite, got nan or inf, or a number too large for float32")
    return numbers


def as_targets(array: Any, num_classes: int | None) -> np.ndarray:
    """Convert an array to targets as the losses take them.

    Args:
        array: Labels, as `as_labels` takes them; or floats that are not one-hot: distributions over the classes [n,
            num_classes], or numbers [n, ...].
        num_classes: Number of classes. None allows any number.

    Returns:
        int32 [n] for labels, else float32 in the given shape.

    Raises:
        DataError: A label is out of range, a float is not finite, or distributions have another number of classes.
    """
    targets = np.asarray(array)
    if targets.dtype.kind != "f" or _is_one_hot(targets):
        return as_labels(targets, num_classes)
    targets = _as_numbers(targets, "targets")
    if num_classes is not None and targets.shape[1:] != (num_classes,):
        raise DataError(f"data: distributions must be [n, {num_classes}], got {targets.shape}")
    return targets


def _is_one_hot(targets: np.ndarray) -> bool:
    is_wide = targets.ndim == 2 and targets.shape[1] > 1
    return is_wide and bool((((targets == 0) | (targets == 1)).all(axis=1) & (targets.sum(axis=1) == 1)).all())


def check_pixels(inputs: Any, scale: float) -> None:
    """Check that floats of 0 to 1 are not scaled as if they were pixels of 0 to 255.

    Args:
        inputs: An array, or a mapping of arrays.
        scale: The experiment's `data.pixel_scale`.

    Raises:
        DataError: They are scaled so; a network would see almost nothing.
    """
    for leaf in arrays_of(inputs):
        if leaf.dtype.kind == "f" and scale < SMALL_SCALE and 0 < leaf.max(initial=0) <= 1:
            wanted = f"pixels must be 0 to 255, because the model scales them by {scale:g}; got 0 to 1"
            raise DataError(f"data: {wanted}. Train with data.pixel_scale=1 (--data.pixel-scale 1) for such numbers")


def from_arrays(
    train: Pair,
    test: Pair,
    *,
    validation: Pair | float | str | None = None,
    name: str = "arrays",
    num_classes: int | None = None,
    weights: Any = None,
    images: bool | None = None,
    others: Mapping[str, Pair] | None = None,
) -> Dataset:
    """Make a data set from arrays in memory.

    Args:
        train: Examples and targets, as `as_inputs` and `as_targets` take them.
        test: The same, with the same shapes and types.
        validation: Examples and targets, or any value of `DataConfig.validation`.
        name: Name for people.
        num_classes: Number of classes. Default: the largest label plus one, or the width of one-hot labels or
            distributions.
        weights: Weights of the training examples' losses, [n], 0 or more. Default: all examples count alike.
        images: Whether the examples are images. Default: their shape decides, as in `as_inputs`.
        others: Further examples and targets, by the name of their split. `DataConfig.also` can score them after each
            epoch.

    Raises:
        DataError: Arrays are not valid examples and targets, or do not fit each other; or a name in `others` belongs to
            another split or has characters other than letters, digits and _.
        ConfigError: The validation is neither a fraction in (0, 1) nor a split's name, or leaves one side empty.
    """
    pairs = {"train": train, "test": test}
    if not isinstance(validation, float | str | None):
        pairs["validation"] = validation
    for split in others or {}:
        if split in (*SPLITS, "ema") or not split.isidentifier():
            raise DataError(f"data: others must have new names, of letters, digits and _, got {split!r}")
    pairs |= others or {}
    for split, pair in pairs.items():
        _check_pair(split, pair)
    is_given = num_classes is not None
    if num_classes is None:
        num_classes = _classes([targets for _, targets in pairs.values()])
    splits = {split: _as_split(split, pair, num_classes, images) for split, pair in pairs.items()}
    wanted = splits["train"]
    for split, found in splits.items():
        if _shown(found.inputs) != _shown(wanted.inputs):
            shapes = f"{_shown(wanted.inputs)}, got {_shown(found.inputs)}"
            raise DataError(f"data: {split} {_noun(wanted.inputs)} must match train: {shapes}")
        if _shown(found.targets) != _shown(wanted.targets):
            shapes = f"{_shown(wanted.targets)}, got {_shown(found.targets)}"
            raise DataError(f"data: {split} targets must match train: {shapes}")
    splits["train"] = wanted._replace(weights=_as_weights(weights, len(wanted.targets)))
    return make_dataset(
        name,
        splits["train"],
        splits["test"],
        validation=validation if isinstance(validation, float | str | None) else splits["validation"],
        num_classes=num_classes or math.prod(wanted.targets.shape[1:]),
        sha256=digest(splits["train"], splits["test"], *(splits[split] for split in sorted(others or {}))),
        others={split: splits[split] for split in others or {}},
        notes=() if is_given or num_classes is None else _gaps(wanted.targets, num_classes),
    )


def _gaps(targets: np.ndarray, outputs: int) -> tuple[str, ...]:
    """A note if most class ids have no training example, as when labels are ids of something else."""
    present = len(np.unique(targets)) if targets.dtype.kind == "i" else outputs
    if 2 * present >= outputs:
        return ()
    problem = f"only {present:,} of the {outputs:,} classes in the labels' range have training examples"
    way = "Number them from 0 without gaps: np.unique(labels, return_inverse=True)[1]. Or pass num_classes"
    return (f"{problem}, and the network has {outputs:,} outputs. {way}",)


def as_split(pair: Pair, num_classes: int | None, *, images: bool | None = None, name: str = "given") -> Split:
    """Check a pair of examples and targets and make a split of it.

    Args:
        pair: Examples and targets, as `as_inputs` and `as_targets` take them.
        num_classes: Number of classes. None allows any number.
        images: As in `as_inputs`.
        name: Name of the split, for messages.

    Raises:
        DataError: They are not valid examples and targets, or do not fit each other.
    """
    _check_pair(name, pair)
    return _as_split(name, pair, num_classes, images)


def _check_pair(split: str, pair: Any) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"data: {split} must be a pair of images and labels, got {type(pair).__name__}")


def as_dataset(given: Any, validation: float | str | None) -> Dataset:
    """The given data set, or a data set made from arrays or frames.

    Args:
        given: A data set; a pair of examples and targets, whose last tenth becomes the test split; or two such pairs,
            for training and test. Examples and targets are as `from_arrays` takes them. For a pandas or polars frame,
            pass its columns.
        validation: As `DataConfig.validation`.

    Raises:
        ConfigError, DataError: As `from_arrays`; or `given` is none of these.
    """
    if isinstance(given, Dataset):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        wanted = "a data set, a pair (inputs, targets), or two such pairs, for training and test"
        raise DataError(f"data: dataset must be {wanted}, got {type(given).__name__}")
    if not isinstance(given[0], tuple | list) or len(given[0]) != 2:
        whole = as_split(given, None, name="dataset")
        cut = int(len(whole.targets) * (1 - TESTED))
        given = [(whole.rows(rows).inputs, np.asarray(given[1])[rows]) for rows in (slice(cut), slice(cut, None))]
    return from_arrays(*given, validation=validation)


def _classes(targets: Iterable[Any]) -> int | None:
    """The number of classes if the targets are labels, else None."""
    given = [np.asarray(each) for each in targets]
    if any(each.dtype.kind == "f" and not _is_one_hot(each) for each in given):
        return None
    return max(
        each.shape[1] if each.ndim == 2 and each.shape[1] > 1 else int(as_labels(each, None).max(initial=0)) + 1
        for each in given
    )


def _as_split(split: str, pair: Pair, num_classes: int | None, images: bool | None) -> Split:
    inputs, targets = pair
    checked = Split(as_inputs(inputs, images=images), as_targets(targets, num_classes))
    for leaf in arrays_of(checked.inputs):
        if len(leaf) != len(checked.targets):
            nouns = _noun(checked.inputs), "labels" if checked.targets.dtype.kind in "iu" else "targets"
            found = f"{len(leaf)} {nouns[0]} and {len(checked.targets)} {nouns[1]}"
            raise DataError(f"data: {split} must have a {nouns[1][:-1]} for each {nouns[0][:-1]}, got {found}")
    return checked


def _as_weights(weights: Any, examples: int) -> np.ndarray | None:
    if weights is None:
        return None
    numbers: np.ndarray = np.asarray(_as_numbers(weights, "weights"), np.float32)
    if numbers.shape != (examples,) or numbers.min() < 0 or not numbers.any():
        raise DataError(f"data: weights must be [{examples}], 0 or more and not all 0, got {numbers.shape}")
    return numbers


def _noun(inputs: Any) -> str:
    is_image = not isinstance(inputs, Mapping) and inputs.ndim == 4 and inputs.shape[3] in CHANNELS
    return "images" if is_image else "examples"


def _shown(inputs: Any) -> str:
    named = inputs.items() if isinstance(inputs, Mapping) else [("", inputs)]
    return ", ".join(f"{name} {leaf.dtype} {leaf.shape[1:]}".strip() for name, leaf in named)
