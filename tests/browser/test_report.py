"""Reports in Chromium: they ask for nothing, and can be read in light and dark, on a phone, and by keyboard."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import sweep_quickstart

from jaxmlp.cli import main

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Any]
WIDTHS = {"phone": 390, "desk": 1280}
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of six settings; no runs are kept."""
    return sweep_quickstart(tmp_path_factory.mktemp("lanes") / "sweep", "0.01")


@pytest.fixture(scope="module", params=["one", "two", "sweep"])
def report(
    request: pytest.FixtureRequest, two_runs: tuple[Path, Path], sweep: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "report.html"
    runs = {"one": two_runs[:1], "two": two_runs, "sweep": (sweep,)}[request.param]
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids="-".join)
def page(request: pytest.FixtureRequest, report: Path, open_page: OpenPage) -> Any:
    """The report with all its parts open; a picture of it goes to the folder `SCREENSHOTS`, where that is set."""
    width, scheme = request.param
    viewport = {"width": WIDTHS[width], "height": 900}
    opened = open_page(report, viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    if folder := os.environ.get("SCREENSHOTS"):
        opened.screenshot(path=Path(folder) / f"{report.parent.name}-{width}-{scheme}.png", full_page=True)
    return opened


def test_a_report_breaks_no_rule_of_wcag_aa_that_axe_knows(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: make test-browser")
    violations = axe.Axe().run(page, options=RULES).response["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in violations] == []


def test_a_report_is_never_wider_than_its_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_picture_of_a_report_is_drawn(page: Any) -> None:
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    sizes = page.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().width)")
    assert len(sizes) >= 5 and min(sizes) > 250


def test_a_report_is_walked_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#result"
    assert page.evaluate("document.querySelector('#result').getBoundingClientRect().top") < 100


def test_what_a_window_cuts_off_is_hinted_at_and_code_is_not_cut(page: Any) -> None:
    cut = "e => e.scrollWidth > e.clientWidth"
    assert page.evaluate(f"[...document.querySelectorAll('pre')].filter({cut}).length") == 0
    shades = page.evaluate(
        f"[...document.querySelectorAll('.scroll')].filter({cut}).map(e => getComputedStyle(e).backgroundImage)"
    )
    assert all(shade.count("linear-gradient") == 4 for shade in shades)
    assert shades or page.evaluate("innerWidth") > 400, "no table is wider than a phone: this test shows nothing"


def test_no_plot_stands_beside_an_empty_half(page: Any) -> None:
    rows = page.evaluate(
        """[...document.querySelectorAll('.three, .mistakes')].map(grid => {
            const all = [...grid.children].map(e => e.getBoundingClientRect());
            const first = all.filter(e => e.top === all[0].top), right = Math.max(...first.map(e => e.right));
            return [grid.className, all.length % first.length, grid.getBoundingClientRect().right - right];
        })"""
    )
    for name, left_over, gap in rows:
        assert gap < 2 and (name == "mistakes" or left_over == 0), rows
