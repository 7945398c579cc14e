"""How does a Keras network become a run? As step 0 of an experiment that begins with its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax

from jaxmlp import data, train
from jaxmlp.engine.history import History
from jaxmlp.engine.position import Position
from jaxmlp.errors import ConfigError, RunError
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.mlp import MLP
from jaxmlp.keras.network import KerasNetwork
from jaxmlp.run.digest import digest, leaves, restore
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.trained.inference import evaluate_split, load_model


def import_network(network: KerasNetwork, config: ExperimentConfig, dataset: data.Dataset, path: Path) -> History:
    """Begin a run at `path` whose step 0 has the network's weights, and score it on the test split.

    A resume trains it further as `config` says, with its optimizer, epochs, batch size and so on.

    Raises:
        ConfigError: `config.model` is another network.
        RunError: The network does not fit the data, or there is already a run.
        DiskError: The run cannot be written.
    """
    if not isinstance(config.model, MLP):
        raise ConfigError("model", "must be an MLP: Keras files of other networks are not read")
    if config.model.hidden_sizes != network.hidden_sizes:
        problem = f"must be {network.hidden_sizes}, as in the file, got {config.model.hidden_sizes}"
        raise ConfigError("model.hidden_sizes", problem)
    if network.activation and config.model.activation != network.activation:
        problem = f"must be {network.activation}, as in the file, got {config.model.activation}"
        raise ConfigError("model.activation", problem)
    facts = dataset.facts
    found = len(network.layers[0].kernel), len(network.layers[-1].bias)
    if found != (wanted := (math.prod(facts.image_shape or ()), dataset.num_classes)):
        raise RunError(
            f"the file maps {found[0]} numbers to {found[1]} classes, but {config.data.name} needs {wanted}."
        )
    state = _state(network, config, dataset)
    on_data, zeros = config.on_data(facts.outputs, 1), train.DeviceSplit.of(facts.zeros(1))
    position = Position(state, train.zero_sums(on_data, state, zeros))
    # Recorded because the config does not say where these weights came from.
    record = {**manifest(config, dataset), "imported": {"params_sha256": digest(state.params)}}
    with RunDirectory.create(path, config, record) as run:
        run.save_checkpoint(0, position.arrays(), position.meta())
        scored = evaluate_split(load_model(run), dataset.test)
        history = History(
            config=config,
            dataset=dataset,
            records=(),
            state=state,
            status="interrupted",
            test={"loss": scored.loss, **scored.metrics},
            params_sha256=digest(state.params),
            state_sha256=digest(state),
            compile_s=0.0,
            train_s=0.0,
            devices=1,
            processes=1,
        )
        run.finish(history.status, history.result())
    return history


def _state(network: KerasNetwork, config: ExperimentConfig, dataset: data.Dataset) -> train.TrainState:
    """The state before the first update, with the network's parameters."""
    on_data = config.on_data(dataset.num_classes, -(-len(dataset.train.targets) // config.batch_size))
    state = train.init_state(on_data, dataset.facts.zeros(1).inputs)
    params: dict[str, Any] = {f"Dense_{i}": layer._asdict() for i, layer in enumerate(network.layers)}
    imported: train.TrainState = jax.device_get(state._replace(params=restore(state.params, leaves(params))))
    return imported
