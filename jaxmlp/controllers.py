"""The controllers that ship, and how a run's controllers act on its state: after an update, an epoch, and at the end.

A controller is one class: its fields, and a state of its own in `TrainState.controllers` by its name. So a resume, a
lane of a sweep and any number of devices have the bits of a run that was never interrupted.
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
from jaxmlp.fields import ranged
from jaxmlp.parts import Controller, Epoch


class EarlyStopping(Controller):
    """Stop where a figure has not become better for `patience` epochs. Source: Keras 3, `EarlyStopping`.

    An epoch is better if its figure is better than the best so far by more than `min_delta`. Figures are compared in
    float32. With `restore_best` the run ends with the parameters and variables of its best epoch, whether it was
    stopped or not; those of the last epoch are kept in the state, so that the run can go on.
    """

    kind: ClassVar[str] = "early_stopping"

    monitor: str = "val_loss"
    """Figure of an epoch, such as loss, val_loss or val_accuracy."""
    patience: int = ranged(5, "[0, 1000000]", traced=True)
    """Epochs that may pass without a better one; 0 and 1 both stop at the first that is not better."""
    min_delta: float = ranged(0.0, "[0, inf)", traced=True)
    """By how much a better figure must be better."""
    restore_best: bool = False
    """End with the weights of the best epoch."""
    direction: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; auto asks the metric."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """No epoch yet."""
        begun = {"best": jnp.float32(jnp.inf), "best_epoch": jnp.int32(0), "epoch": jnp.int32(0), "wait": jnp.int32(0)}
        weights = {"params": params, "variables": variables}
        return begun | ({"restored": jnp.int32(0), "weights": weights} if self.restore_best else {})

    def after_epoch(self, own: dict[str, Any], epoch: Epoch) -> dict[str, Any]:
        """The rule."""
        score, number = _score(self, epoch), own["epoch"] + 1
        is_better = score + self.min_delta < own["best"]
        new = {
            "best": jnp.where(is_better, score, own["best"]),
            "best_epoch": jnp.where(is_better, number, own["best_epoch"]),
            "epoch": number,
            "wait": jnp.where(is_better, 0, own["wait"] + 1),
        }
        if self.restore_best:
            # Also of a first epoch whose figure is infinite: there are no other weights to go back to.
            keep = is_better | (number == 1)
            weights = {"params": epoch.params, "variables": epoch.variables}
            new |= {"weights": _where(keep, weights, own["weights"]), "restored": own["restored"]}
        return new

    def why_stop(self, own: Mapping[str, Any], records: Sequence[Any]) -> str | None:
        """Where the patience has run out."""
        wait, best_epoch = int(own["wait"]), int(own["best_epoch"])
        if wait < max(self.patience, 1) or int(own["epoch"]) < 2:
            return None
        best = next((record.figures[self.monitor] for record in records if record.epoch == best_epoch), None)
        at = f"{best:.6g} in epoch {best_epoch}" if best is not None else "none"
        restored = ", whose weights are restored" if self.restore_best else ""
        return f"{self.monitor} has not become better for {_counted(wait, 'epoch')}; the best was {at}{restored}"


class ReduceOnPlateau(Controller):
    """Multiply the learning rate by `factor` where a figure has not become better for `patience` epochs.

    It is a factor on the rate that the schedule gives. Source: Keras 3, `ReduceLROnPlateau`, whose `min_lr` is
    `min_factor` times the learning rate here.
    """

    kind: ClassVar[str] = "reduce_on_plateau"

    monitor: str = "val_loss"
    """Figure of an epoch, such as loss, val_loss or val_accuracy."""
    factor: float = ranged(0.1, "(0, 1)", traced=True)
    """What the rate is multiplied by."""
    patience: int = ranged(10, "[0, 1000000]", traced=True)
    """Epochs that may pass without a better one."""
    min_delta: float = ranged(1e-4, "[0, inf)", traced=True)
    """By how much a better figure must be better."""
    cooldown: int = ranged(0, "[0, 1000000]", traced=True)
    """Epochs after a reduction that count for nothing."""
    min_factor: float = ranged(0.0, "[0, 1]", traced=True)
    """The least that all reductions come to."""
    direction: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; auto asks the metric."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """The whole rate."""
        counts = {"wait": jnp.int32(0), "cooldown": jnp.int32(0)}
        return {"best": jnp.float32(jnp.inf), "factor": jnp.float32(1), **counts}

    def after_epoch(self, own: dict[str, Any], epoch: Epoch) -> dict[str, Any]:
        """The rule."""
        score = _score(self, epoch)
        cooldown = jnp.maximum(own["cooldown"] - 1, 0)
        is_better = score + self.min_delta < own["best"]
        counts = ~is_better & (cooldown == 0)
        wait = jnp.where(is_better | (own["cooldown"] > 0), 0, own["wait"]) + counts.astype(jnp.int32)
        is_late = counts & (wait >= self.patience) & (own["factor"] > self.min_factor)
        return {
            "best": jnp.where(is_better, score, own["best"]),
            "factor": jnp.where(is_late, jnp.maximum(own["factor"] * self.factor, self.min_factor), own["factor"]),
            "wait": jnp.where(is_late, 0, wait),
            "cooldown": jnp.where(is_late, self.cooldown, cooldown),
        }

    def rate_factor(self, own: dict[str, Any]) -> Float[Array, ""]:
        """Of all reductions so far."""
        factor: Float[Array, ""] = own["factor"]
        return factor


class Budget(Controller):
    """Stop where so many seconds or updates are used up, within an epoch too.

    What is made of that epoch is scored, and counts as an epoch. Where `seconds` end a run, a clock decides after how
    many updates.
    """

    kind: ClassVar[str] = "budget"

    seconds: float | None = ranged(None, "(0, inf)", host=True)
    """Seconds of training and evaluation, those before an interruption too."""
    steps: int | None = ranged(None, "[1, 2147483647]", host=True)
    """Updates."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """None: the run's log tells all."""
        return {}

    def steps_left(self, steps: int, seconds: float) -> int | None:
        """None more where the time is used up."""
        if self.seconds is not None and seconds >= self.seconds:
            return 0
        return None if self.steps is None else max(0, self.steps - steps)

    def why_stop(self, own: Mapping[str, Any], records: Sequence[Any]) -> str | None:
        """Where one of both is used up."""
        used_s, steps = sum(record.seconds for record in records), records[-1].steps
        if self.seconds is not None and used_s >= self.seconds:
            return f"{self.seconds:g} s are used up"
        if self.steps is not None and steps >= self.steps:
            return f"{_counted(self.steps, 'update')} are made"
        return None


