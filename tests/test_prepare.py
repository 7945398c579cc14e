"""Digits on paper come out as MNIST has them, whatever the picture they are in."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import assert_names, refused

from jaxmlp import data
from jaxmlp.cli import main
from jaxmlp.data import Split
from jaxmlp.errors import DataError
from jaxmlp.experiment.config import DataConfig
from jaxmlp.trained.images import read_images
from jaxmlp.trained.prepare import find_ink, prepare, shows_several

SHAPE = (28, 28, 1)


@pytest.fixture(scope="module")
def digits() -> Split:
    return data.load(DataConfig(name="mnist_5k", validation=None)).test


def photograph(digit: np.ndarray, seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """Ink on unevenly lit, yellowish, noisy paper with a table's edge in the corner; somewhere, of some size."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(170, 300))
    top, left = int(rng.integers(20, height - size - 20)), int(rng.integers(60, width - size - 20))
    ink = np.zeros((height, width))
    ink[top : top + size, left : left + size] = np.asarray(Image.fromarray(digit).resize((size, size))) / 255
    y, x = np.mgrid[:height, :width]
    light = (210 - 80 * x / width - 40 * y / height) * (1 - 0.7 * ink) + rng.normal(0, 5, ink.shape)
    light[x + y / 4 < 40] = 45
    colours = light[..., np.newaxis] * [1.0, 0.97, 0.88]
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=80)
    return file.getvalue()


def test_mnists_own_digits_are_prepared_already(digits: Split) -> None:
    again = [prepare(image[..., 0]) for image in digits.inputs]
    same = [np.array_equal(found, image[..., 0]) for found, image in zip(again, digits.inputs, strict=True)]
    assert np.mean(same) > 0.99  # some few are smaller than the box in MNIST itself


def test_a_digit_is_in_a_box_of_20_with_its_centre_of_mass_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 90, 2)
        ink = np.zeros((200, 150))
        top, left = rng.integers(0, 60, 2)
        ink[top : top + height, left : left + width] = 255 * (rng.random((height, width)) < 0.6)
        ink[top, left] = ink[top + height - 1, left + width - 1] = 255
        found = prepare(ink)
        assert found is not None
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        if height == width:
            assert np.ptp(rows) + 1 == 20
        centre = [np.average(np.arange(28), weights=found.sum(axis=axis)) for axis in (1, 0)]
        assert np.abs(np.array(centre) - 14).max() <= 0.55  # half a pixel, and rounding to whole grey levels


def test_no_ink_is_no_digit() -> None:
    assert prepare(np.zeros((30, 40))) is None
    rng = np.random.default_rng(0)
    paper = rng.normal(200, 3, (300, 200)).clip(0, 255).astype(np.uint8)
    assert prepare(find_ink(Image.fromarray(paper))) is None


