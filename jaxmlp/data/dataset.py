"""What is a data set? Splits in host memory, their digest, and a validation split that is cut off."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from jaxmlp.data.idx import idx_parts
from jaxmlp.errors import ConfigError, did_you_mean

CHANNELS = (1, 2, 3, 4)
"""Sizes of the last axis by which an array is recognised as an image."""
SPLITS = ("test", "validation", "train")
"""Splits of every data set. The validation split may be missing."""
SUM_TOLERANCE = 1e-3
"""Largest deviation from 1 of a distribution's float32 sum: a thousand classes, each rounded."""


class Split(NamedTuple):
    """Examples in host memory."""

    inputs: Any
    """An array `[examples, ...]`, or a mapping of such arrays. Images are uint8 or float32, channels last."""
    targets: np.ndarray
    """Class ids, int32 [examples]; distributions, float32 [examples, classes]; or numbers, float32 [examples, ...]."""
    weights: np.ndarray | None = None
    """Weight of each example's loss, float32 [examples]. None: all examples count alike."""

    def __repr__(self) -> str:
        shown = " and ".join(f"{leaf.dtype} {leaf.shape[1:]}" for leaf in arrays_of(self.inputs))
        return f"Split({len(self.targets)} examples of {shown})"

    @property
    def labels(self) -> np.ndarray:
        """Class ids [examples]. A distribution becomes its likeliest class, the first of equals."""
        return self.targets if self.targets.dtype.kind in "iu" else self.targets.argmax(axis=1)

    def rows(self, index: Any) -> Split:
        """The examples at `index`."""
        weights = None if self.weights is None else self.weights[index]
        return Split(_of_each(self.inputs, itemgetter(index)), self.targets[index], weights)


def arrays_of(inputs: Any) -> list[np.ndarray]:
    """The arrays of a split's inputs."""
    return list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]


