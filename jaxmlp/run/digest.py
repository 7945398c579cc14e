"""Which bits does a tree of arrays hold? One SHA-256 says it. Here are also the names of its leaves."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxmlp.errors import RunError


def leaves(tree: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a tree, on the host, by path, sorted by path.

    A path joins the dict keys, field names and indices that lead to a leaf: `params/Dense_0/kernel`, `opt_state/0/nu`.

    Args:
        tree: Any JAX pytree. A tree of plain containers with NumPy arrays and numbers is read without JAX.

    Raises:
        ValueError: Two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    found: dict[str, NDArray[Any]] = {}
    for path, leaf in _walk(tree, ""):
        if path in found:
            raise ValueError(f"two leaves have the path {path!r}")
        found[path] = np.asarray(leaf)
    return dict(sorted(found.items()))


def _walk(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _walk(value, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(tree, np.ndarray | np.generic):
        yield prefix, tree
    elif "jax" not in sys.modules and isinstance(tree, list | tuple | bool | int | float | complex | None):
        yield from _walk_plain(tree, prefix)
    else:
        import jax

        for keys, leaf in jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]:
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            yield "/".join(filter(None, (prefix, path))), leaf


def _walk_plain(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Walk containers as JAX does. Without JAX in the process, no type of list or tuple can have a rule of its own."""
    if isinstance(tree, list | tuple):
        for key, value in zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True):
            yield from _walk(value, f"{prefix}/{key}" if prefix else str(key))
    elif tree is not None:
        yield prefix, tree


def restore[Tree](tree: Tree, arrays: Mapping[str, NDArray[Any]]) -> Tree:
    """`tree` with each leaf replaced by the array of its path. The inverse of `leaves`.

    Args:
        tree: A JAX pytree of the wanted structure, shapes and dtypes. Its values are not used.
        arrays: Arrays by path, as `leaves` names them.

    Raises:
        RunError: An array is missing, has another shape or dtype, or belongs to no leaf.
    """
    import jax

    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    wanted = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in flat}
    for path in sorted(wanted.keys() | arrays.keys()):
        found, fitting = (described(values.get(path)) for values in (arrays, wanted))
        if found != fitting:
            raise RunError(f"the checkpoint does not fit: {path} is {found}, wanted {fitting}.")
    restored: Tree = jax.tree_util.tree_unflatten(structure, [arrays[path] for path in wanted])
    return restored


def described(leaf: Any) -> str:
    """Type and shape of an array, such as `float32[512, 10]`. None is `absent`."""
    return "absent" if leaf is None else f"{leaf.dtype.name}{list(leaf.shape)}"


def little_endian_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The elements in C order, little-endian, as a flat array of bytes. A view if they are stored so already."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def leaf_digests(tree: Any) -> dict[str, str]:
    """The digest of each leaf by path: the digest of a tree that holds only this leaf, at its whole path."""
    return {path: digest({path: array}) for path, array in leaves(tree).items()}


def digest(tree: Any) -> str:
    r"""SHA-256 of a tree's leaves, as 64 hexadecimal digits. Equal if all paths, dtypes, shapes and bits are equal.

    The hash covers these bytes for each leaf, sorted by path (by code point), without separators between leaves:

        path in UTF-8, 0x00, dtype as NumPy names it (`float32`, `bfloat16`), 0x00,
        shape in decimal joined by commas (nothing for a scalar), 0x00, elements in C order, little-endian

    No path holds 0x00, and dtype and shape determine the number of bytes, so different leaves give different bytes. For
    `{"b": np.float32([[1, -2]]), "a": {"n": np.int32(7)}}` the bytes are

        b"a/n\0int32\0\0" + b"\x07\0\0\0" + b"b\0float32\0" + b"1,2\0" + b"\0\0\x80\x3f" + b"\0\0\0\xc0"

    and their SHA-256 is a30d180f9af2ac77cf050b1d3ac60528d3f2b064c576d1f95eadfdcd8c0960d7.

    Raises:
        ValueError: Two leaves have the same path, a path holds 0x00, or a leaf is not an array of numbers.
    """
    sha256 = hashlib.sha256()
    for path, array in leaves(tree).items():
        if "\0" in path or array.dtype.hasobject:
            raise ValueError(f"{path!r} cannot be digested: dtype {array.dtype}")
        sha256.update(f"{path}\0{array.dtype.name}\0{','.join(map(str, array.shape))}\0".encode())
        sha256.update(little_endian_bytes(array))
    return sha256.hexdigest()
