"""What is in an experiment's file, and which code is a run made of?"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple, TypeAlias

from jaxmlp.errors import ConfigError, UsageError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.parts import Part, PlainObject
from jaxmlp.experiment.plain import Placed, is_installed, place_of, where
from jaxmlp.source.code import NONE, as_run, code_of, local_files, remember, sums_of

Experiment: TypeAlias = ExperimentConfig | str | Path | Sequence[str | Path]
"""Source of the user's code for a run: one experiment file, several files, or an `ExperimentConfig`."""


@dataclasses.dataclass(frozen=True)
class ExperimentFile:
    """An experiment's file after it was run."""

    path: Path
    modules: Mapping[str, ModuleType]
    """The file's module and the local modules that it imports, by file name."""
    sums: Mapping[str, str]
    """SHA-256 of each of these files at the time it was run."""

    @property
    def config(self) -> ExperimentConfig:
        """The file's CONFIG. If it has the default name, it is renamed after the file.

        Raises:
            UsageError: The file has no CONFIG.
        """
        config = getattr(self._module, "CONFIG", None)
        if not isinstance(config, ExperimentConfig):
            found = "has no CONFIG" if config is None else f"has a CONFIG of type {type(config).__name__}"
            raise UsageError(f"{self.path} {found}. Add CONFIG = ExperimentConfig(...), imported from jaxmlp")
        if config.name == ExperimentConfig.name:
            config = dataclasses.replace(config, name=self.path.stem)
        placed: ExperimentConfig = self._placed(config, "CONFIG")
        return placed

    @property
    def _module(self) -> ModuleType:
        return self.modules[self.path.name]

    def _placed(self, part: Any, place: str) -> Any:
        """The part, with the place of each plain object and function: its name in the file, or its path in CONFIG."""
        if isinstance(part, PlainObject):
            own = place_of(part.value)
            return dataclasses.replace(part, source=own if self._has(own) else self._place(part.value, place))
        if not isinstance(part, Part):
            is_found = not callable(part) or isinstance(part, type) or self._has(place_of(part))
            return part if is_found else Placed(part, self._place(part, place), str(self._module.__file__))
        changes: dict[str, Any] = {}
        for item in dataclasses.fields(part):  # type: ignore[arg-type]
            value, below = getattr(part, item.name), f"{place}.{item.name}"
            if isinstance(value, tuple):
                changes[item.name] = tuple(self._placed(each, f"{below}.{at}") for at, each in enumerate(value))
            elif callable(value) or isinstance(value, Part):
                changes[item.name] = self._placed(value, below)
        return dataclasses.replace(part, **changes)  # type: ignore[type-var]

    def _place(self, value: Any, place: str) -> str:
        names = [name for name, each in vars(self._module).items() if each is value]
        return f"{self.path.name}:{names[0] if names else place}"

    def _has(self, place: str) -> bool:
        return not place.startswith(f"{NONE}:") and self.find(place) is not None

    def find(self, place: str) -> Any:
        """The object at a place such as `lion.py:Lion`, in this file or in an imported local module; else None."""
        file, _, names = place.partition(":")
        modules = [module for name, module in self.modules.items() if Path(name).name == file]
        return next((found for module in modules if (found := _at(module, names.split("."))) is not None), None)


def load_experiment(path: Path, *, needs_config: bool = True) -> ExperimentFile:
    """Run an experiment's file.

    Raises:
            UsageError: The file does not exist, it raises, or it has no CONFIG although one is needed.
    """
    if not os.path.isfile(path):
        raise UsageError(f"{path} does not exist.{_nearest(path)}")
    whole = path.parent.resolve() / path.name
    content = whole.read_bytes()
    # Two files with the same name become two modules.
    name = f"experiment_{path.stem}_{hashlib.sha256(content + bytes(whole)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, whole, loader=_AsRead(name, str(whole)))
    if not spec or not spec.loader or whole.suffix != ".py":
        raise UsageError(f"{path} is not a Python file. An experiment is a Python file with a CONFIG")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Like Python for a script: the file can import its neighbours.
    if sys.path[0] != str(whole.parent):
        sys.path.insert(0, str(whole.parent))
    near = {file: file.read_bytes() for file in local_files(whole)}
    for file in near:
        _forget_others(file, whole.parent)
    try:
        spec.loader.exec_module(module)
        for file, source in near.items():
            remember(file, source)
        found = _file_of(path, module, {whole: as_run(whole) or content, **near})
        if needs_config:
            found.config  # noqa: B018
    except ConfigError as error:
        raise UsageError(f"{path}: {error}") from error
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(whole)]
        at = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"{path}{at} raised {type(error).__name__}: {error}") from error
    return found


