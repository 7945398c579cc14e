"""Where do the examples come from, and are they the right examples? Data sets are held in host memory."""

from jaxmlp.data.arrays import (
    Pair,
    as_dataset,
    as_images,
    as_inputs,
    as_labels,
    as_split,
    as_targets,
    check_pixels,
    from_arrays,
)
from jaxmlp.data.catalog import load, names, prepare, register, registered, status
from jaxmlp.data.dataset import ArrayFacts, Dataset, Facts, Split, digest, facts_of
from jaxmlp.data.idx import read_idx
from jaxmlp.data.prepared import Status

__all__ = [
    "ArrayFacts",
    "Dataset",
    "Facts",
    "Pair",
    "Split",
    "Status",
    "as_dataset",
    "as_images",
    "as_inputs",
    "as_labels",
    "as_split",
    "as_targets",
    "check_pixels",
    "digest",
    "facts_of",
    "from_arrays",
    "load",
    "names",
    "prepare",
    "read_idx",
    "register",
    "registered",
    "status",
]
