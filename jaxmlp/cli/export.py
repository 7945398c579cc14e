"""`jaxmlp export`: write a run's model in another program's format, read it back and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxmlp.cli import Answer, flags, say, writing_to
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class ExportFlags(flags.ModelFlags):
    """Write a run's model for other programs. Each file is read back and compared on 256 examples before it counts."""

    format: Literal["safetensors", "stablehlo", "web", "onnx", "orbax"] = "safetensors"
    """Format. safetensors and orbax: parameters and variables. stablehlo: the network, from inputs to probabilities.
    onnx: the same, for an MLP. web: a page that reads digits as they are drawn."""
    out: Path | None = None
    """Path to write. Default: model.FORMAT in RUN."""


def run(argv: Sequence[str]) -> Answer:
    """Export the model of a RUN."""
    chosen, (name,) = flags.parse(ExportFlags(), argv, "export", "RUN")
    runtime.configure(chosen.device)
    from jaxmlp.export import FORMATS, export
    from jaxmlp.run.find import find_run
    from jaxmlp.run.opening import open_run
    from jaxmlp.trained.inference import load_model

    run_dir = find_run(name)
    path = chosen.out or run_dir / f"model{FORMATS[chosen.format].suffix}"
    run = open_run(run_dir, chosen.experiment)
    model = load_model(run, chosen.checkpoint)
    with writing_to(chosen.out):
        found = export(model, chosen.format, path)
    if found.difference:
        same = f"no answer differs by more than {found.difference:.1e} from predict's"
        same += f", whose own rounding is up to {found.rounding:.1e}"
    else:
        same = "the same bits as predict's"
    say(f"{path}: {found.bytes:,} bytes; read back: on 256 examples {same}")
    changed = [each._asdict() for each in run.code_changed]
    return Answer({"format": chosen.format, **found._asdict(), "path": str(path), "code_changed": changed})
