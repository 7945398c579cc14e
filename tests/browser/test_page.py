"""The page of `jaxmlp export --format web` in Chromium: its own code answers as predict does, to any hand."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmlp import data
from jaxmlp.experiment.config import DataConfig
from jaxmlp.export import export
from jaxmlp.trained.inference import load_model
from jaxmlp.trained.prepare import prepare, shows_several

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Any]

HAND: dict[int, list[list[tuple[float, float]]]] = {
    0: [[(55, 20), (38, 26), (30, 45), (33, 68), (46, 80), (60, 76), (70, 60), (70, 38), (62, 23), (52, 20)]],
    1: [[(52, 18), (51, 40), (50, 62), (49, 82)]],
    2: [[(30, 32), (38, 20), (54, 17), (66, 26), (66, 40), (54, 56), (38, 72), (29, 81), (48, 80), (73, 79)]],
    3: [[(32, 22), (48, 17), (64, 24), (63, 38), (47, 46), (63, 52), (69, 66), (58, 80), (40, 82), (29, 75)]],
    4: [[(38, 18), (33, 36), (29, 52), (46, 53), (70, 51)], [(62, 20), (61, 46), (59, 84)]],
    5: [[(40, 20), (36, 46), (52, 42), (67, 52), (67, 70), (52, 82), (34, 78)], [(40, 20), (68, 19)]],
    6: [[(58, 16), (44, 30), (35, 50), (34, 68), (44, 82), (59, 80), (66, 67), (58, 55), (44, 57), (36, 66)]],
    7: [[(29, 22), (48, 21), (70, 20), (60, 42), (50, 64), (44, 84)]],
    8: [[(64, 26), (50, 18), (37, 26), (42, 40), (58, 52), (66, 68), (52, 82), (37, 72), (42, 56), (58, 42), (64, 26)]],
    9: [[(65, 30), (50, 20), (37, 30), (40, 46), (54, 49), (65, 34), (64, 56), (61, 84)]],
}
"""Strokes of each digit, in percent of the board: another hand than that of the page's samples."""


