"""How is HDF5 from strangers read? Only plain data inside the file, in total no larger than the file."""

from __future__ import annotations

from typing import Any, BinaryIO, Self

import numpy as np
from jaxtyping import Float

from jaxmlp.errors import UsageError

MAX_TEXT = 1 << 22
"""Largest attribute that is read, in bytes."""


class Refused(Exception):
    """What is wrong with a file, for people."""


class H5Group:
    """A group of an open file.

    Args:
        group: The group of h5py.
        budget: Number of bytes that may still be read, in a list with one element that all groups of the file share.
    """

    def __init__(self, group: Any, budget: list[int]) -> None:
        self._group = group
        self._budget = budget

    @classmethod
    def of_file(cls, file: BinaryIO, size: int) -> Self:
        """The root group of an HDF5 file with `size` bytes.

        Raises:
            Refused: It is not an HDF5 file, or is cut short.
            UsageError: h5py is not installed.
        """
        try:
            import h5py
        except ImportError as error:
            raise UsageError("import-keras needs h5py: pip install 'jaxmlp[keras]'") from error
        try:
            return cls(h5py.File(file, "r"), [size])
        except OSError as error:
            raise Refused(f"it is not an HDF5 file, or is cut short ({error})") from error

    def __contains__(self, name: str) -> bool:
        return name in self._group

    def names(self) -> list[str]:
        """Names of everything in the group."""
        return list(self._group)

    def text(self, name: str) -> str | None:
        """An attribute that is a string; None if there is no such attribute.

        Raises:
            Refused: The attribute is not a string, or is too long.
        """
        return texts[0] if (texts := self._texts(name, ())) is not None else None

    def texts(self, name: str) -> list[str] | None:
        """An attribute that is a list of strings; None if there is no such attribute.

        Raises:
            Refused: The attribute is not such a list, has duplicates, or is too long.
        """
        found = self._texts(name, None)
        if found and len(set(found)) < len(found):
            raise Refused(f"its attribute {name} names something twice")
        return found

    def _texts(self, name: str, shape: tuple[int, ...] | None) -> list[str] | None:
        if name not in self._group.attrs:
            return None
        attribute = self._group.attrs.get_id(name)
        wanted = attribute.shape == shape or (shape is None and len(attribute.shape) == 1)
        if wanted and 0 in attribute.shape:
            return []
        if not wanted or attribute.get_storage_size() > MAX_TEXT:
            raise Refused(f"its attribute {name} is too large, or of another shape")
        found = np.atleast_1d(self._group.attrs[name]).tolist()
        texts = [text.decode() if isinstance(text, bytes) else text for text in found]
        if not all(isinstance(text, str) for text in texts):
            raise Refused(f"its attribute {name} is not text")
        if sum(map(len, texts)) > MAX_TEXT:
            raise Refused(f"its attribute {name} is too large")
        return texts

    def group(self, name: str) -> H5Group:
        """The subgroup of this name.

        Raises:
            Refused: There is no such group, or it is a link to elsewhere.
        """
        return H5Group(self._child(name, "Group"), self._budget)

    def array(self, path: str) -> Float[np.ndarray, "..."]:
        """The float32 array at this path in the group.

        Raises:
            Refused: There is no such array; or it has another type, is compressed, lies elsewhere, or is larger than
                the file allows.
        """
        *groups, name = path.split("/")
        parent = self
        for each in groups:
            parent = parent.group(each)
        dataset = parent._child(name, "Dataset")
        if dataset.dtype != np.float32:
            raise Refused(f"{dataset.name} is {dataset.dtype}, wanted float32")
        # Zeros that were never written, or one array at several paths, take less space in the file than in memory.
        # A chunk may unpack into more than the whole array.
        plain = dataset.chunks is None and dataset.external is None and not dataset.is_virtual
        if not plain or dataset.nbytes > self._budget[0]:
            raise Refused(
                f"{dataset.name} {list(dataset.shape)} is not stored plainly, as Keras does, or is larger than the file"
            )
        self._budget[0] -= dataset.nbytes
        return np.asarray(dataset[()])

    def _child(self, name: str, kind: str) -> Any:
        import h5py

        link = self._group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise Refused(f"it has no {name} in {self._group.name}" if link is None else f"{name} is a link elsewhere")
        found = self._group[name]
        if not isinstance(found, getattr(h5py, kind)):
            raise Refused(f"{found.name} is not a {kind.lower()}")
        return found
