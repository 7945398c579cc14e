"""Every package of the lock that is installed here has a licence that an Apache-2.0 project may be installed beside."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PERMISSIVE = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU",
    "PSF-2.0", "Zlib",
}  # fmt: skip
BY_THE_FILE = {"certifi", "hypothesis", "pathspec", "tqdm"}
"""Under MPL-2.0, which asks for the source of changed files of theirs alone; none is changed, and none is shipped."""

WORDS = {
    "apache": "Apache-2.0", "mit": "MIT", "bsd": "BSD-3-Clause", "3-clause": "BSD-3-Clause", "mozilla": "MPL-2.0",
    "python software foundation": "PSF-2.0",
}  # fmt: skip
"""What the words of older metadata stand for."""


def locked() -> list[str]:
    text = (ROOT / "requirements.lock").read_text()
    return [name for name, marker in re.findall(r"^([a-z0-9-]+)==\S+(.*)", text, re.MULTILINE) if "win32" not in marker]


def licences(name: str) -> set[str]:
    """SPDX identifiers of a package: its expression, else what its classifiers or its licence's line say."""
    found = metadata.metadata(name)
    if expression := found.get("License-Expression"):
        return set(re.split(r" AND | OR ", expression))
    classifiers = [each for each in found.get_all("Classifier") or [] if each.startswith("License")]
    lines = [each.rpartition(" :: ")[2] for each in classifiers] or [(found.get("License") or "").partition("\n")[0]]
    named: set[str] = set()
    for line in lines:
        parts = set(re.split(r" AND | OR ", line))
        known = parts & {*PERMISSIVE, "MPL-2.0"}
        named |= known or {licence for word, licence in WORDS.items() if word in line.lower()} or {line}
    return named


@pytest.mark.parametrize("name", locked())
def test_a_locked_package_is_permissive(name: str) -> None:
    try:
        found = licences(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not for this platform")
    allowed = PERMISSIVE | ({"MPL-2.0"} if name in BY_THE_FILE else set())
    assert found
    assert found <= allowed or (name == "simplejson" and found & PERMISSIVE)  # MIT or AFL-2.1, as one likes
