"""Which controllers ship, and how do a run's controllers act on its state?

They act after an update, after an epoch, and at the end. A controller is one class. Its own state, `own`, lies in
`TrainState.controllers` under its name. So a resumed run, a lane of a sweep and any number of devices give the bits of
an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.experiment.fields import ranged
from jaxmlp.experiment.parts import Controller, Epoch


class EarlyStopping(Controller):
    """Stop if a figure has not improved for `patience` epochs. Source: Keras 3, `EarlyStopping`.

    An epoch improves if its figure is better than the best so far by more than `min_delta`. Figures are compared in
    float32. With `restore_best` the run ends with the parameters and variables of its best epoch, even if it was not
    stopped early. The state keeps the last epoch's values, so the run can continue.
    """

    kind: ClassVar[str] = "early_stopping"

    monitor: str = "val_loss"
    """Figure of an epoch, such as loss, val_loss or val_accuracy."""
    patience: int = ranged(5, "[0, 1000000]", traced=True)
    """Number of epochs without improvement before the run stops. 0 and 1 both stop at the first such epoch."""
    min_delta: float = ranged(0.0, "[0, inf)", traced=True)
    """Smallest change of the figure that counts as an improvement."""
    restore_best: bool = False
    """Whether the run ends with the weights of its best epoch."""
    direction: Literal["auto", "min", "max"] = "auto"
    """Whether a smaller (min) or a larger (max) figure is better. auto asks the metric."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """The state before the first epoch."""
        state = {"best": jnp.float32(jnp.inf), "best_epoch": jnp.int32(0), "epoch": jnp.int32(0), "wait": jnp.int32(0)}
        weights = {"params": params, "variables": variables}
        return state | ({"restored": jnp.int32(0), "weights": weights} if self.restore_best else {})

    def after_epoch(self, own: dict[str, Any], epoch: Epoch) -> dict[str, Any]:
        """The state after an epoch."""
        score, number = _score(self, epoch), own["epoch"] + 1
        is_better = score + self.min_delta < own["best"]
        after = {
            "best": jnp.where(is_better, score, own["best"]),
            "best_epoch": jnp.where(is_better, number, own["best_epoch"]),
            "epoch": number,
            "wait": jnp.where(is_better, 0, own["wait"] + 1),
        }
        if self.restore_best:
            # Also after a first epoch whose figure is infinite: there are no other weights to restore.
            keep = is_better | (number == 1)
            weights = {"params": epoch.params, "variables": epoch.variables}
            after |= {"weights": _where(keep, weights, own["weights"]), "restored": own["restored"]}
        return after

    def why_stop(self, own: Mapping[str, Any], records: Sequence[Any]) -> str | None:
        """A message if `patience` epochs passed without improvement."""
        wait, best_epoch = int(own["wait"]), int(own["best_epoch"])
        if wait < max(self.patience, 1) or int(own["epoch"]) < 2:
            return None
        figure = next((record.figures[self.monitor] for record in records if record.epoch == best_epoch), None)
        best = "none" if figure is None else f"{figure:.6g} in epoch {best_epoch}"
        restored = ", whose weights are restored" if self.restore_best else ""
        return f"{self.monitor} has not improved for {_counted(wait, 'epoch')}; the best was {best}{restored}"


class ReduceOnPlateau(Controller):
    """Multiply the learning rate by `factor` if a figure has not improved for `patience` epochs.

    The factor applies to the rate that the schedule gives. Source: Keras 3, `ReduceLROnPlateau`. Its `min_lr` equals
    `min_factor` times the learning rate here.
    """

    kind: ClassVar[str] = "reduce_on_plateau"

    monitor: str = "val_loss"
    """Figure of an epoch, such as loss, val_loss or val_accuracy."""
    factor: float = ranged(0.1, "(0, 1)", traced=True)
    """Factor of each reduction of the learning rate."""
    patience: int = ranged(10, "[0, 1000000]", traced=True)
    """Number of epochs without improvement before a reduction."""
    min_delta: float = ranged(1e-4, "[0, inf)", traced=True)
    """Smallest change of the figure that counts as an improvement."""
    cooldown: int = ranged(0, "[0, 1000000]", traced=True)
    """Number of epochs after a reduction that do not count towards `patience`."""
    min_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """Smallest product of all reductions."""
    direction: Literal["auto", "min", "max"] = "auto"
    """Whether a smaller (min) or a larger (max) figure is better. auto asks the metric."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """The state before the first epoch: no reduction."""
        counts = {"wait": jnp.int32(0), "cooldown": jnp.int32(0)}
        return {"best": jnp.float32(jnp.inf), "factor": jnp.float32(1), **counts}

    def after_epoch(self, own: dict[str, Any], epoch: Epoch) -> dict[str, Any]:
        """The state after an epoch."""
        score = _score(self, epoch)
        cooldown = jnp.maximum(own["cooldown"] - 1, 0)
        is_better = score + self.min_delta < own["best"]
        # As in Keras, the last epoch of a cooldown already counts.
        is_counted = ~is_better & (cooldown == 0)
        wait = jnp.where(is_better | (own["cooldown"] > 0), 0, own["wait"]) + is_counted.astype(jnp.int32)
        reduce = is_counted & (wait >= self.patience) & (own["factor"] > self.min_factor)
        return {
            "best": jnp.where(is_better, score, own["best"]),
            "factor": jnp.where(reduce, jnp.maximum(own["factor"] * self.factor, self.min_factor), own["factor"]),
            "wait": jnp.where(reduce, 0, wait),
            "cooldown": jnp.where(reduce, self.cooldown, cooldown),
        }

    def rate_factor(self, own: dict[str, Any]) -> Float[Array, ""]:
        """Product of all reductions so far."""
        factor: Float[Array, ""] = own["factor"]
        return factor


class Budget(Controller):
    """Stop after a number of seconds or updates, within an epoch if need be.

    The partial epoch is evaluated and counts as an epoch. With `seconds`, the clock decides how many updates a run
    makes.
    """

    kind: ClassVar[str] = "budget"

    seconds: float | None = ranged(None, "(0, inf)", host=True)
    """Limit on the seconds of training and evaluation. Seconds before an interruption count."""
    steps: int | None = ranged(None, "[1, 2147483647]", host=True)
    """Limit on the number of updates."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """Empty: the budget reads the run's log instead."""
        return {}

    def steps_left(self, steps: int, seconds: float) -> int | None:
        """Number of updates left: 0 if the time is used up."""
        if self.seconds is not None and seconds >= self.seconds:
            return 0
        return None if self.steps is None else max(0, self.steps - steps)

    def why_stop(self, own: Mapping[str, Any], records: Sequence[Any]) -> str | None:
        """A message if a limit is reached."""
        used_s, steps = sum(record.seconds for record in records), records[-1].steps
        if self.seconds is not None and used_s >= self.seconds:
            return f"{self.seconds:g} s are used up"
        if self.steps is not None and steps >= self.steps:
            return f"{_counted(self.steps, 'update')} are made"
        return None


