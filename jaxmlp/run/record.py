"""What does a run say of itself: its config, its status, and why its folder is taken?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlp.errors import ConfigError, RunError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.run import code, files, jsonl
from jaxmlp.run.known import is_code, wrong_fields

if TYPE_CHECKING:
    from jaxmlp.experiment.config import ExperimentConfig
    from jaxmlp.experiment.plain import Find

FORMAT = 2
"""Version of the format of a run's folder. Version 1 had no number."""

ENDS = ("finished", "interrupted", "diverged", "failed")
"""Values of a run's status, besides `running`."""

MAX_DOCUMENT = 1 << 22
"""Largest config or manifest that is read, in bytes."""

CONFIG, MANIFEST, METRICS = "config.json", "manifest.json", "metrics.jsonl"


def read_plain_config(path: Path) -> dict[str, Any]:
    """The config of the run in the folder `path` as JSON types, for readers that need no code of the user's own.

    Raises:
        RunError: The file is damaged.
    """
    try:
        plain = parse_json(files.read(path / CONFIG, MAX_DOCUMENT))
        if (
            isinstance(plain, dict)
            and type(plain["seed"]) is type(plain["epochs"]) is int
            and plain["name"] is not None
        ):
            return plain
        raise ValueError("a value is missing")
    except (KeyError, ValueError) as error:
        raise RunError(f"{path / CONFIG} is not the config of a run: {error}.") from error


def read_config(path: Path, find: Find | None = None) -> ExperimentConfig:
    """The config of the run in the folder `path`.

    Args:
        path: The folder.
        find: Resolves the user's own parts, as in `ExperimentConfig.from_dict`.

    Raises:
        RunError: The file is damaged.
    """
    from jaxmlp.experiment.config import ExperimentConfig

    try:
        return ExperimentConfig.from_json(files.read(path / CONFIG, MAX_DOCUMENT).decode(), find)
    except (ConfigError, UnicodeDecodeError) as error:
        raise RunError(f"{path / CONFIG} is not the config of a run: {error}.") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in the folder `path`: `binding`, `not_binding`, `status` and `result`.

    Raises:
        RunError: The file is damaged.
    """
    try:
        manifest = checked_manifest(path, "run", "Train it again")
        if not manifest["result"] or manifest["result"].keys() >= {"test_loss", "test_accuracy"}:
            return manifest
    except ValueError:
        pass
    raise RunError(f"{path / MANIFEST} is damaged. Restore it from a copy, or name another folder with --out.")


def checked_manifest(path: Path, kind: str, again: str) -> dict[str, Any]:
    """The manifest in the folder `path`, after checking that its parts have the expected types.

    Args:
        path: The folder.
        kind: What the folder is: a run or a sweep.
        again: What to do about a folder of another format.

    Raises:
        RunError: The file cannot be read, or is of another format.
        ValueError: A part has another type.
    """
    found = parse_json(files.read(path / MANIFEST, MAX_DOCUMENT))
    if isinstance(found, dict) and (version := found.get("format", 1)) != FORMAT:
        raise RunError(f"{path} is a {kind} of format {version}, but this jaxmlp reads format {FORMAT}. {again}.")
    if isinstance(found, dict) and found.get("status") in ("running", *ENDS):
        objects = ("binding", "not_binding", "imported", "start", "result", "data")
        lists = [found.get(name) or [] for name in (code.ACCEPTED, "lengthened")]
        parts = [found.get(name) or {} for name in objects]
        parts += [part for each in lists for part in (each if isinstance(each, list) else [None])]
        names = (code.CODE, code.DATA_CODE)
        if all(
            isinstance(part, dict)
            and not wrong_fields(part)
            and all(is_code(part[name]) for name in names if name in part)
            for part in parts
        ):
            kinds = dict.fromkeys(objects, dict) | {code.ACCEPTED: list, "lengthened": list}
            return {"result": None} | {
                name: value for name, value in found.items() if isinstance(value, kinds.get(name, object))
            }
    raise ValueError("not a manifest")


def taken(path: Path) -> str:
    """Why no run can begin in the folder `path`, which holds a run, and what to do."""
    manifest, epochs = read_manifest(path), read_plain_config(path)["epochs"]
    files_of_code = code.flags(code.files_to_name(read_plain_config(path), manifest))
    resume = f"`jaxmlp train --resume {shlex.quote(str(path))}{files_of_code}`"
    if manifest["status"] == "finished":
        accuracy = (manifest["result"] or {}).get("test_accuracy")
        score = f" (test accuracy {accuracy:.4f})" if isinstance(accuracy, float) else ""
        return f"{path} holds a finished run{score}. {resume} prints its result; or name another folder with --out."
    status = "interrupted" if manifest["status"] == "running" else manifest["status"]
    done = f"{status}, {len(jsonl.read(path / METRICS))} of {epochs} epochs done"
    return f"{path} holds an unfinished run ({done}). Continue with {resume}, or name another folder with --out."
