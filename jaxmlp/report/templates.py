"""How does Jinja render pages that need no other file?"""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from jaxmlp.run import files


def environment() -> jinja2.Environment:
    """Templates of `page/`. The style sheet is their variable `css`."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxmlp.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["css"] = Markup(files.read(Path(__file__).parent / "page" / "style.css").decode())
    return found
