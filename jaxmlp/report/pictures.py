"""How do images and weights become pictures? As small PNG files, which a page can hold."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

TILES = 64


def as_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """PNG of uint8 [height, width, channels]: colour for three channels, else grey from the first channel."""
    picture = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def as_source(png: bytes) -> str:
    """The PNG as a data URL, for an image's `src`."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def as_pixels(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The image as uint8. Floats are stretched from the darkest to the brightest."""
    return image if image.dtype == np.uint8 else _stretched(image, image.min(), image.max())


def strongest_tiles(
    kernel: Float[np.ndarray, "pixels units"], image_shape: tuple[int, int, int]
) -> Float[np.ndarray, "tiles height width channels"]:
    """Incoming weights of a first layer's units as images: at most `TILES`, largest norm first."""
    strongest = np.argsort(-np.linalg.norm(kernel, axis=0), stable=True)[:TILES]
    return kernel[:, strongest].T.reshape(-1, *image_shape)


def weights_sheet(tiles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Tiles [n, height, width, channels] side by side, each scaled so that grey is zero.

    Returns:
        uint8 [height, width, channels], with a line of one pixel between tiles.
    """
    limits = np.abs(tiles).max(axis=(1, 2, 3))
    grey = [_stretched(tile, -limit, limit) for tile, limit in zip(tiles, limits, strict=True)]
    return sheet(grey, math.ceil(math.sqrt(len(grey))))


def sheet(images: Sequence[np.ndarray[Any, Any]], columns: int) -> np.ndarray[Any, Any]:
    """Images, uint8 [height, width, channels], in rows of `columns`, with a line of one pixel between them."""
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    found = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        found[top : top + height, left : left + width] = image
    return found


def _stretched(values: np.ndarray[Any, Any], low: float, high: float) -> np.ndarray[Any, Any]:
    return np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