def placed(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment. If it is an imported file's CONFIG, its parts are tagged with their places in that file."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and getattr(module, "__dict__", {}).get("CONFIG") is config:
            path = Path(file).resolve()
            if as_run(path) is None:
                remember(path, path.read_bytes())
            return dataclasses.replace(_file_of(path, module, {path: as_run(path) or b""}).config, name=config.name)
    return config


def _file_of(path: Path, module: ModuleType, sources: Mapping[Path, bytes]) -> ExperimentFile:
    """The experiment's file that was run as `module`. The first source is the file itself."""
    whole = next(iter(sources))
    imported = {str(getattr(each, "__file__", "")): each for each in list(sys.modules.values())}
    near = {_name(file, whole.parent): imported[str(file)] for file in sources if str(file) in imported}
    sums = {_name(file, whole.parent): hashlib.sha256(source).hexdigest() for file, source in sources.items()}
    return ExperimentFile(path, near | {whole.name: module}, sums)


class _AsRead(importlib.machinery.SourceFileLoader):
    """Compiles the file's current bytes and remembers them. Python's cached bytecode might be of an earlier text."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file's current bytes."""
        content = Path(self.path).read_bytes()
        remember(Path(self.path), content)
        return self.source_to_code(content, self.path)


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _forget_others(file: Path, folder: Path) -> None:
    """Make Python import a file again if its name belongs to another experiment's module, or if it was edited."""
    words = file.relative_to(folder).with_suffix("").parts
    name = ".".join(words[:-1] if words[-1] == "__init__" else words)
    there = getattr(sys.modules.get(name), "__file__", None)
    is_edited = as_run(file) not in (None, file.read_bytes())
    if there and not is_installed(there) and (there != str(file) or is_edited):
        del sys.modules[name]


def _nearest(path: Path) -> str:
    """A hint with the most similar Python file in the same folder, the current folder, or `experiments`."""
    folders = dict.fromkeys((path.parent, Path(), Path("experiments")))
    there = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    stems = difflib.get_close_matches(path.stem, [file.stem for file in there], n=1)
    near = next((file for file in there if file.stem in stems), None)
    return f" Did you mean {near}?" if near else ""


def _at(thing: Any, names: Sequence[str]) -> Any:
    """A global of a module, a class inside a class, or an object in CONFIG; None if the name is unknown."""
    is_config = names[0] == "CONFIG" and len(names) > 1
    for place, name in enumerate(names):
        if place and not is_config and not isinstance(thing, type):
            return None
        if isinstance(thing, tuple) and is_config:
            thing = thing[int(name)] if name.isdecimal() and int(name) < len(thing) else None
        else:
            thing = vars(thing).get(name) if hasattr(thing, "__dict__") else None
    return thing.value if isinstance(thing, PlainObject) else thing


class Changed(NamedTuple):
    """A file of a run's code that has changed or is missing."""

    file: str
    there: str | None
    """SHA-256 of the file that the run used."""
    here: str | None
    """SHA-256 of the file that was given; None if no file of this name was given."""

    def __str__(self) -> str:
        here = f"SHA-256 {self.here} here" if self.here else "and the file was not given here"
        return f"{self.file} differs from the code that the run used: SHA-256 {self.there} there, {here}"


class Code:
    """The user's own code for a run: files, which are run, or an `ExperimentConfig`."""

    def __init__(self, given: Experiment = ()) -> None:
        self.config = placed(given) if isinstance(given, ExperimentConfig) else None
        names = [given] if isinstance(given, str | Path) else () if isinstance(given, ExperimentConfig) else given
        self.files = [load_experiment(Path(name), needs_config=False) for name in names]

    def changed(self, wanted: Mapping[str, str | None]) -> tuple[Changed, ...]:
        """The files whose SHA-256 differs from the wanted sum.

        If several given files share a name, one match is enough.
        """
        given = [sums_of(code_of(self.config))] if self.config else [file.sums for file in self.files]
        found = []
        for name, there in wanted.items():
            here = [sums[name] for sums in given if name in sums]
            if name != NONE and there not in here:
                found.append(Changed(name, there, here[0] if here else None))
        return tuple(found)

    def find(self, place: str, wanted: Mapping[str, str | None]) -> Any:
        """The object that a run calls `place`, such as `lion.py:Lion`; None if it was not given.

        Args:
            place: The place, as `jaxmlp.experiment.plain.where` names it.
            wanted: Sums of the run's code. Files that match more of these sums are searched first.
        """
        if self.config:
            found = [thing for name, thing in _things(self.config) if name == place]
            if any(thing is not found[0] for thing in found):
                raise ConfigError("experiment", f"has several objects called {place}. Give each a name of its own")
            return found[0] if found else None
        for file in sorted(self.files, key=lambda file: -len(file.sums.items() & wanted.items())):
            thing = file.find(place)
            if callable(thing) and not isinstance(thing, type) and place_of(thing) != place:
                return Placed(thing, place, str(file.path.resolve()))
            if thing is not None:
                return thing
        return None


def _things(config: ExperimentConfig) -> list[tuple[str, Any]]:
    """The experiment's own parts and functions: the place of each, and its class or object."""
    found: list[tuple[str, Any]] = []
    for part in config.parts():
        found.append((where(part), part.value if isinstance(part, PlainObject) else type(part)))
        if not isinstance(part, PlainObject):
            values = [getattr(part, item.name) for item in dataclasses.fields(part)]  # type: ignore[arg-type]
            found += [(place_of(each), each) for each in values if callable(each) and not isinstance(each, Part)]
    return found
