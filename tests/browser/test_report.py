"""Reports in a real browser: nothing goes wrong, no network is asked, all can be read. `make test-browser`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jaxmlp.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser

WIDTHS = {"phone": 360, "desk": 1280}
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}


@pytest.fixture(scope="module", params=["one", "two"])
def report(
    request: pytest.FixtureRequest, two_runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    runs = two_runs[: 1 + (request.param == "two")]
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=WIDTHS)
def page(
    request: pytest.FixtureRequest, chromium: Browser, report: Path, scheme: Any, tmp_path: Path
) -> Iterator[Page]:
    """The report, open; at the end it must have said nothing, and asked for nothing but itself."""
    viewport: Any = {"width": WIDTHS[request.param], "height": 900}
    context: BrowserContext = chromium.new_context(viewport=viewport, color_scheme=scheme)
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(report.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    yield opened
    if folder := os.environ.get("SCREENSHOTS"):
        name = "-".join([report.parent.name, request.param, scheme])
        opened.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]


def test_a_report_breaks_no_rule_of_wcag_aa_that_axe_knows(page: Page) -> None:
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page, options=RULES).response["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in violations] == []


def test_a_report_is_never_wider_than_its_window(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_picture_of_a_report_is_drawn(page: Page) -> None:
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    sizes = page.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width)")
    assert len(sizes) >= 5 and min(sizes) > 250


def test_a_report_is_walked_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#result"
    page.wait_for_function("document.querySelector('#result').getBoundingClientRect().top < 100")
