"""What a run says of itself: its config, how it stands, and why its folder is taken."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, RunError
from jaxmlp.fields import parse_json
from jaxmlp.run import files, jsonl
from jaxmlp.run.known import wrong_fields

ENDS = ("finished", "interrupted", "diverged", "failed")
"""What the status of a run can be, besides `running`."""

MAX_DOCUMENT = 1 << 22
"""Bytes of the longest config or manifest that is read."""

CONFIG, MANIFEST, METRICS = "config.json", "manifest.json", "metrics.jsonl"


def read_config(path: Path) -> ExperimentConfig:
    """The config of the run in the folder `path`.

    Raises:
        RunError: It is damaged.
    """
    try:
        return ExperimentConfig.from_json(files.read(path / CONFIG, MAX_DOCUMENT).decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise RunError(f"{path / CONFIG} is not the config of a run: {error}.") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in the folder `path`: `binding`, `not_binding`, `status` and `result`.

    Raises:
        RunError: It is damaged.
    """
    try:
        manifest = checked_manifest(parse_json(files.read(path / MANIFEST, MAX_DOCUMENT)))
        if not manifest["result"] or manifest["result"].keys() >= {"test_loss", "test_accuracy"}:
            return manifest
    except ValueError:
        pass
    raise RunError(f"{path / MANIFEST} is damaged. Restore it from a copy, or name another folder with --out.")


def checked_manifest(found: Any) -> dict[str, Any]:
    """The manifest of a run or sweep, whose parts are of the types that their readers count on.

    Raises:
        ValueError: They are not.
    """
    if isinstance(found, dict) and found.get("status") in ("running", *ENDS):
        parts = [found.get(name) or {} for name in ("binding", "not_binding", "imported", "result")]
        if all(isinstance(part, dict) and not wrong_fields(part) for part in parts):
            return {"result": None, **found}
    raise ValueError("it is no manifest")


def taken(path: Path) -> str:
    """Why no run can begin in the folder `path`, which holds one, and the ways on."""
    manifest, config = read_manifest(path), read_config(path)
    resume = f"`jaxmlp train --resume {shlex.quote(str(path))}`"
    if manifest["status"] == "finished":
        accuracy = (manifest["result"] or {}).get("test_accuracy")
        told = f" (test accuracy {accuracy:.4f})" if isinstance(accuracy, float) else ""
        return f"{path} holds a finished run{told}. {resume} prints its result; or name another folder with --out."
    status = "interrupted" if manifest["status"] == "running" else manifest["status"]
    done = f"{status}, {len(jsonl.read(path / METRICS))} of {config.epochs} epochs done"
    return f"{path} holds an unfinished run ({done}). Go on with {resume}, or name another folder with --out."