class EMA(Controller):
    """An exponential moving average of the parameters, scored beside the last ones; it changes no update.

    average = decay * average + (1 - decay) * params, from the parameters after the first update. Statistics that the
    module keeps, such as BatchNorm's, are the run's own. Source: Keras 3, `use_ema`.
    """

    kind: ClassVar[str] = "ema"

    decay: float = ranged(0.999, "[0, 1)", traced=True)
    """Part of the average kept at each update."""

    def init(self, params: Any, variables: Any) -> dict[str, Any]:
        """Replaced by the first update."""
        return {"params": params, "updates": jnp.int32(0)}

    def after_update(self, own: dict[str, Any], params: Any) -> dict[str, Any]:
        """The rule."""
        decay = jnp.where(own["updates"] == 0, jnp.float32(0), self.decay)

        def averaged(old: Array, new: Array) -> Array:
            return old * decay.astype(old.dtype) + new * (1 - decay).astype(new.dtype)

        return {"params": jax.tree.map(averaged, own["params"], params), "updates": own["updates"] + 1}


def _score(part: EarlyStopping | ReduceOnPlateau, epoch: Epoch) -> Float[Array, ""]:
    """The figure that is watched, or its negative: less is better."""
    is_larger = part.monitor in epoch.larger_is_better if part.direction == "auto" else part.direction == "max"
    value = epoch.figures[part.monitor]
    return -value if is_larger else value


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# What follows acts for all controllers of an experiment; `config` is the experiment, `state` its `TrainState`.


def by_name(config: Any) -> dict[str, Controller]:
    """The controllers by the names of their states."""
    found: dict[str, Controller] = {}
    for each in config.controllers:
        name = each.kind or type(each).__name__
        number = sum(other.partition(".")[0] == name for other in found) + 1
        found[name if number == 1 else f"{name}.{number}"] = each
    return found


def init(config: Any, params: Any, variables: Any) -> dict[str, Any]:
    """The states before the first update, of the controllers that have one."""
    return {name: own for name, each in by_name(config).items() if (own := each.init(params, variables))}


