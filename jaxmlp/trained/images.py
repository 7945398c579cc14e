"""How are images read from files? PNG and JPEG, NumPy's `.npy`, MNIST's IDX, and folders of these."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmlp.data import as_images, read_idx
from jaxmlp.errors import DataError
from jaxmlp.trained.prepare import LEAST_CONTRAST, SIDE, find_ink, prepare, shows_several

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
OTHERS = (".npy", ".idx", "-ubyte", ".gz")
"""Suffixes besides pictures' that are read from a folder. A file that is named itself may have any name."""
UNREAD = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg")
"""Suffixes of pictures that cannot be read. Files in a folder with these suffixes are reported, not skipped
silently."""

READ = ((b"\x89PNG\r\n\x1a\n", "picture"), (b"\xff\xd8\xff", "picture"), (b"\x93NUMPY", "npy"))
"""First bytes of files, and the reader for each. The content decides, because names may be wrong."""
FOREIGN = (
    (rb"RIFF....WEBP", "WebP"),
    (rb"GIF8", "GIF"),
    (rb"BM....\0\0\0\0", "BMP"),
    (rb"II\*\0|MM\0\*", "TIFF"),
    (rb"....ftyp(avif|avis)", "AVIF"),
    (rb"....ftyp", "HEIC or MP4"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"%PDF", "PDF"),
    (rb"\s*<(svg|\?xml)", "SVG or XML"),
    (rb"\x89HDF", "HDF5"),
)
"""First bytes of other kinds of files, with the names that messages use."""

MAX_BYTES = 1 << 29
"""Largest size of the images in one file, in bytes of memory."""
MAX_HEADER = 1 << 16
"""Largest header of an `.npy` file, in bytes."""
MAX_PIXELS = 1 << 26
"""Largest number of pixels of one picture."""

NO_DIGIT = "shows no digit: wanted one digit, dark on light or light on dark"
SEVERAL = "seems to show several digits but gets one answer: cut it into one picture per digit"

MODES = {"L": "grey", "RGB": "colour", "LA": "grey with transparency", "RGBA": "colour with transparency"}
"""Names of Pillow's modes in messages."""


class FileImages(NamedTuple):
    """The images of one file."""

    file: Path
    images: np.ndarray[Any, Any]
    """Images, uint8 or float32 [n, height, width, channels]."""
    warning: str = ""
    """Why the prediction may be meaningless; empty if there is no doubt."""


def read_images(
    path: Path,
    image_shape: tuple[int, int, int],
    *,
    digits: bool = False,
    skip: Callable[[Path, DataError], None] | None = None,
) -> list[FileImages]:
    """The images of a file, or of all files in a folder, sorted by name.

    Args:
        path: PNG, JPEG, `.npy` with one image or many, IDX, plain or gzipped, or a folder of such files.
        image_shape: Height, width and channels that the model takes.
        digits: Whether the model reads MNIST's digits. Then a PNG or JPEG may have any size and colours, and dark ink
            on light paper; it is prepared as MNIST's images were. A grey 28 x 28 picture, light on dark, is used as it
            is.
        skip: Called with each file that cannot be read, and its error; the other files are read. Default: the first
            such file raises.

    Raises:
        DataError: The path does not exist, or a file is damaged or holds images of another shape.
    """
    found: list[FileImages] = []
    for file in _files(path) if os.path.isdir(path) else [path]:
        try:
            found.append(_read(file, image_shape, digits))
        except DataError as error:
            if not skip:
                raise
            skip(file, error)
    return found


def _files(folder: Path) -> list[Path]:
    try:
        names = (*PICTURES, *OTHERS, *UNREAD)
        files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(names))
    except OSError as error:
        raise DataError(f"data: {folder} cannot be read: {error.strerror}") from None
    if not files:
        raise DataError(f"data: {folder} has no images: wanted {', '.join((*PICTURES, '.npy'))} or IDX files")
    return files


