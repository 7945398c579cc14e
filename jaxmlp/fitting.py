"""Training from Python: `fit` checks what it is given, sets up, and runs the loop."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxmlp import data, distributed, model, runtime, shards
from jaxmlp.config import ExperimentConfig
from jaxmlp.errors import ConfigError, DivergedError, PeerLostError
from jaxmlp.feed import RESIDENT_BYTES
from jaxmlp.history import History
from jaxmlp.loop import Hook, Loop
from jaxmlp.programs import Programs
from jaxmlp.progress import Progress as Progress
from jaxmlp.run.directory import RunDirectory
from jaxmlp.run.manifest import manifest
from jaxmlp.signals import Stop

CHECKPOINT_S = 60.0
"""Seconds between two checkpoints."""


def fit(
    config: ExperimentConfig,
    dataset: data.Dataset | None = None,
    *,
    module: nn.Module | None = None,
    run: RunDirectory | None = None,
    progress: Progress | None = None,
    hooks: Sequence[Hook] = (),
    devices: int | None = None,
    stop: Stop | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    digest_every: int | None = None,
    resident_bytes: int = RESIDENT_BYTES,
) -> History:
    """Train as `config` says; from the newest good checkpoint of `run`, where it has one.

    Args:
        config: The experiment.
        dataset: Its data; by default what `config.data` names.
        module: Any flax module from `images: float32 [batch, height, width, channels]`, scaled, to
            `logits [batch, classes]`, in place of the MLP; dropout draws from its `dropout` stream.
        run: Where to keep metrics, digests and checkpoints; by default nothing is written.
        progress: Told what happens.
        hooks: Called after each epoch.
        devices: How many share a batch; by default as many as divide `config.grad_shards`.
        stop: Watched between chunks; once it holds a signal, the run is saved and ends as `interrupted`.
        checkpoint_s: Seconds between two checkpoints.
        digest_every: Updates between two digests of the state in the run's `trace.jsonl`; by default none is taken.
        resident_bytes: Of a split's images up to which it stays on the device; a larger one streams. Changes no bit.

    Returns:
        The history, with the last state.

    Raises:
        ConfigError: The config does not fit the data or the devices.
        DataError: The data cannot be had.
        DeviceError: The devices are not there.
        DivergedError: Loss or parameters are no longer finite.
        DiskError: The run directory cannot be written.
        PeerLostError: Another process of the run is gone.
        RunError: The run's checkpoints do not fit, or none is whole; or the run's processes differ in what binds bits.
    """
    runtime.configure()
    progress = progress or Progress()
    dataset = dataset or data.load(config.data, report=progress.note)
    check_batch_size(config, dataset)
    mesh = shards.make_mesh(shards.pick_devices(config.grad_shards, devices))
    module = module or model.make_mlp(config.model, dataset.num_classes, config.precision)
    if jax.process_count() > 1:
        distributed.agree(config.to_dict() | manifest(config, dataset.sha256)["binding"])
    programs = Programs(config, dataset, module, mesh, resident_bytes)
    loop = Loop(config, programs, mesh.size, run, progress, hooks, stop or Stop(), checkpoint_s, digest_every)
    try:
        return loop.run_all()
    except DivergedError:
        if run:
            run.finish("diverged", None)
        raise
    except Exception as error:
        if jax.process_count() > 1 and distributed.is_lost_peer(error):
            raise PeerLostError("distributed: another process of this run is gone.") from None
        raise


def check_batch_size(config: ExperimentConfig, dataset: data.Dataset) -> None:
    """Make sure that an epoch has one full batch.

    Raises:
        ConfigError: It has not.
    """
    examples = len(dataset.train.labels)
    if config.batch_size > examples:
        raise ConfigError("batch_size", f"must be at most the {examples} training examples, got {config.batch_size}")