class EMA(Controller):
    """Keep an exponential moving average of the parameters and score it beside them. It changes no update.

    average = decay * average + (1 - decay) * params, starting from the parameters after the first update. Statistics of
    the module, such as BatchNorm's, are not averaged. Source: Keras 3, `use_ema`.
    """

    kind: ClassVar[str] = "ema"

    decay: float = ranged(0.999, "[0, 1)", traced=True)
    """Weight of the old average in each update."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """A placeholder for the average, which the first update replaces, and the number of updates."""
        return {"params": params, "updates": jnp.int32(0)}

    def after_update(self, own: dict[str, Any], params: Any) -> dict[str, Any]:
        """The state after an update."""
        decay = jnp.where(own["updates"] == 0, jnp.float32(0), self.decay)

        def averaged(old: Array, new: Array) -> Array:
            return old * decay.astype(old.dtype) + new * (1 - decay).astype(new.dtype)

        return {"params": jax.tree.map(averaged, own["params"], params), "updates": own["updates"] + 1}


def _score(controller: EarlyStopping | ReduceOnPlateau, epoch: Epoch) -> Float[Array, ""]:
    """The monitored figure, negated if larger is better. A lower score is better."""
    name, direction = controller.monitor, controller.direction
    larger_is_better = name in epoch.larger_is_better if direction == "auto" else direction == "max"
    return -epoch.figures[name] if larger_is_better else epoch.figures[name]


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The tree `new` if the condition holds, else the tree `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# The functions below act for all controllers of an experiment. `config` is the experiment, `state` its `TrainState`.


def by_name(config: Any) -> dict[str, Controller]:
    """The controllers, by the names of their states: their kinds, and `ema.2` for the second of kind `ema`."""
    named: dict[str, Controller] = {}
    for controller in config.controllers:
        kind = controller.kind or type(controller).__name__
        number = 1 + sum(name.partition(".")[0] == kind for name in named)
        named[kind if number == 1 else f"{kind}.{number}"] = controller
    return named


def init(config: Any, params: Any, variables: Any) -> dict[str, Any]:
    """The states before the first update. Controllers with an empty state are left out."""
    return {name: own for name, each in by_name(config).items() if (own := each.init(params, variables))}


def steered(config: Any, states: Mapping[str, Any]) -> Any:
    """The experiment with its learning rate multiplied by the controllers' factors."""
    asked = [each.rate_factor(states[name]) for name, each in by_name(config).items() if name in states]
    factors = [factor for factor in asked if factor is not None]
    if not factors:
        return config
    rate = functools.reduce(lambda a, b: a * b, factors, config.optimizer.learning_rate)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))


