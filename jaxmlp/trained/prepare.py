"""How are digits prepared as MNIST's were? Light on black, in a 20 x 20 box, centre of mass in the middle of 28 x 28.

Source: LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/. `export/page/prepare.js` does the same to a
drawing, step by step; a test compares them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

SIDE, BOX = 28, 20
PHOTO_SIDE = 384
"""Approximate length in pixels to which a photograph's longer side is reduced before its ink is searched."""
LEAST_CONTRAST = 24
"""Smallest contrast between paper and ink, of 255."""
SPECK = 0.05
"""Smallest size of a stroke of the digit, relative to the largest stroke."""
INSIDE = 0.2
"""Size, relative to the largest stroke, of an inner stroke from which strokes at the border are ignored."""
APART, AS_LARGE, AS_HIGH = 0.25, 0.2, 0.5
"""Two shapes count as two digits if their extents overlap by less than the first fraction, horizontally or vertically,
and the smaller has more than the second fraction of the larger's ink and more than the third of its height. Of MNIST's
10,000 test digits 6 count as two; of 2,000 pairs of them, beside or above each other, 99.6 % do."""


def prepare(ink: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "28 28"] | None:
    """The digit in MNIST's frame; None if there is no ink.

    Args:
        ink: Ink from 0, which is none, to 255.
    """
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    height, width = (max(1, int(BOX * side / max(cut.shape) + 0.5)) for side in cut.shape)
    digit = _overlaps(cut.shape[0], height) @ cut @ _overlaps(cut.shape[1], width).T
    top, left = (
        int(np.clip(SIDE // 2 - np.floor(centre + 0.5), 0, SIDE - side))
        for centre, side in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    framed = np.zeros((SIDE, SIDE), np.uint8)
    framed[top : top + height, left : left + width] = np.floor(digit + 0.5)
    return framed


def _overlaps(wide: int, narrow: int) -> Float[np.ndarray, "narrow wide"]:
    """How much of each of `wide` cells lies in each of `narrow` cells of the same total length. Rows sum to 1."""
    ends = np.arange(narrow + 1)[:, np.newaxis] * (wide / narrow)
    cells = np.arange(wide)
    shared = np.minimum(ends[1:], cells + 1) - np.maximum(ends[:-1], cells)
    return np.asarray(np.maximum(shared, 0) * (narrow / wide))


def shows_several(ink: Float[np.ndarray, "height width"]) -> bool:
    """Whether the ink looks like more than one digit: two shapes of similar height, beside or above each other.

    Digits that touch, or differ much in size, count as one.

    Args:
        ink: As in `prepare`.
    """
    parts, count = ndimage.label(ink > 64, np.ones((3, 3)))
    if count < 2:
        return False
    sizes = np.bincount(parts.ravel())[1:]
    first, second = np.argsort(-sizes, kind="stable")[:2]
    found = ndimage.find_objects(parts)
    sides = [[(axis.start, axis.stop) for axis in found[part]] for part in (first, second)]
    overlaps = [min(a[1], b[1]) - max(a[0], b[0]) for a, b in zip(*sides, strict=True)]
    shorter = [min(a[1] - a[0], b[1] - b[0]) for a, b in zip(*sides, strict=True)]
    heights = [side[0][1] - side[0][0] for side in sides]
    return bool(
        min(overlap / length for overlap, length in zip(overlaps, shorter, strict=True)) < APART
        and sizes[second] > AS_LARGE * sizes[first]
        and min(heights) > AS_HIGH * max(heights)
    )


def find_ink(picture: Image.Image) -> Float[np.ndarray, "height width"]:
    """The ink of a photograph, scan or drawing of one digit: 0 to 255, whether ink or paper is darker.

    Args:
        picture: An upright picture of any mode and size.
    """
    grey = _grey(picture)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    # Most of the border is paper.
    dark_on_light = np.median(border) > (grey.min() + grey.max()) / 2
    light = 255 - grey if dark_on_light else grey
    # Removing everything narrower than a quarter of the picture leaves the paper.
    contrast = light - ndimage.grey_opening(light, size=max(3, max(light.shape) // 4))
    threshold = _otsu(contrast)
    strokes = contrast > threshold
    full = float(np.median(contrast[strokes])) if strokes.any() else 0.0
    if full < LEAST_CONTRAST:
        return np.zeros_like(grey)
    # Starts at half the threshold, so that the edges of strokes stay soft.
    ink = np.clip((contrast - threshold / 2) / (full - threshold / 2), 0, 1) * 255
    near_digit = ndimage.binary_dilation(_digit(strokes), np.ones((3, 3)), iterations=2)
    return np.where(near_digit, ink, 0)


def _grey(picture: Image.Image) -> Float[np.ndarray, "height width"]:
    """Brightness, 0 to 255, with transparent parts as paper and no side longer than `PHOTO_SIDE`."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) // 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        alpha, brightness = (np.asarray(part) for part in (whole.getchannel("A"), whole.convert("L")))
        # Row by row, because the whole computation needs many times the picture's memory.
        light = sum(int(row.astype(np.int64) @ other) for row, other in zip(alpha, brightness, strict=True))
        is_dark = light < 127.5 * alpha.sum(dtype=np.int64)
        picture = Image.alpha_composite(Image.new("RGBA", whole.size, "white" if is_dark else "black"), whole)
    picture = picture.convert("L")
    return np.asarray(picture.reduce(-(-max(picture.size) // PHOTO_SIDE)), np.float64)


def _otsu(values: Float[np.ndarray, "..."]) -> float:
    """The threshold that splits the values into two classes of least spread. Source: Otsu 1979."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = counts.cumsum()[:-1], counts[::-1].cumsum()[::-1][1:]
    sums = (counts * centres).cumsum()
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][np.argmax(below * above * (means[1] - means[0]) ** 2)])


def _digit(strokes: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The strokes without specks, and without shapes that cross the border, such as a table's edge."""
    parts, count = ndimage.label(strokes, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1).astype(float)
    sizes[0] = 0
    inside = sizes.copy()
    inside[np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))] = 0
    # A digit may touch the border itself. Then the shapes inside are specks.
    sizes = inside if inside.max() > INSIDE * sizes.max() else sizes
    return np.asarray((sizes > SPECK * sizes.max())[parts])
