"""`experiments/benchmark_peers.py`: time the experiment here and in other libraries, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp.bench.peer import PEERS
from jaxmlp.cli import Answer, flags
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.experiment.fields import ranged
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class PeersFlags(flags.DataFlags, flags.DeviceFlags):
    """Train the experiment with several libraries, one epoch each in turns, and show times and accuracies."""

    peers: tuple[str, ...] = tuple(name for name in PEERS if name != "sklearn")
    """Libraries to compare. The first is the base of the ratios. Libraries that are not installed are left out. sklearn
    is available too: it is slow and has another update rule."""
    python_keras: Path | None = None
    """Python interpreter that has Keras 3 and JAX. Default: this one."""
    python_torch: Path | None = None
    """Python interpreter that has PyTorch. Default: this one."""
    python_sklearn: Path | None = None
    """Python interpreter that has scikit-learn. Default: this one."""
    whole_runs: int = ranged(2, "[0, 100]")
    """Number of times that each library trains the whole experiment alone. The first time nothing is compiled yet."""


def run(argv: Sequence[str]) -> Answer:
    """Measure, and return every time."""
    chosen, config = parse_experiment(PeersFlags, argv, "peers")
    from jaxmlp import data
    from jaxmlp.bench.race import race, table
    from jaxmlp.run.manifest import manifest

    dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=print)
    given = {"keras": chosen.python_keras, "torch": chosen.python_torch, "sklearn": chosen.python_sklearn}
    pythons = {library: python for library, python in given.items() if python}
    peers = race(config, dataset, chosen.peers, pythons=pythons, device=chosen.device, whole_runs=chosen.whole_runs)
    print(table(peers))
    runtime.configure(chosen.device)  # Not earlier: JAX would reserve the accelerator's memory for this process.
    return Answer({"peers": [peer.document(peers[0]) for peer in peers], "manifest": manifest(config, dataset)})