@pytest.fixture(scope="module")
def page_file(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "model.html"
    export(load_model(digits_run), "web", path)
    return path


def draw(
    page: Any, strokes: list[list[tuple[float, float]]], size: float = 1.0, at: tuple[float, float] = (0, 0)
) -> None:
    """With the mouse, button down along each stroke; then wait until the page has answered."""
    box = page.locator("#board").bounding_box()
    for stroke in strokes:
        for i, (x, y) in enumerate(stroke):
            where = (
                box["x"] + (x * size + at[0]) / 100 * box["width"],
                box["y"] + (y * size + at[1]) / 100 * box["height"],
            )
            page.mouse.move(*where, steps=1 if i == 0 else 4)
            if i == 0:
                page.mouse.down()
        page.mouse.up()
    settle(page)


def settle(page: Any) -> None:
    """Two frames: in the first the page redraws."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def answer(page: Any) -> str:
    return str(page.locator("#digit").inner_text())


def test_a_thousand_digits_through_the_pages_own_code_agree_with_predict(
    page_file: Path, digits_run: Path, open_page: OpenPage
) -> None:
    images = data.load(DataConfig(name="mnist_5k", validation=None)).test.inputs
    found = open_page(page_file).evaluate(
        """(text) => {
            const all = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            return Array.from({ length: all.length / 784 }, (_, i) =>
                [...forward(layers, all.subarray(784 * i, 784 * (i + 1))).at(-1)]);
        }""",
        base64.b64encode(images.tobytes()).decode(),
    )
    assert np.shape(found) == (1000, 10)
    # Two orders below the 1e-4 that is promised: only the run rounds to float32.
    np.testing.assert_allclose(found, load_model(digits_run).probabilities(images), rtol=0, atol=1e-6)


def test_the_page_prepares_a_drawing_as_predict_prepares_a_picture(page_file: Path, open_page: OpenPage) -> None:
    page, rng = open_page(page_file), np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(1, 120, 2))
        ink = rng.integers(0, 256, (height, width)) * (rng.random((height, width)) < 0.3)
        found = page.evaluate("([ink, width]) => prepare(ink, width)?.join()", [ink.ravel().tolist(), width])
        wanted = prepare(ink)
        if wanted is None:
            assert found is None
        else:
            # Sums in another order: where they round to the other whole number, they differ by one.
            differences = np.abs(np.int64(found.split(",")) - wanted.ravel())
            assert differences.max() <= 1 and np.mean(differences > 0) < 0.01


def test_the_page_and_predict_tell_of_several_digits_alike(page_file: Path, open_page: OpenPage) -> None:
    images = data.load(DataConfig(name="mnist_5k", validation=None)).test.inputs[..., 0]
    ink = [*images[:100], *(np.hstack(pair) for pair in images[:60].reshape(-1, 2, 28, 28))]
    ink += [np.vstack(pair) for pair in images[60:80].reshape(-1, 2, 28, 28)]
    found = open_page(page_file).evaluate(
        "(drawings) => drawings.map(([ink, width]) => showsSeveral(ink, width))",
        [[each.ravel().tolist(), each.shape[1]] for each in ink],
    )
    assert found == [shows_several(each) for each in ink]
    assert sum(found[:100]) < 5 and sum(found[100:]) > 35


@pytest.mark.parametrize(("size", "at"), [(1.0, (0.0, 0.0)), (0.6, (35.0, 5.0))], ids=["large", "small, in a corner"])
def test_digits_drawn_with_the_mouse_are_recognised(
    size: float, at: tuple[float, float], page_file: Path, open_page: OpenPage
) -> None:
    page, right = open_page(page_file), []
    for digit, strokes in HAND.items():
        page.locator("#clear").click()
        draw(page, strokes, size, at)
        right.append(answer(page) == str(digit))
    assert sum(right) >= 8, right


def test_probabilities_move_and_units_light_up_as_the_digit_grows(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    assert answer(page) == "?"
    assert page.locator("#units").get_attribute("aria-label").endswith(": 0 lit")
    seen = []
    for count in (3, 6, len(HAND[3][0])):
        page.locator("#clear").click()
        draw(page, [HAND[3][0][:count]])
        shares = page.locator("#bars li").evaluate_all("items => items.map((item) => item.lastChild.textContent)")
        assert len(shares) == 10
        seen.append((shares, page.locator("#units").get_attribute("aria-label")))
        pixels = page.locator("#prepared").evaluate(
            "canvas => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data]"
        )
        framed = np.reshape(pixels, (28, 28, 4))[..., 0]
        assert framed.max() > 200 and framed[:3].max() == 0, "the prepared digit is not shown"
    assert len({str(each) for each in seen}) == 3
    assert answer(page) == "3"
    page.locator("#undo").click()
    settle(page)
    assert answer(page) == "?"


def test_the_page_is_used_by_keyboard_and_says_what_it_reads(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file, reduced_motion="reduce")
    for digit in range(10):
        page.keyboard.press(str(digit))
        settle(page)
        assert answer(page) == str(digit)
    status = page.get_by_role("status")
    page.wait_for_function("() => document.getElementById('said').textContent.startsWith('Looks like 9')")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.getElementById('said').textContent === 'The board is empty'")
    assert status.count() == 1
    name = "() => document.activeElement.ariaLabel || document.activeElement.textContent || document.activeElement.id"
    focused = []
    for _ in range(13):
        page.keyboard.press("Tab")
        focused.append(page.evaluate(name))
    assert focused == ["Undo", "Clear", *(f"Draw a sample {digit}" for digit in range(10)), "unit"]
    page.get_by_label("Draw a sample 4").focus()
    page.keyboard.press("Enter")
    settle(page)
    assert answer(page) == "4"
    for locator in page.locator("canvas, input, button").all():
        assert locator.evaluate("e => e.ariaLabel || e.textContent || e.labels?.length")


def test_a_sample_digit_is_drawn_bit_by_bit(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    page.keyboard.press("2")
    inked = "() => strokes.flat().length"
    page.wait_for_function(f"() => ({inked})() > 5")
    early = page.evaluate(inked)
    page.wait_for_function("() => document.getElementById('digit').textContent === '2'")
    assert page.evaluate(inked) > early


def test_a_finger_draws_on_a_phone_and_the_answer_is_in_sight(page_file: Path, open_page: OpenPage) -> None:
    phone = {"viewport": {"width": 360, "height": 780}, "device_scale_factor": 3, "is_mobile": True, "has_touch": True}
    page = open_page(page_file, **phone)
    box, touch = page.locator("#board").bounding_box(), page.context.new_cdp_session(page)
    for stroke in HAND[5]:
        for i, (x, y) in enumerate(stroke):
            point = {"x": box["x"] + x / 100 * box["width"], "y": box["y"] + y / 100 * box["height"]}
            kind = "touchMove" if i else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    settle(page)
    assert answer(page) == "5"
    assert page.evaluate("() => scrollY") == 0, "the finger scrolled"
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    digit = page.locator("#digit").bounding_box()
    assert digit["y"] + digit["height"] < 780
    for button in page.locator("button").all():
        assert button.bounding_box()["height"] >= 44  # as wide as a finger


CONTRAST = """() => {
    const light = (text) => {
        const [r, g, b] = text.match(/[\\d.]+/g).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (e) => {
        const own = getComputedStyle(e).backgroundColor;
        return own === "rgba(0, 0, 0, 0)" && e.parentElement ? ground(e.parentElement) : own;
    };
    return [...document.querySelectorAll("h1, h2, p, li, button, b, figcaption, figcaption span")].map((e) => {
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
        return [e.outerHTML.slice(0, 60), (a + 0.05) / (b + 0.05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme: str, page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file, color_scheme=scheme)
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(part) for part in background[4:-1].split(",")])
    assert (brightness > 127) == (scheme == "light")
    assert [each for each in page.evaluate(CONTRAST) if each[1] < 4.5] == []


PLACES = """() => Object.fromEntries(["#board", ".top-line", "#undo", "#clear", ".seen", ".bars", "#samples", "#units"]
    .map((name) => [name, document.querySelector(name).getBoundingClientRect().toJSON()]))"""


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_juts_out_and_nothing_moves_at_the_first_stroke(
    width: int, page_file: Path, open_page: OpenPage
) -> None:
    page = open_page(page_file, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    before = page.evaluate(PLACES)
    assert before["#clear"]["right"] <= before["#board"]["right"]
    for digit in range(10):
        page.keyboard.press(str(digit))
        settle(page)
        assert page.evaluate(PLACES) == before
        shown = "[...document.querySelectorAll('#bars span, #sure')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        assert page.evaluate(f"{shown}.map(e => e.textContent)") == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_slider_has_a_label_that_is_seen(page_file: Path, open_page: OpenPage) -> None:
    page = open_page(page_file)
    assert page.get_by_label("Choose a unit").get_attribute("type") == "range"
    assert page.get_by_text("Choose a unit").is_visible()
