"""Data sets in host memory: loaded by name or made of arrays, checked against known sums, split as Keras splits."""

from jaxmlp.data.arrays import as_images, as_labels, from_arrays
from jaxmlp.data.catalog import load, names, prepare, register, status
from jaxmlp.data.dataset import Dataset, Split, digest
from jaxmlp.data.idx import read_idx
from jaxmlp.data.prepared import Status

__all__ = [
    "Dataset",
    "Split",
    "Status",
    "as_images",
    "as_labels",
    "digest",
    "from_arrays",
    "load",
    "names",
    "prepare",
    "read_idx",
    "register",
    "status",
]