def _read(path: Path, image_shape: tuple[int, int, int], digits: bool) -> FileImages:
    if not os.path.isfile(path):
        # Reading a pipe would block.
        raise DataError(f"data: {path} {'is not a file' if os.path.exists(path) else 'does not exist'}")
    kind = _kind(path)
    if kind == "picture":
        # Pillow's warnings are useless to people who cannot change the file.
        with warnings.catch_warnings(action="ignore"):
            return FileImages(path, *_read_picture(path, image_shape, digits))
    array = _read_npy(path) if kind == "npy" else read_idx(path, limit_bytes=MAX_BYTES)
    if array.shape in (image_shape, image_shape[:2]):
        array = array[np.newaxis]
    try:
        return FileImages(path, as_images(array, shape=image_shape))
    except DataError as error:
        raise DataError(f"data: {path}: {str(error).removeprefix('data: ')}") from None


def _kind(path: Path) -> str:
    """The reader of a file, picture, npy or idx, by its first bytes, else by its name.

    Raises:
        DataError: The file cannot be read, or is of another known kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise DataError(f"data: {path} cannot be read: {error.strerror}") from None
    if known := next((kind for begin, kind in READ if start.startswith(begin)), None):
        return known
    if foreign := next((kind for begin, kind in FOREIGN if re.match(begin, start, re.DOTALL)), None):
        raise DataError(f"data: {path} is a {foreign} file, wanted PNG, JPEG, .npy or IDX. Save it as PNG")
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURES + UNREAD else "npy" if suffix == ".npy" else "idx"


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    try:
        if (size := path.stat().st_size) > MAX_BYTES + MAX_HEADER:
            raise DataError(f"data: {path} has {size:,} bytes, wanted {MAX_BYTES:,} at most")
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise DataError(f"data: {path} is an archive of arrays, wanted a single array: save it with numpy.save")
            file.seek(0)
            old = npy.read_magic(file) == (1, 0)
            with warnings.catch_warnings(action="ignore"):
                shape, _, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(file)
            if not dtype.itemsize:  # NumPy would divide by zero, which kills the process.
                raise DataError(f"data: {path} is an array of nothing ({dtype}), wanted numbers")
            promised, held = math.prod(shape) * dtype.itemsize, size - file.tell()
            # Checked before memory is allocated. Not every file system can map the file.
            if not 0 <= promised <= held and not dtype.hasobject:
                raise ValueError(f"its header promises {promised:,} bytes, but {held:,} follow")
        with warnings.catch_warnings(action="ignore"):
            array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # A malformed header raises whatever Python's parser raises.
        raise DataError(f"data: {path} is not an array that NumPy saved: {error}") from None
    return array


def _read_picture(path: Path, image_shape: tuple[int, int, int], digits: bool) -> tuple[np.ndarray[Any, Any], str]:
    """The picture as one image, and why its prediction may be meaningless."""
    height, width, channels = image_shape
    mode, modes = ("L", ("L", "1", "P", "RGB")) if channels == 1 else ("RGB", ("RGB", "P"))
    picture = _decoded(path)
    fits = picture.size == (width, height) and picture.mode in modes
    if digits and not (fits and _is_light_on_dark(picture)):
        return _read_digit(path, picture)
    if not fits:
        found = f"{picture.height} x {picture.width} {MODES.get(picture.mode, picture.mode)}"
        raise DataError(f"data: {path} is {found}, wanted {height} x {width} {MODES[mode]}")
    image = np.asarray(picture.convert(mode)).reshape(1, *image_shape)
    if not digits:
        return image, ""
    if np.ptp(image) < LEAST_CONTRAST:
        raise DataError(f"data: {path} {NO_DIGIT}")
    return image, SEVERAL if shows_several(image[0, ..., 0]) else ""


def _decoded(path: Path) -> Image.Image:
    """The picture, decoded into memory."""
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
    except Exception as error:  # Pillow's decoders raise various errors.
        raise DataError(f"data: {path} cannot be read as an image: {error}") from None


def _is_light_on_dark(picture: Image.Image) -> bool:
    grey = np.asarray(picture.convert("L"))
    return bool(min(grey[0].min(), grey[-1].min(), grey[:, 0].min(), grey[:, -1].min()) < 128)


def _read_digit(path: Path, picture: Image.Image) -> tuple[np.ndarray[Any, Any], str]:
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # As in `_decoded`, but from the EXIF data.
        raise DataError(f"data: {path} cannot be read as an image: {error}") from None
    ink = find_ink(picture)
    digit = prepare(ink)
    if digit is None:
        raise DataError(f"data: {path} {NO_DIGIT}")
    return digit.reshape(1, SIDE, SIDE, 1), SEVERAL if shows_several(ink) else ""