def pictures_of(digit: np.ndarray) -> dict[str, Image.Image]:
    """One digit in pictures of every kind."""
    wide = np.asarray(Image.fromarray(np.pad(digit, ((60, 20), (10, 90)))).resize((640, 540)))
    transparent = np.zeros((*wide.shape, 4), np.uint8)
    transparent[..., 3] = wide
    return {
        "light on dark": Image.fromarray(wide),
        "dark on light": Image.fromarray(255 - wide),
        "grey on grey": Image.fromarray((190 - wide / 255 * 120).astype(np.uint8)),
        "blue on yellow": Image.fromarray(np.stack([255 - wide, 240 - wide // 2, 90 + wide // 2], -1).astype(np.uint8)),
        "16 bits": Image.fromarray(65535 - wide.astype(np.uint16) * 257),
        "black on nothing": Image.fromarray(transparent),
        "white on nothing": Image.fromarray(transparent | np.array([255, 255, 255, 0], np.uint8)),
        "a palette": Image.fromarray(255 - wide).convert("P"),
        "one bit": Image.fromarray(255 - wide).convert("1", dither=Image.Dither.NONE),
        "a speck beside it": Image.fromarray(_with_speck(255 - wide)),
        "tiny": Image.fromarray(255 - np.pad(digit, 3)),
    }


def likeness(found: np.ndarray, wanted: np.ndarray) -> float:
    """The correlation, where they lie best: a centre of mass near a pixel's edge may round to either side."""
    shifts = [np.roll(found, shift, axis=(0, 1)) for shift in np.ndindex(3, 3)]
    return float(max(np.corrcoef(np.roll(each, -1, axis=(0, 1)).ravel(), wanted.ravel())[0, 1] for each in shifts))


def _with_speck(picture: np.ndarray) -> np.ndarray:
    picture = picture.copy()
    picture[500:506, 600:606] = 0
    return picture


def test_pictures_of_one_digit_are_prepared_alike(digits: Split) -> None:
    for image in digits.inputs[:20, ..., 0]:
        for kind, picture in pictures_of(image).items():
            found = prepare(find_ink(picture))
            assert found is not None, kind
            assert likeness(found, image) > 0.85, kind  # one bit a pixel costs some; two writings of a digit have 0.6


def test_a_photograph_is_turned_as_its_camera_was_held(digits: Split, tmp_path: Path) -> None:
    picture = Image.fromarray(255 - np.pad(digits.inputs[2, ..., 0], 20))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "x.jpg", quality=95, exif=exif)
    (found,) = read_images(tmp_path / "x.jpg", SHAPE, digits=True)
    wanted = prepare(find_ink(picture))
    assert wanted is not None
    assert likeness(found.images[0, ..., 0], wanted) > 0.98  # JPEG


def test_a_picture_of_mnists_shape_is_taken_as_it_is_unless_it_is_dark_on_light(digits: Split, tmp_path: Path) -> None:
    image = digits.inputs[3, ..., 0]
    Image.fromarray(np.roll(image, 2, axis=1)).save(tmp_path / "as_it_is.png")
    Image.fromarray(255 - image).save(tmp_path / "turned.png")
    found = {each.file.stem: each.images[0, ..., 0] for each in read_images(tmp_path, SHAPE, digits=True)}
    np.testing.assert_array_equal(found["as_it_is"], np.roll(image, 2, axis=1))
    assert likeness(found["turned"], image) > 0.95
    Image.fromarray(np.pad(image, 9)).save(tmp_path / "larger.png")
    with refused(DataError, tmp_path / "larger.png", "46 x 46", "28 x 28"):
        read_images(tmp_path / "larger.png", SHAPE)


def test_predict_reads_a_folder_of_photographs_and_writes_what_it_saw(
    digits: Split, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.jpg").write_bytes(jpeg(photograph(digits.inputs[number, ..., 0], number)))
    table = tmp_path / "answers.csv"
    assert main(["predict", str(digits_run), str(folder), "--json", "--csv", str(table)]) == 0
    answers = [each["label"] for each in json.loads(capsys.readouterr().out)["predictions"]]
    assert np.mean(answers == digits.targets[:60]) >= 0.85  # 0.94 of all test digits as they are
    with table.open() as file:
        assert [int(row["label"]) for row in csv.DictReader(file)] == answers
    assert main(["predict", str(digits_run), str(folder / "00.jpg"), "--show"]) == 0
    drawn = capsys.readouterr().out.splitlines()[1:]
    assert len(drawn) == 28 and 8 <= sum(bool(line) for line in drawn) <= 20


def test_predict_answers_a_folder_all_but_what_it_cannot_read(
    digits: Split, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in (0, 1):
        Image.fromarray(255 - np.pad(digits.inputs[number, ..., 0], 9)).save(folder / f"{number}.png")
    two = np.concatenate([digits.inputs[0, ..., 0], digits.inputs[1, ..., 0]], axis=1)
    Image.fromarray(two).save(folder / "2.png")
    Image.new("L", (300, 200), "white").save(folder / "blank.png")
    Image.new("L", (28, 28)).save(folder / "black.png")
    (folder / "text.png").write_text("hello")
    (folder / "photo.webp").write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
    words = [str(folder), str(tmp_path / "nothing.png"), str(folder / "0.png")]
    assert main(["predict", str(digits_run), *words, "--json"]) == 4
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [Path(each["file"]).name for each in document["predictions"]] == ["0.png", "1.png", "2.png", "0.png"]
    skipped = {Path(each["file"]).name: each["problem"] for each in document["skipped"]}
    assert sorted(skipped) == ["black.png", "blank.png", "nothing.png", "photo.webp", "text.png"]
    assert all(problem in err for problem in skipped.values())
    assert_names(err.splitlines()[-1], 5, 4)
    assert_names(skipped["photo.webp"], "WebP")
    assert [Path(each["file"]).name for each in document["warnings"]] == ["2.png"]
    assert_names(err, "2.png")


def test_two_digits_in_a_picture_are_noticed_and_one_is_not_taken_for_two(digits: Split) -> None:
    images = digits.inputs[:300, ..., 0]
    assert sum(map(shows_several, images)) <= 1  # 6 of MNIST's 10,000 test digits
    pairs = list(zip(images[0::2], images[1::2], strict=True))
    for axis in (0, 1):
        assert np.mean([shows_several(np.concatenate(pair, axis=axis)) for pair in pairs]) >= 0.97  # 0.996 of 2,000
    assert not shows_several(np.zeros((28, 28)))