def after_update(config: Any, state: Any) -> Any:
    """The state after its controllers have seen an update."""
    states, named = state.controllers, by_name(config)
    after = {name: each.after_update(states[name], state.params) for name, each in named.items() if name in states}
    return state._replace(controllers={**states, **after})


@jax.jit
def after_epoch(config: Any, state: Any, figures: Mapping[str, Float[Array, ""]]) -> Any:
    """The state after its controllers have seen an epoch with these figures."""
    larger_is_better = frozenset(name for name in figures if config.validated.get(name.removeprefix("val_")))
    epoch = Epoch(figures, larger_is_better, state.params, state.variables)
    states, named = state.controllers, by_name(config)
    after = {name: each.after_epoch(states[name], epoch) for name, each in named.items() if name in states}
    return state._replace(controllers={**states, **after})


@functools.partial(jax.jit, static_argnames="back")
def swap_best_weights(state: Any, *, back: bool) -> Any:
    """Exchange the weights of the last epoch, in the state, for those of the best epoch, in the controller's state.

    `back` exchanges them back. If they are exchanged already, nothing changes, so neither does a resume at a run's end.
    Without a controller that restores weights, the state is unchanged.
    """
    for name, own in state.controllers.items():
        if "restored" in own:
            exchange = own["restored"] == int(back)
            weights = {"params": state.params, "variables": state.variables}
            after = {
                **own,
                "restored": jnp.full_like(own["restored"], int(not back)),
                "weights": _where(exchange, weights, own["weights"]),
            }
            controllers = {**state.controllers, name: after}
            state = state._replace(**_where(exchange, own["weights"], weights), controllers=controllers)
    return state


def averages(config: Any) -> bool:
    """Whether the experiment keeps a moving average of the parameters."""
    return any(isinstance(each, EMA) for each in config.controllers)


def averaged(state: Any) -> Any:
    """The state with the moving average in place of the parameters; None without a moving average."""
    own = state.controllers.get(EMA.kind)
    return state._replace(params=own["params"]) if own else None


def restores(config: Any) -> bool:
    """Whether the run ends with the weights of its best epoch."""
    return any(getattr(each, "restore_best", False) for each in config.controllers)


def steps_left(config: Any, steps: int, seconds: float) -> int | None:
    """Number of updates that the run may still make, after `steps` and `seconds`. None without a limit."""
    limits = [each.steps_left(steps, seconds) for each in config.controllers]
    return min((limit for limit in limits if limit is not None), default=None)


def why_stop(config: Any, states: Mapping[str, Any], records: Sequence[Any]) -> str | None:
    """Why the run must end after these epochs, else None. `states` are on the host, without nested trees."""
    for name, each in by_name(config).items():
        if why := each.why_stop(states.get(name, {}), records):
            return f"{name}: {why}"
    return None


def check_controllers(config: Any) -> None:
    """Check that the controllers fit each other and the optimizer.

    Raises:
        ConfigError: Two controllers would restore weights, or keep an average; or the optimizer has no learning rate
            that a controller could change.
    """
    for what, several in (
        ("with restore_best", [each for each in config.controllers if getattr(each, "restore_best", False)]),
        ("of kind ema", [each for each in config.controllers if isinstance(each, EMA)]),
    ):
        if len(several) > 1:
            raise ConfigError("controllers", f"must have at most one {what}, got {len(several)}")
    steers = any(type(each).rate_factor is not Controller.rate_factor for each in config.controllers)
    if steers and getattr(config.optimizer, "learning_rate", None) is None:
        problem = "change the learning rate, but the optimizer has no learning_rate field"
        raise ConfigError("controllers", f"{problem}. Use an optimizer with this field, such as SGD()")


def check_monitors(config: Any, figures: Sequence[str]) -> None:
    """Check that every figure that a controller monitors is a figure of the epoch.

    Raises:
        ConfigError: A controller monitors an unknown figure.
    """
    for number, each in enumerate(config.controllers):
        monitor = getattr(each, "monitor", None)
        if monitor is not None and monitor not in figures:
            problem = f"must be a figure of an epoch, got {monitor!r}.{did_you_mean(monitor, figures)}"
            raise ConfigError(f"controllers.{number}.monitor", f"{problem} The figures are {', '.join(figures)}")
