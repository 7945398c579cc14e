"""The site of the documents, as `make site` built it, needs no network and no server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[2] / ".site" / "html"
LOADED = re.compile(r'<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|srcset|href)="((?:https?:)?//[^"]*)"')

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="needs the site: make site"),
]


def test_no_page_loads_anything_from_another_host() -> None:
    pages = {page: LOADED.findall(page.read_text()) for page in SITE.rglob("*.html")}
    assert len(pages) > 20
    assert {page: found for page, found in pages.items() if found} == {}


def test_the_search_finds_a_public_name_from_the_disk(chromium: Any) -> None:
    page = chromium.new_context(offline=True).new_page()
    asked: list[str] = []
    mistakes: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    page.goto((SITE / "index.html").as_uri())
    page.fill("input.md-search__input", "assert_same_bits")
    page.locator("a.md-search-result__link[href*='docs/api/jaxmlp.html']").first.wait_for()
    page.context.close()
    assert {url.partition(":")[0] for url in asked} == {"file"}
    assert mistakes == []
