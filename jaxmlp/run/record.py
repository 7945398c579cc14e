"""What a run says of itself: its config, how it stands, and why its folder is taken."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, RunError
from jaxmlp.run import files, jsonl

ENDS = ("finished", "interrupted", "diverged", "failed")
"""What the status of a run can be, besides `running`."""

CONFIG, MANIFEST, METRICS = "config.json", "manifest.json", "metrics.jsonl"


def read_config(path: Path) -> ExperimentConfig:
    """The config of the run in the folder `path`.

    Raises:
        RunError: It is damaged.
    """
    try:
        return ExperimentConfig.from_json(files.read(path / CONFIG).decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise RunError(f"{path / CONFIG} is not the config of a run: {error}.") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run in the folder `path`: `binding`, `not_binding`, `status` and `result`.

    Raises:
        RunError: It is damaged.
    """
    try:
        manifest = json.loads(files.read(path / MANIFEST))
        if manifest["status"] in ("running", *ENDS) and isinstance(manifest["result"], dict | None):
            return dict(manifest)
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise RunError(f"{path / MANIFEST} is damaged. Restore it from a copy, or name another folder with --out.")


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
