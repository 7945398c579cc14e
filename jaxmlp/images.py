"""Images out of files, as a model takes them: PNG and JPEG, NumPy's `.npy`, MNIST's IDX, and folders of these."""

from __future__ import annotations

import math
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
from jaxmlp.prepare import LEAST_CONTRAST, SIDE, find_ink, prepare, shows_several

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif")
OTHERS = (".npy", ".idx", "-ubyte", ".gz")
"""Ends of the names that a folder is searched for, besides pictures; a file that is named is read whatever its name."""
UNREAD = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg")
"""Ends of the names of pictures that cannot be read; a folder's are named, so that nobody misses their answers."""

READ = ((b"\x89PNG\r\n\x1a\n", "picture"), (b"\xff\xd8\xff", "picture"), (b"\x93NUMPY", "npy"))
"""What files begin with, and what reads them; names may lie."""
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
"""Beginnings of files of other kinds, which are named in messages."""

MAX_BYTES = 1 << 29
"""Of the images in one file, as they are in memory."""
MAX_HEADER = 1 << 16
"""Bytes of an `.npy` file before its array."""
MAX_PIXELS = 1 << 26
"""Of one picture."""

NO_DIGIT = "shows no digit: wanted one, dark on light or light on dark"
SEVERAL = "seems to show several digits, and gets one answer: cut it into a picture a digit"

MODES = {"L": "grey", "RGB": "colour", "LA": "grey with transparency", "RGBA": "colour with transparency"}
"""What people call Pillow's modes."""


class FileImages(NamedTuple):
    """What one file holds."""

    file: Path
    images: np.ndarray[Any, Any]
    """uint8 or float32 [n, height, width, channels]."""
    warning: str = ""
    """Why the answer may be worth nothing."""


def read_images(
    path: Path,
    image_shape: tuple[int, int, int],
    *,
    digits: bool = False,
    skip: Callable[[Path, DataError], None] | None = None,
) -> list[FileImages]:
    """The images of a file, or of a folder's files in the order of their names.

    Args:
        path: PNG, JPEG, `.npy` of one image or many, IDX, gzipped or not, or a folder of these.
        image_shape: Height, width and channels that the model takes.
        digits: Whether the model takes MNIST's digits. Then a PNG or JPEG may have any size, colours, and dark ink on
            light paper, and is prepared as MNIST's were; one that is 28 x 28, grey and light on dark is taken as it is.
        skip: Told of a file that cannot be read and of what is wrong with it; the others are read all the same. Without
            it, the first such file is an error.

    Raises:
        DataError: Nothing is there, a file is damaged, or holds images of another shape: found and wanted.
    """
    found: list[FileImages] = []
    for file in _files(path) if path.is_dir() else [path]:
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
    if not path.is_file():
        # A pipe would be waited for.
        raise DataError(f"data: {path} {'is no file' if path.exists() else 'is not there'}")
    kind = _kind(path)
    if kind == "picture":
        # Pillow's are of no use to who cannot change the file.
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
    """What reads the file: picture, npy or idx, by what it begins with, else by its name.

    Raises:
        DataError: It cannot be read, or begins as files of another kind do.
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
                raise DataError(f"data: {path} is an archive of arrays, wanted one array: save it with numpy.save")
            file.seek(0)
            old = npy.read_magic(file) == (1, 0)
            with warnings.catch_warnings(action="ignore"):
                shape, _, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(file)
            if not dtype.itemsize:  # NumPy would divide by it, and the processor end the process.
                raise DataError(f"data: {path} is an array of nothing ({dtype}), wanted numbers")
            promised, held = math.prod(shape) * dtype.itemsize, size - file.tell()
            # Before memory is taken for it. Not by mapping the file, which some file systems do not offer.
            if not 0 <= promised <= held and not dtype.hasobject:
                raise ValueError(f"its header promises {promised:,} bytes, and {held:,} follow")
        with warnings.catch_warnings(action="ignore"):
            array: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # Of a header that is no Python, whatever Python's tokenizer and parser raise.
        raise DataError(f"data: {path} is not an array that NumPy saved: {error}") from None
    return array


def _read_picture(path: Path, image_shape: tuple[int, int, int], digits: bool) -> tuple[np.ndarray[Any, Any], str]:
    """The picture as one image, and why its answer may be worth nothing."""
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


def _read_digit(path: Path, picture: Image.Image) -> tuple[np.ndarray[Any, Any], str]:
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # As `_decoded`, of what the file says of its camera.
        raise DataError(f"data: {path} cannot be read as an image: {error}") from None
    ink = find_ink(picture)
    digit = prepare(ink)
    if digit is None:
        raise DataError(f"data: {path} {NO_DIGIT}")
    return digit.reshape(1, SIDE, SIDE, 1), SEVERAL if shows_several(ink) else ""
