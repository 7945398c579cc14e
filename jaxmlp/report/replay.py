"""A run and its training again, side by side: update by update, leaf by leaf, the first difference in front."""

from __future__ import annotations

from pathlib import Path

from jaxmlp.proof.reproduce import Reproduction
from jaxmlp.report.templates import environment
from jaxmlp.run import files

SHOWN = 200
"""Updates that are listed, the last ones that were compared."""


def write_replay(found: Reproduction, name: str, out: Path) -> None:
    """Write the page to `out`.

    Args:
        found: What `reproduce` found.
        name: Of the run, for people.
        out: The file.

    Raises:
        DiskError: It cannot be written.
    """
    compared = sorted(found.compared, key=lambda each: each.step)
    page = (
        environment()
        .get_template("replay.html")
        .render(found=found, name=name, compared=compared[-SHOWN:], left_out=max(0, len(compared) - SHOWN))
    )
    files.write(out, page.encode(errors="backslashreplace"))