def _of_each(inputs: Any, function: Callable[[Any], Any]) -> Any:
    """The function's result for the inputs, or for each of them in a mapping."""
    return {name: function(leaf) for name, leaf in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


class ArrayFacts(NamedTuple):
    """Type and shape of an array."""

    dtype: str
    shape: tuple[int, ...]
    """Shape of one example."""

    def zeros(self, rows: int) -> np.ndarray:
        """An array `[rows, ...]` of this type and shape that takes no memory."""
        return np.broadcast_to(np.zeros((), np.dtype(self.dtype)), (rows, *self.shape))


class Facts(NamedTuple):
    """What a network must know of its data: types and shapes of one example, and the number of outputs."""

    inputs: ArrayFacts | dict[str, ArrayFacts]
    targets: ArrayFacts
    outputs: int
    """Number of classes, or numbers per target."""
    classes: bool = True
    """Whether targets are classes, as ids or distributions. If false, targets are numbers."""

    def zeros(self, rows: int) -> Split:
        """A split of zeros."""
        return Split(_of_each(self.inputs, lambda facts: facts.zeros(rows)), self.targets.zeros(rows))

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels if the input is an image, else None."""
        shape = () if isinstance(self.inputs, dict) else self.inputs.shape
        return (shape[0], shape[1], shape[2]) if len(shape) == 3 and shape[2] in CHANNELS else None

    def to_plain(self) -> dict[str, Any]:
        """The facts as JSON types."""
        return {
            "inputs": _of_each(self.inputs, lambda facts: [facts.dtype, list(facts.shape)]),
            "targets": [self.targets.dtype, list(self.targets.shape)],
            "outputs": self.outputs,
            "classes": self.classes,
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Facts:
        """The inverse of `to_plain`.

        Raises:
            ValueError: The value is not what `to_plain` returns.
        """

        def of(found: Any) -> ArrayFacts:
            dtype, shape = found
            if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
                raise ValueError(f"invalid shape {shape}")
            if np.dtype(dtype).kind not in "uifb":
                raise ValueError(f"invalid type {dtype}")
            return ArrayFacts(np.dtype(dtype).name, tuple(shape))

        try:
            if type(plain["outputs"]) is not int or not 0 < plain["outputs"] < 1 << 31:
                raise ValueError(f"invalid outputs {plain['outputs']}")
            if type(plain["classes"]) is not bool:
                raise ValueError(f"invalid classes {plain['classes']}")
            return cls(_of_each(plain["inputs"], of), of(plain["targets"]), plain["outputs"], plain["classes"])
        except (KeyError, TypeError) as error:
            raise ValueError(str(error)) from error


def facts_of(split: Split, outputs: int) -> Facts:
    """The facts of a split's examples."""

    def of(leaf: np.ndarray) -> ArrayFacts:
        return ArrayFacts(leaf.dtype.name, leaf.shape[1:])

    classes = split.targets.dtype.kind in "iu" or _are_distributions(split.targets)
    return Facts(_of_each(split.inputs, of), of(split.targets), outputs, classes)


def _are_distributions(targets: np.ndarray) -> bool:
    if targets.ndim != 2 or targets.shape[1] < 2 or targets.min(initial=0) < 0:
        return False
    return bool((np.abs(targets.sum(axis=1) - 1) <= SUM_TOLERANCE).all())


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """All data that a run reads. A validation split may be `train` or `test` itself, shared and not copied."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    num_classes: int
    sha256: str
    """`digest` of train, test and the others as loaded, before the validation split is cut off."""
    notes: tuple[str, ...] = ()
    """Notes that people must see."""
    others: Mapping[str, Split] = dataclasses.field(default_factory=dict)
    """Further splits to score, by name."""

    def split(self, name: str) -> Split | None:
        """`train`, `validation`, `test` or another split; None if there is no split of this name."""
        found: Split | None = getattr(self, name) if name in SPLITS else self.others.get(name)
        return found

    def wanted(self, name: str) -> Split:
        """The split of this name.

        Raises:
            ConfigError: There is no such split; the message lists the known names.
        """
        if not (found := self.split(name)):
            there = [each for each in (*SPLITS, *self.others) if self.split(each)]
            raise ConfigError("split", f"must be one of {', '.join(there)}, got {name!r}.{did_you_mean(name, there)}")
        return found

    @functools.cached_property
    def facts(self) -> Facts:
        """Shapes and types of an example, and the number of outputs."""
        return facts_of(self.train, self.num_classes)


def serialized(*splits: Split) -> Iterator[bytes | memoryview]:
    r"""The bytes that a data set's SHA-256 covers: each split's inputs, targets and weights as uncompressed IDX files.

    Images with one channel have the axes examples, height, width; other images have channels last. Labels are unsigned
    bytes if all are below 256, else 32-bit integers. So MNIST has the digest of its four files, one after the
    other:

        zcat train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \
             t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz | sha256sum

    Other inputs and targets are written as they are. In a mapping, each array follows its name and a zero byte. Weights
    are included if the split has them.
    """
    for inputs, targets, weights in splits:
        for name, leaf in sorted(inputs.items()) if isinstance(inputs, Mapping) else [("", inputs)]:
            yield f"{name}\0".encode() if isinstance(inputs, Mapping) else b""
            yield from idx_parts(leaf[..., 0] if leaf.ndim == 4 and leaf.shape[-1] == 1 else leaf)
        if targets.dtype.kind in "iu":
            targets = targets.astype(np.uint8 if targets.max(initial=0) < 256 else np.int32)
        yield from idx_parts(targets)
        if weights is not None:
            yield from idx_parts(weights)


def digest(*splits: Split) -> str:
    """SHA-256 of `serialized`, in hexadecimal."""
    sha256 = hashlib.sha256()
    for part in serialized(*splits):
        sha256.update(part)
    return sha256.hexdigest()


def cut_validation(train: Split, test: Split, validation: Split | float | str | None) -> tuple[Split, Split | None]:
    """Cut off the validation split. Returns the remaining training split and the validation split.

    Args:
        train: n examples.
        test: The test split, for `validation="test"`.
        validation: A fraction f in (0, 1): the last examples, `int(n * (1 - f))` to n, cut off before any shuffle;
            `train` or `test`: that split, shared; another split; or None. Source: Keras 2.2.4, `validation_split`.

    Raises:
        ConfigError: The split is unknown, or a fraction leaves no example on one side.
    """
    if isinstance(validation, str):
        named = {"train": train, "test": test}
        if validation not in named:
            wanted = f"must be a fraction in (0, 1), one of train, test, or none, got {validation!r}"
            raise ConfigError("data.validation", f"{wanted}.{did_you_mean(validation, named)}")
        return train, named[validation]
    if validation is None or isinstance(validation, Split):
        return train, validation
    examples = len(train.targets)
    split_at = int(examples * (1 - validation))
    if not 0 < split_at < examples:
        wanted = f"must leave examples on both sides of the cut, got {validation:g} of {examples}"
        raise ConfigError("data.validation", wanted)
    return train.rows(slice(None, split_at)), train.rows(slice(split_at, None))


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    *,
    validation: Split | float | str | None,
    num_classes: int,
    sha256: str,
    notes: tuple[str, ...] = (),
    others: Mapping[str, Split] | None = None,
) -> Dataset:
    """The data set with its validation split cut off, and a note if the cut leaves a class untrained.

    Raises:
        ConfigError: As `cut_validation`.
    """
    left, held_out = cut_validation(train, test, validation)
    untrained = np.setdiff1d(train.targets, left.targets)
    if untrained.size and train.targets.dtype.kind in "iu":
        classes = ", ".join(map(str, untrained))
        cut = f"data.validation {validation} takes the last {len(train.targets) - len(left.targets):,} training images"
        notes += (f"{cut}, which are all images of class {classes}: the class is not trained",)
    return Dataset(
        name=name,
        train=left,
        validation=held_out,
        test=test,
        num_classes=num_classes,
        sha256=sha256,
        notes=notes,
        others=others or {},
    )
