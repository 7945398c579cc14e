"""Folders that users name, `~` expanded; and a user whom the system does not know, as in a container, lacks nothing."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest
from refusals import assert_names, refused

from jaxmlp import data
from jaxmlp.errors import UsageError
from jaxmlp.folders import chosen_folder, user_cache
from jaxmlp.run.find import runs_dir


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry among the users, and without a home folder."""

    def unknown(uid: Any) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "JAXMLP_DATA_DIR", "JAXMLP_RUNS_DIR", "JAXMLP_MANUAL_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_stranger_has_no_cache_and_is_told_where_a_folder_is_needed(stranger: None) -> None:
    assert user_cache() is None
    with refused(UsageError, "~/data", "JAXMLP_DATA_DIR"):
        chosen_folder("~/data", "JAXMLP_DATA_DIR")
    found = {status.name: status for status in data.status()}
    assert_names(found["mnist"].problem, "JAXMLP_DATA_DIR")
    assert found["mnist_5k"].prepared
    assert runs_dir() == Path("runs")


def test_a_relative_cache_home_is_ignored_as_its_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert user_cache() == Path("/somewhere/.cache/jaxmlp")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert user_cache() == Path("/somewhere/cache/jaxmlp")
