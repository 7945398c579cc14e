"""`jaxmlp report`: everything about runs in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.cli import Answer, flags, say, writing_to
from jaxmlp.errors import UsageError
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class ReportFlags(flags.ModelFlags, flags.DataFlags):
    """Write one self-contained HTML file about runs: results, curves, mistakes, weights.

    A folder of runs, such as a sweep, counts as its runs.

    Several runs are shown side by side and compared on the same test images. The plots are also written to plots/
    beside the file.
    """

    out: Path | None = None
    """File to write. Default: report.html in RUN, or in the current folder for several runs."""


def run(argv: Sequence[str]) -> Answer:
    """Write the report of RUNs."""
    chosen, names = flags.parse(ReportFlags(), argv, "report", "RUN...")
    runtime.configure(chosen.device)
    from jaxmlp.run.find import find_run

    try:
        from jaxmlp.report import expand, gather, write_report
    except ModuleNotFoundError as error:
        raise UsageError(f"report needs {error.name}: pip install 'jaxmlp[report]'") from None
    paths = [find_run(name, or_sweep=True) for name in names]
    runs = gather(
        expand(paths), chosen.checkpoint, experiment=chosen.experiment, manual_dir=chosen.manual_dir, report=say
    )
    out = chosen.out or (paths[0] if len(paths) == 1 else Path()) / "report.html"
    with writing_to(chosen.out):
        written = write_report(runs, out)
    for run in runs:
        if run.test_accuracy is None or run.ci95 is None:
            say(f"{run.name}: {run.status}")
        else:
            low, high = run.ci95
            say(f"{run.name}: test_accuracy: {run.test_accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})")
    if lanes := [run for run in runs if run.lane and run.status != "diverged"]:
        say(
            f"{lanes[0].path} kept no runs: the report lacks mistakes, calibration and weights. Sweep with --keep-runs."
        )
    first = next((run.name for run in runs if run.answers), "")
    for each in written.versus:
        split = f"{each.comparison.only_second} images right only here, {each.comparison.only_first} only there"
        say(f"{each.run.name} against {first}: {split}, McNemar p = {each.comparison.p:.3g}")
    say(f"{written.report}: {written.bytes / 1e6:.1f} MB")
    return Answer(
        {
            "report": str(written.report),
            "bytes": written.bytes,
            "plots": [str(path) for path in written.plots],
            "runs": [
                {
                    "run_dir": str(run.path),
                    "seed": run.config.seed,
                    "status": run.status,
                    "loss": run.test_loss,
                    "accuracy": run.test_accuracy,
                    "ci95": run.ci95 and list(run.ci95),
                    "calibration_error": run.answers and run.answers.calibration and run.answers.calibration.error,
                    "code_changed": [each._asdict() for each in run.code_changed],
                }
                for run in runs
            ],
            "mcnemar": [
                {"run_dir": str(each.run.path), **each.comparison._asdict(), "adjusted_p": each.adjusted_p}
                for each in written.versus
            ],
        }
    )
