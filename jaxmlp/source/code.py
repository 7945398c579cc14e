"""Which of the user's own files define an experiment's parts, and what are their SHA-256?

The bits depend on such a file, and on the local modules that it imports. They do not depend on a file that only
registers the data set: the data's hash covers the data.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxmlp import data
from jaxmlp.errors import ConfigError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.parts import Part, PlainObject
from jaxmlp.experiment.plain import file_of, is_installed, is_shipped, place_of, where

NONE = "none"
"""Stands for code that is in no file, such as a notebook's."""

_ran: dict[Path, bytes] = {}
"""Source of each file that was run as an experiment or imported by one, at the time it was run."""


class Source(NamedTuple):
    """A file of code."""

    path: Path
    content: bytes
    """Content at the time the file was run. The file may have changed since."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


Sources = dict[str, Source | None]
"""Files by name. `NONE` has no source."""


def code_of(*configs: ExperimentConfig) -> Sources:
    """The files that define the parts in use, and the local modules that these import. No files of libraries.

    Raises:
        ConfigError: Two of the files have the same name.
    """
    return _named(dict.fromkeys(file for config in configs for file in _defining(config)))


def data_code_of(config: ExperimentConfig) -> Sources:
    """The file that registers the experiment's data set with `jaxmlp.data.register`, and what the file imports."""
    function = data.registered(config.data.name)
    if function is None:
        return {}
    file = file_of(function)
    return _named([Path(file) if file else None])


def roots_of(*configs: ExperimentConfig) -> list[Path]:
    """The files to name with `--experiment`: those that define parts in use, or register the data."""
    registering = filter(None, (data.registered(config.data.name) for config in configs))
    files = [Path(file) for function in registering if (file := file_of(function))]
    return list(dict.fromkeys([file for config in configs for file in _defining(config) if file] + files))


def sums_of(code: Sources) -> dict[str, str | None]:
    """The SHA-256 of each file."""
    return {name: source and source.sha256 for name, source in code.items()}


def remember(path: Path, content: bytes) -> None:
    """Remember the source of a file as it is run. A later edit does not change it."""
    _ran.pop(path, None)  # The file that was run last must come last.
    _ran[path] = content


def as_run(path: Path) -> bytes | None:
    """The source of a file as it was run; None if it was not run."""
    return _ran.get(path)


def _named(files: Iterable[Path | None]) -> Sources:
    """The sources of files and of the local modules that each imports, by path relative to the file's folder."""
    names: dict[Path | None, str] = {file: file.name if file else NONE for file in files}
    for file in list(filter(None, names)):
        for near in local_files(file):
            names.setdefault(near, near.relative_to(file.parent).as_posix())
    found: Sources = {}
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        if other := found.get(name):
            raise ConfigError("experiment", f"has two files called {name}, {other.path} and {path}: rename one of them")
        found[name] = Source(path, _ran.get(path) or path.read_bytes()) if path else None
    return found


def _defining(config: ExperimentConfig) -> Iterator[Path | None]:
    """The files that define the parts in use. None stands for a part that no file defines."""
    for part in config.parts():
        if isinstance(part, PlainObject):
            yield from _file(part.value, where(part))
            continue
        if not is_shipped(type(part)):
            yield from _file(type(part), where(part))
        for item in dataclasses.fields(part):  # type: ignore[arg-type]
            value = getattr(part, item.name)
            if callable(value) and not isinstance(value, Part):
                yield from _file(value, place_of(value))


def _file(thing: Any, place: str) -> Iterator[Path | None]:
    file, _, _ = place.partition(":")
    if file == NONE:
        yield None
    named = [path for path in reversed(_ran) if path.name == file]
    defined = file_of(thing)
    if defined and Path(defined).name == file:
        yield Path(defined)
    elif named:
        yield named[0]
    elif defined and not is_installed(defined):
        yield Path(defined)


def local_files(path: Path) -> list[Path]:
    """The modules beside a file, or in folders there, that it imports, directly or indirectly."""
    found: dict[Path, None] = {}
    left = [path]
    while left:
        for near in _imported(left.pop(), path.parent):
            if near not in found and near != path:
                found[near] = None
                left.append(near)
    return list(found)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """The files below `root` that a file may import."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        base, names = root, [""]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            module = [node.module] if node.module else []
            names = [".".join([*module, *each]) for each in ([], *([alias.name] for alias in node.names))]
        for words in (name.split(".") for name in names if name and name.partition(".")[0] != __package__):
            for count in range(1, len(words) + 1):
                place = base.joinpath(*words[:count])
                for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                    if file.is_file() and file.is_relative_to(root):
                        yield file
