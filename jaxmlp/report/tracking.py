"""How are TensorBoard's files written without TensorFlow? By a hook. A hook for another tracker looks the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.writer import SummaryWriter

from jaxmlp import train
from jaxmlp.engine.history import EpochRecord
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.fields import dotted
from jaxmlp.report.pictures import strongest_tiles, weights_sheet

TAKEN = (bool, int, float, str)
"""Types of hyperparameters that TensorBoard accepts. Others become text."""


class TensorBoard:
    """A hook for `fit`: an epoch's figures as scalars, by updates, and the first layer's weights as an image.

    Args:
        folder: Folder of the files. A resumed run writes to the same folder and hides what it trains again.
        config: The experiment, whose values become the hyperparameters.
        image_shape: Height, width and channels of an image. None if inputs are not images.
    """

    def __init__(self, folder: Path, config: ExperimentConfig, image_shape: tuple[int, int, int] | None) -> None:
        self.folder = folder
        self.config = config
        self.image_shape = image_shape
        self._writer: Any = None

    def __call__(self, record: EpochRecord, state: train.TrainState) -> None:
        """Write the figures of an epoch."""
        # Made late, because only now the first update of a resumed run is known.
        self._writer = self._writer or SummaryWriter(str(self.folder), purge_step=record.steps)
        for name, value in record.line().items():
            if value is not None and name not in ("epoch", "steps"):
                self._writer.add_scalar(name, value, record.steps)
        kernel = state.params.get("Dense_0", {}).get("kernel")
        if kernel is not None and self.image_shape and len(kernel) == np.prod(self.image_shape):
            sheet = weights_sheet(strongest_tiles(jax.device_get(kernel), self.image_shape))
            self._writer.add_image("first_layer", sheet, record.steps, dataformats="HWC")
        self._writer.flush()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the hyperparameters with the run's result, as in `History.result`."""
        if self._writer:
            figures = {name: value for name, value in result.items() if isinstance(value, float)}
            values = dotted(self.config.to_dict())
            taken = {name: value if isinstance(value, TAKEN) else str(value) for name, value in values.items()}
            self._writer.add_hparams(taken, figures, name="result")
            self._writer.close()
