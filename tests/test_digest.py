"""A digest is equal exactly where paths, dtypes, shapes and bits are, and anyone can compute it."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from jaxmlp.errors import RunError
from jaxmlp.run.digest import digest, leaves, restore

DTYPES = [np.dtype(d) for d in ("f4", "f8", "f2", "i4", "i8", "u4", "u1", "?", ml_dtypes.bfloat16)]


def arrays_of_any_dtype() -> st.SearchStrategy[np.ndarray]:
    """Random bits, seen as any dtype and shape."""

    def build(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray:
        high = 2 if dtype.kind == "b" else 256
        count = int(np.prod(shape)) * dtype.itemsize
        return np.random.default_rng(seed).integers(0, high, count, dtype=np.uint8).view(dtype).reshape(shape)

    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return st.builds(build, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32 - 1))


class Point(NamedTuple):
    x: Any
    y: Any


@partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=["name"])
@dataclass
class Node:
    weight: Any
    name: str


def test_the_documented_example_is_computed_with_hashlib_and_struct_alone() -> None:
    by_hand = hashlib.sha256()
    by_hand.update(b"a/n" + b"\0" + b"int32" + b"\0" + b"" + b"\0" + struct.pack("<i", 7))
    by_hand.update(b"b" + b"\0" + b"float32" + b"\0" + b"1,2" + b"\0" + struct.pack("<2f", 1, -2))
    tree = {"b": np.array([[1, -2]], np.float32), "a": {"n": np.int32(7)}}
    assert digest(tree) == by_hand.hexdigest()
    assert digest(tree) in (digest.__doc__ or "")


def test_a_path_joins_keys_fields_and_indices() -> None:
    x = np.zeros(2, np.float32)
    tree = {"b": [x, (x,)], "a": Point(x, {"k": x}), "node": Node(x, name="n"), "none": None}
    assert list(leaves(tree)) == ["a/x", "a/y/k", "b/0", "b/1/0", "node/weight"]


def test_the_paths_of_an_optax_state_name_its_fields() -> None:
    state = optax.adam(1e-3).init({"Dense_0": {"kernel": jnp.zeros((2, 3))}})
    assert list(leaves({"opt_state": state})) == [
        "opt_state/0/count",
        "opt_state/0/mu/Dense_0/kernel",
        "opt_state/0/nu/Dense_0/kernel",
    ]


def test_arrays_on_the_device_and_on_the_host_have_one_digest() -> None:
    tree = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.ones(3, ml_dtypes.bfloat16)}
    assert digest(jax.tree.map(jnp.asarray, tree)) == digest(tree)


def test_two_leaves_of_one_path_are_refused() -> None:
    x = np.zeros(2)
    with refused(ValueError, "a/b"):
        leaves({"a/b": x, "a": {"b": x}})


@pytest.mark.parametrize("tree", [{"a\0b": np.zeros(1)}, {"a": np.array([None])}])
def test_what_has_no_unambiguous_bytes_is_refused(tree: dict[str, np.ndarray]) -> None:
    with refused(ValueError, *map(repr, tree)):
        digest(tree)


@settings(derandomize=True, deadline=None)
@given(arrays_of_any_dtype())
def test_byte_order_and_strides_in_memory_change_nothing(array: np.ndarray) -> None:
    wanted = digest({"x": array})
    assert digest({"x": np.array(array, order="F")}) == wanted
    if array.dtype.isbuiltin == 1:
        assert digest({"x": array.astype(array.dtype.newbyteorder(">"))}) == wanted


@settings(derandomize=True, deadline=None)
@given(arrays_of_any_dtype(), st.data())
def test_every_single_bit_counts(array: np.ndarray, data: st.DataObject) -> None:
    raw = bytearray(array.tobytes())
    if not raw:
        return
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << (
        0 if array.dtype.kind == "b" else data.draw(st.integers(0, 7))
    )
    flipped = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
    assert digest({"x": flipped}) != digest({"x": array})


@settings(derandomize=True, deadline=None)
@given(st.lists(st.dictionaries(st.text(st.sampled_from("ab/0,"), min_size=1), arrays_of_any_dtype()), min_size=2))
def test_other_leaves_have_another_digest(trees: list[dict[str, np.ndarray]]) -> None:
    def facts(tree: dict[str, np.ndarray]) -> object:
        return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in tree.items()}

    for a in trees:
        for b in trees:
            assert (digest(a) == digest(b)) == (facts(a) == facts(b))


def test_a_tree_of_dicts_and_numpy_arrays_needs_no_jax() -> None:
    code = (
        "import sys; import numpy as np; from jaxmlp.run.digest import digest\n"
        "digest({'a': {'b': np.zeros(2), 'c': np.float32(1)}}); print('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_plain_containers_have_the_same_paths_with_and_without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros(2, np.float32)
    tree = {"b": [x, (x, None)], "a": Point(x, {"k": 1.5}), "n": 7, "none": None, "empty": [], "flag": True}
    with_jax = leaves(tree)
    monkeypatch.delitem(sys.modules, "jax")
    without = leaves(tree)
    assert "jax" not in sys.modules
    assert list(without) == list(with_jax) == ["a/x", "a/y/k", "b/0", "b/1/0", "flag", "n"]
    assert [array.dtype for array in without.values()] == [array.dtype for array in with_jax.values()]


def test_restore_undoes_leaves() -> None:
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    state = Point(x=params, y=optax.adam(1e-3).init(params))
    empty = jax.tree.map(jnp.zeros_like, state)
    restored = restore(empty, leaves(state))
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, state))


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, ["a", "float32[2, 3]", "float32[2, 2]"]),
        ({"a": np.zeros((2, 2), np.float16)}, ["a", "float16[2, 2]", "float32[2, 2]"]),
        ({}, ["a", "float32[2, 2]"]),
        ({"a": np.zeros((2, 2), np.float32), "b": np.zeros(1, np.int32)}, ["b", "int32[1]"]),
    ],
)
def test_restore_names_the_array_that_does_not_fit(arrays: dict[str, np.ndarray], named: list[str]) -> None:
    with refused(RunError, *named):
        restore({"a": np.zeros((2, 2), np.float32)}, arrays)
