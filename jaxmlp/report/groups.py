"""Which runs differ only in their seed? Each such group has a name and results over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxmlp.errors import printable
from jaxmlp.report.facts import RunFacts
from jaxmlp.run.listing import different_values
from jaxmlp.sweep.result import SeedSpread, setting_name


class RunGroup(NamedTuple):
    """Runs of one experiment."""

    name: str
    """Name that distinguishes the group in the report."""
    values: dict[str, Any]
    """Values of the config fields, by dotted path, in which groups differ."""
    runs: list[RunFacts]

    def of_seeds(self) -> list[RunFacts]:
        """One run per seed: the first with a result. Runs with the same seed are not independent."""
        found: dict[int, RunFacts] = {}
        for run in sorted(self.runs, key=lambda run: run.test_accuracy is None):
            found.setdefault(run.config.seed, run)
        return list(found.values())

    def values_of(self, figure: str) -> list[float]:
        """`test_accuracy` or `test_loss` of the seeds that have it."""
        return [value for run in self.of_seeds() if (value := getattr(run, figure)) is not None]

    def spread(self, figure: str) -> SeedSpread | None:
        """Spread of `test_accuracy` or `test_loss` over the seeds that have it."""
        return SeedSpread.of(self.values_of(figure))


def group(runs: Sequence[RunFacts]) -> list[RunGroup]:
    """The groups, in the order of their first runs."""
    found: dict[tuple[Any, str], list[RunFacts]] = {}
    for run in runs:
        found.setdefault((run.experiment, run.data_sha256), []).append(run)
    differences = different_values([experiment.to_dict() for experiment, _ in found])
    groups = []
    for index, together in enumerate(found.values()):
        values = {field: each[index] for field, each in differences.items()}
        name = setting_name(values, short=True) if values else together[0].config.name
        seeds = {run.config.seed for run in together}
        what = f"{len(seeds)} seeds" if len(seeds) > 1 else f"{len(together)} runs of seed {seeds.pop()}"
        name = printable(together[0].name, lines=False) if len(together) == 1 else f"{name}, {what}"
        groups.append(RunGroup(name, values, together))
    return groups
