"""Experiment files: Python files with a CONFIG, and the config that a command line makes of it."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from jaxmlp.cli.flags import ExperimentFlags, parse
from jaxmlp.cli.shipped import experiment_path
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, UsageError


def parse_experiment[Chosen: ExperimentFlags](kind: type[Chosen], argv: Sequence[str], command: str) -> Chosen:
    """The flags of a command whose one word is an EXPERIMENT.py, the file's config where no flag changes it.

    The file is the first word, or the first that ends in `.py`; `experiment_path` says which file a word means.

    Raises:
        ConfigError, UsageError, SystemExit: As `flags.parse` and `load_config`.
    """
    at = next((i for i, word in enumerate(argv) if word.endswith(".py") and not word.startswith("-")), 0)
    # To the front, because a flag of many values would take the word for one.
    words = [*argv[at : at + 1], *argv[:at], *argv[at + 1 :]]
    is_given = bool(words) and not words[0].startswith("-")
    default = kind(config=load_config(experiment_path(words[0]))) if is_given else kind()
    chosen, (name,) = parse(default, words, command, "EXPERIMENT.py")
    if not is_given:
        raise UsageError(f"{name} must come before the flags, or end in .py: jaxmlp {command} {name} ...")
    return chosen


def load_config(path: Path) -> ExperimentConfig:
    """The CONFIG of an experiment's file; named after the file where it has no name of its own.

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
    return config


def _nearest(path: Path) -> str:
    """The most similar of the Python files beside it, here, and in `experiments`."""
    folders = dict.fromkeys((path.parent, Path(), Path("experiments")))
    there = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    stems = difflib.get_close_matches(path.stem, [file.stem for file in there], n=1)
    near = next((file for file in there if file.stem in stems), None)
    return f" Did you mean {near}?" if near else ""
