"""`experiments/benchmark_peers.py`: the experiment's time here and with other libraries, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxmlp import runtime
from jaxmlp.cli import Answer, flags
from jaxmlp.cli.experiment import parse_experiment
from jaxmlp.fields import ranged


@dataclass(frozen=True, kw_only=True)
class PeersFlags(flags.DataFlags, flags.DeviceFlags):
    """Train the experiment with several libraries, an epoch of each in turns, and show times and accuracies."""

    peers: tuple[str, ...] = (
        "jaxmlp",
        "jaxmlp-bfloat16",
        "keras",
        "keras-bfloat16",
        "torch",
        "torch-bfloat16",
        "torch-compiled",
        "torch-compiled-bfloat16",
    )
    """Which, the first as the base of the ratios; those not installed are left out. There is sklearn too: slow, and of
    another rule."""
    python_keras: Path | None = None
    """The interpreter that has Keras 3 and JAX, by default this one."""
    python_torch: Path | None = None
    """The interpreter that has PyTorch, by default this one."""
    python_sklearn: Path | None = None
    """The interpreter that has scikit-learn, by default this one."""
    whole_runs: int = ranged(2, "[0, 100]")
    """How often each trains the whole experiment alone, the first time with nothing compiled before."""


def run(argv: Sequence[str]) -> Answer:
    """Measure, and answer with every time."""
    chosen, config = parse_experiment(PeersFlags, argv, "peers")
    from jaxmlp import data
    from jaxmlp.bench.race import race, table
    from jaxmlp.run.manifest import manifest

    dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=print)
    given = {"keras": chosen.python_keras, "torch": chosen.python_torch, "sklearn": chosen.python_sklearn}
    pythons = {library: python for library, python in given.items() if python}
    peers = race(config, dataset, chosen.peers, pythons=pythons, device=chosen.device, whole_runs=chosen.whole_runs)
    print(table(peers))
    runtime.configure(chosen.device)  # Not before: JAX would take an accelerator's memory for this process.
    facts = manifest(config, dataset)
    return Answer({"peers": [peer.document(peers[0]) for peer in peers], "manifest": facts})
