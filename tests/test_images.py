"""Images come out of every kind of file as they went in, and anything else is refused with what was found."""

from __future__ import annotations

import errno
import gzip
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from jaxmlp.data.idx import idx_parts
from jaxmlp.errors import DataError
from jaxmlp.trained.images import read_images

SHAPE = (28, 28, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), np.uint8)


def saved(path: Path, images: np.ndarray) -> Path:
    """A file of `images` of the kind that its name says."""
    name = path.name
    if name.endswith((".png", ".jpg")):
        Image.fromarray(images[0, ..., 0]).save(path, quality=100)
    elif name.endswith(".npy"):
        np.save(path, images)
    else:
        raw = b"".join(idx_parts(images[..., 0]))
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("name", ["x.npy", "x-idx3-ubyte", "x-idx3-ubyte.gz", "x.idx"])
def test_files_of_many_images_hold_them_all(name: str, tmp_path: Path) -> None:
    ((file, images, _),) = read_images(saved(tmp_path / name, IMAGES), SHAPE)
    assert file == tmp_path / name
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (1, 28, 28), (1, 784)])
def test_an_array_of_one_image_may_have_any_of_its_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", IMAGES[0].reshape(shape))
    np.testing.assert_array_equal(read_images(tmp_path / "one.npy", SHAPE)[0].images, IMAGES[:1])


def test_a_png_is_read_exactly_and_a_jpeg_nearly(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_images(saved(tmp_path / "x.png", IMAGES), SHAPE)[0].images, IMAGES[:1])
    smooth = np.broadcast_to(np.arange(28, dtype=np.uint8)[:, None, None] * 9, (1, *SHAPE))
    found = read_images(saved(tmp_path / "x.jpg", smooth), SHAPE)[0].images
    assert np.abs(found.astype(int) - smooth).max() <= 2  # JPEG rounds, even at quality 100


def test_a_grey_picture_saved_in_colour_is_grey_again(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(IMAGES[0], 3, axis=-1)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_images(tmp_path / "x.png", SHAPE)[0].images, IMAGES[:1])


def test_a_model_of_colours_takes_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (1, 8, 6, 3), np.uint8)
    Image.fromarray(colours[0]).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_images(tmp_path / "x.png", (8, 6, 3))[0].images, colours)


def test_a_folder_is_read_in_the_order_of_its_names_and_other_files_are_left_alone(tmp_path: Path) -> None:
    saved(tmp_path / "b.png", IMAGES[1:])
    saved(tmp_path / "a.PNG".lower(), IMAGES)
    saved(tmp_path / "c.npy", IMAGES)
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_images(tmp_path, SHAPE)
    assert [each.file.name for each in found] == ["a.png", "b.png", "c.npy"]
    np.testing.assert_array_equal(np.concatenate([each.images for each in found]), IMAGES[[0, 1, 0, 1, 2]])


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.png", png(np.zeros((30, 20), np.uint8)), ["30 x 20", "28 x 28"]),
        ("x.png", png(np.zeros((28, 28, 4), np.uint8)), ["transparency", "grey"]),
        ("x.png", png(IMAGES[0, ..., 0])[:400], []),
        ("x.jpg", b"hello", []),
        ("x.npy", npy(np.zeros((2, 28, 27))), ["[n, 28, 28, 1]", "[n, 784]", (2, 28, 27)]),
        ("x.npy", npy(np.array([None])), []),
        ("x.npy", b"hello", []),
        ("x.npy", npy(np.zeros((9, 28, 28)))[:500], []),
        ("x.npy", npy_header((1 << 40, 28, 28)), []),
        ("x.npy", npy_header((-1,), "|V0") + bytes(64), ["|V0"]),
        ("x.npy", npy(np.full((1, 28, 28), np.nan)), ["nan"]),
        ("x.npy", npy(np.full((1, 28, 28), 256)), ["[0, 255]", 256]),
        ("labels", b"".join(idx_parts(np.zeros(5, np.uint8))), [(5,)]),
        ("README", b"# Read me", []),
    ],
)
def test_what_is_no_image_of_the_models_shape_is_refused(
    name: str, content: bytes, named: list[Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, tmp_path / name, *named):
        read_images(tmp_path / name, SHAPE)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"GIF89a", "GIF"),
        (b"BM\x36\x10\0\0\0\0\0\0", "BMP"),
        (b"II*\0\x08\0", "TIFF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x18ftypheic", "HEIC or MP4"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"<?xml version='1.0'?><svg/>", "SVG or XML"),
    ],
)
@pytest.mark.parametrize("name", ["x", "x.png", "x.npy"])
def test_a_file_of_another_kind_is_called_what_it_is(content: bytes, kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, tmp_path / name, kind):
        read_images(tmp_path / name, SHAPE)


@pytest.mark.parametrize("name", ["scan", "scan.idx", "scan.npy", "scan.jfif"])
def test_a_picture_is_read_whatever_its_name_says(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(png(IMAGES[0, ..., 0]))
    np.testing.assert_array_equal(read_images(tmp_path / name, SHAPE)[0].images, IMAGES[:1])


def test_an_array_is_read_where_the_file_system_maps_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", refused)
    np.testing.assert_array_equal(read_images(saved(tmp_path / "x.npy", IMAGES), SHAPE)[0].images, IMAGES)


def test_an_archive_an_empty_folder_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", IMAGES)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    (tmp_path / "empty").mkdir()
    for name in ("x.npy", "empty", "nothing.png"):
        with refused(DataError, tmp_path / name):
            read_images(tmp_path / name, SHAPE)
