"""Images out of files, as a model takes them: PNG and JPEG, NumPy's `.npy`, MNIST's IDX, and folders of these."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmlp.data import as_images, read_idx
from jaxmlp.errors import DataError
from jaxmlp.prepare import SIDE, find_ink, prepare

PICTURES = (".png", ".jpg", ".jpeg")
OTHERS = (".npy", ".idx", "-ubyte", ".gz")
"""Ends of the names that a folder is searched for, besides pictures; a file that is named is read whatever its name."""

MAX_BYTES = 1 << 29
"""Of the images in one file, as they are in memory."""
MAX_HEADER = 1 << 16
"""Bytes of an `.npy` file before its array."""
MAX_PIXELS = 1 << 26
"""Of one picture."""

MODES = {"L": "grey", "RGB": "colour", "LA": "grey with transparency", "RGBA": "colour with transparency"}
"""What people call Pillow's modes."""


class FileImages(NamedTuple):
    """What one file holds."""

    file: Path
    images: np.ndarray[Any, Any]
    """uint8 or float32 [n, height, width, channels]."""


def read_images(path: Path, image_shape: tuple[int, int, int], *, digits: bool = False) -> list[FileImages]:
    """The images of a file, or of a folder's files in the order of their names.

    Args:
        path: PNG, JPEG, `.npy` of one image or many, IDX, gzipped or not, or a folder of these.
        image_shape: Height, width and channels that the model takes.
        digits: Whether the model takes MNIST's digits. Then a PNG or JPEG may have any size, colours, and dark ink on
            light paper, and is prepared as MNIST's were; one that is 28 x 28, grey and light on dark is taken as it is.

    Raises:
        DataError: Nothing is there, a file is damaged, or holds images of another shape: found and wanted.
    """
    if not path.is_dir():
        return [FileImages(path, _read(path, image_shape, digits))]
    try:
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith((*PICTURES, *OTHERS)))
    except OSError as error:
        raise DataError(f"data: {path} cannot be read: {error.strerror}") from None
    if not files:
        raise DataError(f"data: {path} has no images: wanted {', '.join((*PICTURES, '.npy'))} or IDX files")
    return [FileImages(file, _read(file, image_shape, digits)) for file in files]


def _read(path: Path, image_shape: tuple[int, int, int], digits: bool) -> np.ndarray[Any, Any]:
    if not path.is_file():
        # A pipe would be waited for.
        raise DataError(f"data: {path} {'is no file' if path.exists() else 'is not there'}")
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        # Pillow's are of no use to who cannot change the file.
        with warnings.catch_warnings(action="ignore"):
            return _read_picture(path, image_shape, digits)
    array = _read_npy(path) if suffix == ".npy" else read_idx(path, limit_bytes=MAX_BYTES)
    if array.shape in (image_shape, image_shape[:2]):
        array = array[np.newaxis]
    try:
        return as_images(array, shape=image_shape)
    except DataError as error:
        raise DataError(f"data: {path}: {str(error).removeprefix('data: ')}") from None


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    try:
        if (size := path.stat().st_size) > MAX_BYTES + MAX_HEADER:
            raise DataError(f"data: {path} has {size:,} bytes, wanted {MAX_BYTES:,} at most")
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise DataError(f"data: {path} is an archive of arrays, wanted one array: save it with numpy.save")
            file.seek(0)
            old = npy.read_magic(file) == (1, 0)
            with warnings.catch_warnings(action="ignore"):
                _, _, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(file)
            if not dtype.itemsize:  # NumPy would divide by it, and the processor end the process.
                raise DataError(f"data: {path} is an array of nothing ({dtype}), wanted numbers")
        # Mapped, so that a header that promises too much is found out before memory is taken for it.
        with warnings.catch_warnings(action="ignore"):
            array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except DataError:
        raise
    except Exception as error:  # Of a header that is no Python, whatever Python's tokenizer and parser raise.
        raise DataError(f"data: {path} is not an array that NumPy saved: {error}") from None
    return array


def _read_picture(path: Path, image_shape: tuple[int, int, int], digits: bool) -> np.ndarray[Any, Any]:
    height, width, channels = image_shape
    mode, modes = ("L", ("L", "1", "P", "RGB")) if channels == 1 else ("RGB", ("RGB", "P"))
    picture = _decoded(path)
    fits = picture.size == (width, height) and picture.mode in modes
    if digits and not (fits and _is_light_on_dark(picture)):
        return _read_digit(path, picture)
    if not fits:
        found = f"{picture.height} x {picture.width} {MODES.get(picture.mode, picture.mode)}"
        raise DataError(f"data: {path} is {found}, wanted {height} x {width} {MODES[mode]}")
    return np.asarray(picture.convert(mode)).reshape(1, *image_shape)


def _decoded(path: Path) -> Image.Image:
    """The picture, whole in memory."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                found = f"{picture.height} x {picture.width} pixels"
                raise DataError(f"data: {path} has {found}, wanted {MAX_PIXELS:,} at most: make it smaller")
            picture.load()
            return picture
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"data: {path} is not a PNG or JPEG image") from None
    except Exception as error:  # Pillow raises whatever its decoders run into.
        raise DataError(f"data: {path} cannot be read as an image: {error}") from None


def _is_light_on_dark(picture: Image.Image) -> bool:
    grey = np.asarray(picture.convert("L"))
    return bool(min(grey[0].min(), grey[-1].min(), grey[:, 0].min(), grey[:, -1].min()) < 128)


def _read_digit(path: Path, picture: Image.Image) -> np.ndarray[Any, Any]:
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # As `_decoded`, of what the file says of its camera.
        raise DataError(f"data: {path} cannot be read as an image: {error}") from None
    digit = prepare(find_ink(picture))
    if digit is None:
        raise DataError(f"data: {path} shows no digit: wanted one, dark on light or light on dark")
    return digit.reshape(1, SIDE, SIDE, 1)
