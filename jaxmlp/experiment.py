"""Experiment files: Python files with a CONFIG, the parts of their own that they define, and the sums of their code."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, UsageError
from jaxmlp.parts import WRAPPERS, Part, defined_by, is_shipped


@dataclasses.dataclass(frozen=True)
class ExperimentFile:
    """An experiment's file that was run."""

    path: Path
    module: ModuleType
    config: ExperimentConfig


def load_experiment(path: Path) -> ExperimentFile:
    """Run an experiment's file and take its CONFIG; named after the file where it has no name of its own.

    Raises:
        UsageError: There is no such file, it raises, or it has no CONFIG.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not there.{_nearest(path)}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if not spec or not spec.loader:
        raise UsageError(f"{path} is not a Python file: an experiment is one, with a CONFIG")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    # As Python does for a script: its neighbours can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        config = getattr(module, "CONFIG", None)
        if isinstance(config, ExperimentConfig) and config.name == ExperimentConfig.name:
            config = dataclasses.replace(config, name=path.stem)
    except ConfigError as error:
        raise UsageError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin]
        at = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{path}{at} raised {type(error).__name__}: {error}") from error
    if not isinstance(config, ExperimentConfig):
        found = "has no CONFIG" if config is None else f"has a CONFIG of type {type(config).__name__}"
        raise UsageError(f"{path} {found}. Add: CONFIG = ExperimentConfig(...), from jaxmlp")
    return ExperimentFile(path, module, _with_sources(config, module, path))


def _with_sources(config: ExperimentConfig, module: ModuleType, path: Path) -> ExperimentConfig:
    """The config whose plain objects know their place: the name of a global of the file, or where CONFIG has them."""

    def sourced(part: Any, place: str) -> Any:
        if not isinstance(part, Part):
            return part
        if isinstance(part, WRAPPERS):
            names = [name for name, value in vars(module).items() if value is part.value and not name.startswith("_")]
            return dataclasses.replace(part, source=f"{path.name}:{names[0] if names else place}")
        changes: dict[str, Any] = {}
        for item in dataclasses.fields(part):  # type: ignore[arg-type]
            value = getattr(part, item.name)
            if isinstance(value, Part):
                changes[item.name] = sourced(value, f"{place}.{item.name}")
            elif isinstance(value, tuple) and any(isinstance(each, Part) for each in value):
                changes[item.name] = tuple(sourced(v, f"{place}.{item.name}.{n}") for n, v in enumerate(value))
        return dataclasses.replace(part, **changes)  # type: ignore[type-var]

    found: ExperimentConfig = sourced(config, "CONFIG")
    return found


def _nearest(path: Path) -> str:
    """The most similar of the Python files beside it, here, and in `experiments`."""
    folders = dict.fromkeys((path.parent, Path(), Path("experiments")))
    there = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    stems = difflib.get_close_matches(path.stem, [file.stem for file in there], n=1)
    near = next((file for file in there if file.stem in stems), None)
    return f" Did you mean {near}?" if near else ""


class Code:
    """The user's own code for a run: experiment files that were run, and an experiment in hand.

    Args:
        files: That the user names; each is run.
        config: An experiment that Python has, whose parts are at hand.
    """

    def __init__(self, files: Sequence[Path] = (), config: ExperimentConfig | None = None) -> None:
        self._modules = [load_experiment(file).module for file in files]
        self._config = config

    def find(self, place: str) -> Any:
        """What a name such as `lion.py:Lion` stands for.

        Raises:
            ConfigError: No file that was given has it.
        """
        file, _, names = place.partition(":")
        for thing in _places(self._config):
            if thing[0] == place:
                return thing[1]
        for module in self._known():
            if Path(str(module.__file__)).name == file:
                try:
                    return _at(module, names.split("."))
                except (AttributeError, IndexError, ValueError):
                    raise ConfigError("experiment", f"is {module.__file__}, which has no {names}") from None
        raise ConfigError("experiment", f"must be given, the file {file}: the run was made with {place}")

    def _known(self) -> Iterator[ModuleType]:
        yield from self._modules
        local = {module.__file__ for module in self._modules}
        for path in [each for module in self._modules for each in local_files(Path(str(module.__file__)))]:
            if str(path) not in local:
                yield from (each for each in list(sys.modules.values()) if getattr(each, "__file__", None) == str(path))


def _places(config: ExperimentConfig | None) -> Iterator[tuple[str, Any]]:
    """The own parts of an experiment in hand: their places, and classes or objects."""
    from jaxmlp.parts import where

    for part in config.parts() if config else ():
        yield where(part), part.value if isinstance(part, WRAPPERS) else type(part)


def _at(thing: Any, names: Sequence[str]) -> Any:
    for name in names:
        thing = thing[int(name)] if name.isdecimal() else getattr(thing, name)
    return thing.value if isinstance(thing, WRAPPERS) else thing


def code_of(config: ExperimentConfig) -> dict[str, Path | None]:
    """The files of the user's own that define the parts in use, and the local modules that these import, by name.

    None stands for code without a file, such as a notebook's.
    """
    found: dict[str, Path | None] = {}
    for thing in _own_things(config):
        file = getattr(sys.modules.get(str(getattr(thing, "__module__", ""))), "__file__", None)
        if not file:
            found["none"] = None
            continue
        for path in (Path(file), *local_files(Path(file))):
            found[path.name] = path
    return dict(sorted(found.items()))


def _own_things(config: ExperimentConfig) -> Iterator[Any]:
    """Classes, functions and types of objects that are not the package's own."""
    for part in config.parts():
        if isinstance(part, WRAPPERS):
            yield _Placed(part.source) if part.source else defined_by(part.value)
            continue
        if not is_shipped(type(part)):
            yield type(part)
        for item in dataclasses.fields(part):  # type: ignore[arg-type]
            value = getattr(part, item.name)
            if callable(value) and not isinstance(value, Part):
                yield value


class _Placed:
    """Stands for an object of the experiment's file whose source is known."""

    def __init__(self, source: str) -> None:
        file = source.partition(":")[0]
        names = [
            name
            for name, module in list(sys.modules.items())
            if Path(str(getattr(module, "__file__", ""))).name == file
        ]
        self.__module__ = names[-1] if names else ""


def local_files(path: Path) -> list[Path]:
    """The modules beside a file that it imports, directly or through each other."""
    found: dict[Path, None] = {}
    left = [path]
    while left:
        for near in _imported_beside(left.pop()):
            if near not in found and near != path:
                found[near] = None
                left.append(near)
    return list(found)


def _imported_beside(path: Path) -> Iterable[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    folder = path.resolve().parent
    candidates = [folder.joinpath(*name.split(".")) for name in names]
    files = [file for each in candidates for file in (each.with_suffix(".py"), each / "__init__.py")]
    return [file for file in files if file.is_file()]


def sums_of(code: Mapping[str, Path | None]) -> dict[str, str | None]:
    """The SHA-256 of each file of code."""
    return {name: path and hashlib.sha256(path.read_bytes()).hexdigest() for name, path in code.items()}
