"""How are the logs of a run written and read? One JSON object per line, added during or after an epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmlp.errors import RunError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.run import files
from jaxmlp.run.known import wrong_fields


def finite(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line and hand it to the system, so that it outlives this process.

    Raises:
        DiskError: The line could not be written. The lines before it are intact.
    """
    text = json.dumps(finite(line), allow_nan=False)
    with files.trying_to(f"write {path}, whose lines before are intact"), open(path, "ab") as file:
        file.write(text.encode() + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines, in order. Text after the last newline was left by a killed process and is ignored.

    Raises:
        RunError: A whole line is not a JSON object with an epoch.
    """
    return [line for _, line in _lines(path)]


def cut_back(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Keep only the lines for which `is_kept` is true.

    Raises:
        RunError: A whole line is not a JSON object with an epoch.
        DiskError: The file could not be written and is unchanged.
    """
    kept = b"".join(raw + b"\n" for raw, line in _lines(path) if is_kept(line))
    if kept != files.read(path):
        files.write(path, kept)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    whole = files.read(path).split(b"\n")[:-1]
    return [(raw, _parsed(path, number, raw)) for number, raw in enumerate(whole, start=1)]


def _parsed(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        line = parse_json(raw)
        if isinstance(line, dict) and "epoch" in line and not wrong_fields(line):
            return line
    except ValueError:
        pass
    raise RunError(f"{path}: line {number} is damaged. Restore the file from a copy, or train again in another folder.")