def steered(config: Any, states: Mapping[str, Any]) -> Any:
    """The experiment with the learning rate that the controllers leave."""
    found = [each.rate_factor(states[name]) for name, each in by_name(config).items() if name in states]
    factors = [factor for factor in found if factor is not None]
    if not factors:
        return config
    rate = functools.reduce(lambda a, b: a * b, factors, config.optimizer.learning_rate)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))


def after_update(config: Any, state: Any) -> Any:
    """The state once its controllers have seen an update."""
    states, known = state.controllers, by_name(config)
    found = {name: each.after_update(states[name], state.params) for name, each in known.items() if name in states}
    return state._replace(controllers={**states, **found})


@jax.jit
def after_epoch(config: Any, state: Any, figures: Mapping[str, Float[Array, ""]]) -> Any:
    """The state once its controllers have seen an epoch, of these figures."""
    names = frozenset(name for name in figures if config.validated.get(name.removeprefix("val_")))
    epoch = Epoch(figures, names, state.params, state.variables)
    states, known = state.controllers, by_name(config)
    found = {name: each.after_epoch(states[name], epoch) for name, each in known.items() if name in states}
    return state._replace(controllers={**states, **found})


@functools.partial(jax.jit, static_argnames="back")
def exchanged(state: Any, *, back: bool) -> Any:
    """The state with the weights of the best epoch in place of the last one's, which are kept; or `back` again.

    Twice is once, so that a resume at a run's end changes nothing. Without a controller that restores, it is the state.
    """
    for name, own in state.controllers.items():
        if "restored" in own:
            change = own["restored"] == int(back)
            mine = {"params": state.params, "variables": state.variables}
            kept = {
                **own,
                "restored": jnp.where(change, 1 - own["restored"], own["restored"]),
                "weights": _where(change, mine, own["weights"]),
            }
            state = state._replace(
                **_where(change, own["weights"], mine), controllers={**state.controllers, name: kept}
            )
    return state


def averages(config: Any) -> bool:
    """Whether a moving average of the parameters is kept."""
    return any(isinstance(each, EMA) for each in config.controllers)


def averaged(state: Any) -> Any:
    """The state with the moving average in place of the parameters; None without one."""
    own = state.controllers.get(EMA.kind)
    return state._replace(params=own["params"]) if own else None


def restores(config: Any) -> bool:
    """Whether a run ends with the weights of its best epoch."""
    return any(getattr(each, "restore_best", False) for each in config.controllers)


def steps_left(config: Any, steps: int, seconds: float) -> int | None:
    """How many more updates the run may make, after these updates and seconds; None where nothing sets a bound."""
    found = [each.steps_left(steps, seconds) for each in config.controllers]
    return min((left for left in found if left is not None), default=None)


def why_stop(config: Any, states: Mapping[str, Any], records: Sequence[Any]) -> str | None:
    """Why the run is to end after these epochs; `states` are the controllers' on the host, without trees."""
    for name, each in by_name(config).items():
        if why := each.why_stop(states.get(name, {}), records):
            return f"{name}: {why}"
    return None


def check(config: Any) -> None:
    """Make sure that the controllers go with each other and with the optimizer.

    Raises:
        ConfigError: They do not.
    """
    restoring = [each for each in config.controllers if getattr(each, "restore_best", False)]
    of_kind_ema = [each for each in config.controllers if isinstance(each, EMA)]
    for what, found in (("with restore_best", restoring), ("of kind ema", of_kind_ema)):
        if len(found) > 1:
            raise ConfigError("controllers", f"must have at most one {what}, got {len(found)}")
    steers = any(type(each).rate_factor is not Controller.rate_factor for each in config.controllers)
    if steers and getattr(config.optimizer, "learning_rate", None) is None:
        problem = "change the learning rate, but the optimizer has no field learning_rate"
        raise ConfigError("controllers", f"{problem}. Use an optimizer that has it, such as SGD()")


def check_monitors(config: Any, figures: Sequence[str]) -> None:
    """Make sure that the controllers find what they watch among the names of an epoch's figures.

    Raises:
        ConfigError: They do not.
    """
    for number, each in enumerate(config.controllers):
        monitor = getattr(each, "monitor", None)
        if monitor is not None and monitor not in figures:
            told = f"must be a figure of an epoch, got {monitor!r}.{did_you_mean(monitor, figures)}"
            raise ConfigError(f"controllers.{number}.monitor", f"{told} There are {', '.join(figures)}")
