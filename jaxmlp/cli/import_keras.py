"""`jaxmlp import-keras`: make a run from a network that Keras trained."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxmlp.cli import STARTED, Answer, flags, say
from jaxmlp.cli.experiment import parse_changes
from jaxmlp.system import runtime


@dataclass(frozen=True, kw_only=True)
class ImportFlags(flags.DataFlags, flags.DeviceFlags):
    """Make a run from a Keras file (.h5, .weights.h5, .keras) with Dense layers and a softmax.

    The experiment's values apply when `train --resume` trains it further.
    """

    out: Path | None = None
    """Folder of the run. Default: a new folder in JAXMLP_RUNS_DIR, or in runs."""


def run(argv: Sequence[str]) -> Answer:
    """Import FILE and score it on the test split."""
    if {"-h", "--help"} & {*argv}:
        flags.parse(ImportFlags(), argv, "import-keras", "FILE")  # Prints the help and exits, before JAX is loaded.
    from jaxmlp.experiment.config import ExperimentConfig
    from jaxmlp.experiment.mlp import MLP
    from jaxmlp.keras.apart import read_keras

    # The values of the config are flags too. Their defaults come from the file.
    file = Path(parse_changes(ImportFlags, argv, "import-keras", "FILE", ExperimentConfig())[1][0])
    network = read_keras(file)
    default = ExperimentConfig(name=re.sub(r"[^\w.-]", "_", file.name.partition(".")[0]) or "keras")
    sizes: dict[str, Any] = {"hidden_sizes": network.hidden_sizes, "dropout_rate": network.dropout_rate}
    sizes |= {"l1": network.l1, "l2": network.l2}
    if network.activation:
        sizes["activation"] = network.activation
    data_config = dataclasses.replace(
        default.data, validation="test", pixel_scale=network.pixel_scale or default.data.pixel_scale
    )
    default = dataclasses.replace(default, model=MLP(**sizes), data=data_config)
    chosen, _ = parse_changes(ImportFlags, argv, "import-keras", "FILE", default)
    config: ExperimentConfig = chosen.config  # type: ignore[attr-defined]
    for note in network.notes:
        say(f"{file}: {note}")
    runtime.configure(chosen.device)
    from jaxmlp import data
    from jaxmlp.engine.fitting import check_data
    from jaxmlp.keras.imported import import_network
    from jaxmlp.run.find import default_run_dir

    dataset = data.load(config.data, manual_dir=chosen.manual_dir, report=say)
    check_data(config, dataset)
    path = chosen.out or default_run_dir(config, datetime.now(UTC))
    history = import_network(network, config, dataset, path)
    layers = "-".join(map(str, (len(network.layers[0].kernel), *(len(layer.bias) for layer in network.layers))))
    say(
        f"{path}: {layers} {network.activation or MLP().activation}, pixels times {config.data.pixel_scale:.6g}; "
        + " - ".join(f"test_{name}: {value:.4f}" for name, value in history.test.items())
    )
    return Answer({"run_dir": str(path), "stopped": None, **history.result(), "total_s": time.perf_counter() - STARTED})
