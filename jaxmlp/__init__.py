"""Networks in JAX: faithful to Keras, compiled by the epoch, the same bits every time.

Importing the package loads no other module. Each name loads its module on first use. So the command line can set up
JAX before JAX starts, and the pytest plugin costs a suite nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmlp.engine.fitting import fit as fit
    from jaxmlp.engine.network import summary as summary
    from jaxmlp.errors import CheckFailed as CheckFailed
    from jaxmlp.errors import ConfigError as ConfigError
    from jaxmlp.errors import DataError as DataError
    from jaxmlp.errors import DeviceError as DeviceError
    from jaxmlp.errors import DiskError as DiskError
    from jaxmlp.errors import DivergedError as DivergedError
    from jaxmlp.errors import JaxmlpError as JaxmlpError
    from jaxmlp.errors import PeerLostError as PeerLostError
    from jaxmlp.errors import RunError as RunError
    from jaxmlp.errors import UsageError as UsageError
    from jaxmlp.experiment.augmentations import CutOut as CutOut
    from jaxmlp.experiment.augmentations import Elastic as Elastic
    from jaxmlp.experiment.augmentations import Noise as Noise
    from jaxmlp.experiment.augmentations import Rotate as Rotate
    from jaxmlp.experiment.augmentations import Scale as Scale
    from jaxmlp.experiment.augmentations import Shift as Shift
    from jaxmlp.experiment.config import DataConfig as DataConfig
    from jaxmlp.experiment.config import ExperimentConfig as ExperimentConfig
    from jaxmlp.experiment.controllers import EMA as EMA
    from jaxmlp.experiment.controllers import Budget as Budget
    from jaxmlp.experiment.controllers import EarlyStopping as EarlyStopping
    from jaxmlp.experiment.controllers import ReduceOnPlateau as ReduceOnPlateau
    from jaxmlp.experiment.fields import named as named
    from jaxmlp.experiment.fields import ranged as ranged
    from jaxmlp.experiment.losses import ClippedCrossEntropy as ClippedCrossEntropy
    from jaxmlp.experiment.losses import CrossEntropy as CrossEntropy
    from jaxmlp.experiment.losses import MeanSquaredError as MeanSquaredError
    from jaxmlp.experiment.metrics import F1 as F1
    from jaxmlp.experiment.metrics import Accuracy as Accuracy
    from jaxmlp.experiment.metrics import BrierScore as BrierScore
    from jaxmlp.experiment.metrics import CalibrationError as CalibrationError
    from jaxmlp.experiment.metrics import MeanAbsoluteError as MeanAbsoluteError
    from jaxmlp.experiment.metrics import Precision as Precision
    from jaxmlp.experiment.metrics import Recall as Recall
    from jaxmlp.experiment.metrics import TopK as TopK
    from jaxmlp.experiment.mixing import Mixup as Mixup
    from jaxmlp.experiment.mlp import MLP as MLP
    from jaxmlp.experiment.optax_parts import from_optax as from_optax
    from jaxmlp.experiment.optax_schedules import optax_schedule as optax_schedule
    from jaxmlp.experiment.optimizers import SGD as SGD
    from jaxmlp.experiment.optimizers import Adam as Adam
    from jaxmlp.experiment.optimizers import AdamW as AdamW
    from jaxmlp.experiment.optimizers import LayerRates as LayerRates
    from jaxmlp.experiment.optimizers import RMSprop as RMSprop
    from jaxmlp.experiment.parts import Augmentation as Augmentation
    from jaxmlp.experiment.parts import Controller as Controller
    from jaxmlp.experiment.parts import Loss as Loss
    from jaxmlp.experiment.parts import Metric as Metric
    from jaxmlp.experiment.parts import Model as Model
    from jaxmlp.experiment.parts import Optimizer as Optimizer
    from jaxmlp.experiment.parts import Schedule as Schedule
    from jaxmlp.experiment.schedules import Constant as Constant
    from jaxmlp.experiment.schedules import Cosine as Cosine
    from jaxmlp.experiment.schedules import CosineRestarts as CosineRestarts
    from jaxmlp.experiment.schedules import Exponential as Exponential
    from jaxmlp.experiment.schedules import InverseTime as InverseTime
    from jaxmlp.experiment.schedules import Piecewise as Piecewise
    from jaxmlp.proof.bits import assert_same_bits as assert_same_bits
    from jaxmlp.proof.reproduce import reproduce as reproduce
    from jaxmlp.proof.verify import verify as verify
    from jaxmlp.run.digest import digest as digest
    from jaxmlp.system.runtime import configure as configure
    from jaxmlp.train import TrainState as TrainState
    from jaxmlp.train import train_step as train_step
    from jaxmlp.trained.api import evaluate as evaluate
    from jaxmlp.trained.api import load_model as load_model
    from jaxmlp.trained.api import predict as predict
else:  # Hidden from type checkers, which would accept every misspelt name.

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


__version__ = "0.1.0"

_MODULES = {
    "trained.api": "evaluate load_model predict",
    "experiment.augmentations": "CutOut Elastic Noise Rotate Scale Shift",
    "experiment.config": "DataConfig ExperimentConfig",
    "experiment.controllers": "EMA Budget EarlyStopping ReduceOnPlateau",
    "errors": "CheckFailed ConfigError DataError DeviceError DiskError DivergedError JaxmlpError PeerLostError RunError"
    " UsageError",
    "experiment.fields": "named ranged",
    "engine.fitting": "fit",
    "experiment.losses": "ClippedCrossEntropy CrossEntropy MeanSquaredError",
    "experiment.metrics": "F1 Accuracy BrierScore CalibrationError MeanAbsoluteError Precision Recall TopK",
    "experiment.mixing": "Mixup",
    "experiment.mlp": "MLP",
    "engine.network": "summary",
    "experiment.optax_parts": "from_optax",
    "experiment.optax_schedules": "optax_schedule",
    "experiment.optimizers": "SGD Adam AdamW LayerRates RMSprop",
    "experiment.parts": "Augmentation Controller Loss Metric Model Optimizer Schedule",
    "proof.bits": "assert_same_bits",
    "proof.reproduce": "reproduce",
    "proof.verify": "verify",
    "run.digest": "digest",
    "system.runtime": "configure",
    "experiment.schedules": "Constant Cosine CosineRestarts Exponential InverseTime Piecewise",
    "train": "TrainState train_step",
}
"""The public names of each module, loaded on first use. Type checkers read the imports above instead."""
_HOMES = {name: f"jaxmlp.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = [*_HOMES]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
