"""What does a sweep train? Its lanes, each the experiment with a seed and values of its own. Starts no JAX."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxmlp.errors import ConfigError, did_you_mean
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.experiment.fields import parse_json
from jaxmlp.experiment.parts import Part
from jaxmlp.experiment.plain import Find, paths, to_plain, value_at, with_value
from jaxmlp.run.code import places
from jaxmlp.sweep.values import MAX_LANES, Batching, Choices, Range

FIXED = {
    "seed": "is set by --seeds",
    "name": "names the sweep, and changes no number",
    "data.name": "cannot vary: the lanes of a sweep share one data set. Run a sweep for each",
    "data.validation": "cannot vary: the lanes of a sweep share one data set. Run a sweep for each",
    "data.also": "cannot vary: the lanes of a sweep are scored on the same splits",
}
"""Fields that no lane may set, and why."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One training of a sweep."""

    index: int
    seed: int
    settings: dict[str, Any]
    """The values that are set, as JSON values by dotted path."""
    config: ExperimentConfig
    """The experiment with this seed and these values."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole sweep as a value: every seed of every setting, setting by setting."""

    config: ExperimentConfig
    seeds: tuple[int, ...]
    settings: tuple[dict[str, Any], ...]
    batching: Batching = "map"
    keep_runs: bool = False

    def lanes(self) -> list[Lane]:
        """The lanes, ordered by number.

        Raises:
            ConfigError: A seed or value breaks its rule.
        """
        return [
            Lane(index=index, seed=seed, settings=values, config=with_values(self.config, {**values, "seed": seed}))
            for index, (values, seed) in enumerate(itertools.product(self.settings, self.seeds))
        ]

    def variants(self) -> list[ExperimentConfig]:
        """The experiment in each setting, with its own seed."""
        return [with_values(self.config, values) for values in self.settings]

    def to_json(self) -> str:
        """The plan as JSON. Floats keep every bit."""
        return json.dumps({**vars(self), "config": self.config.to_dict()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, find: Find | None = None) -> Plan:
        """The inverse of `to_json`. `find` is as in `ExperimentConfig.from_dict`.

        Raises:
            ConfigError: The config or a setting breaks a rule.
            KeyError, TypeError, ValueError: The text is not a plan.
        """
        plain = parse_json(text)
        config = ExperimentConfig.from_dict(plain["config"], find)
        seeds, settings = plain["seeds"], plain["settings"]
        if not isinstance(seeds, list) or not isinstance(settings, list):
            raise ValueError("its seeds or settings are not lists")
        known = {name for each in settings if isinstance(each, dict) for name in _names(config, each)} - FIXED.keys()
        if not all(isinstance(each, dict) and each.keys() <= known for each in settings):
            raise ValueError("a setting has a field that no lane may set")
        if plain["batching"] not in ("map", "vmap") or not isinstance(plain["keep_runs"], bool):
            raise ValueError("its batching is neither map nor vmap, or keep_runs is neither true nor false")
        if find:
            for place in places(settings):
                find(place)
        for values in settings:
            with_values(config, values)
        return make_plan(config, seeds, settings, batching=plain["batching"], keep_runs=plain["keep_runs"])


def make_settings(
    config: ExperimentConfig,
    vary: Mapping[str, Choices],
    *,
    draws: int | None = None,
    random_seed: int = 0,
) -> tuple[dict[str, Any], ...]:
    """The settings of a sweep, each as JSON values by dotted path.

    Args:
        config: The experiment.
        vary: Values or a range for each field, by its dotted path.
        draws: None makes all combinations of the values. Otherwise the number of settings to draw: a number from each
            range (an integer if the field is an integer), one of the values from each list. More draws only add
            settings, and a new field changes no other field's draws.
        random_seed: Seed of the draws.

    Raises:
        ConfigError: A field is unknown or may not vary; a value breaks its rule; a setting occurs twice; there is no
            value; a range comes without draws, or draws without a range; or there are too many settings.
    """
    vary = {name.replace("-", "_"): choices for name, choices in vary.items()}
    names = _names(config, vary)
    for name, choices in vary.items():
        if name in FIXED:
            raise ConfigError(name, FIXED[name])
        if name not in names:
            raise ConfigError(name, f"is not a field of this experiment.{did_you_mean(name, names)}")
        _check_choices(name, choices, draws)
    if draws is not None and not any(isinstance(choices, Range) for choices in vary.values()):
        raise ConfigError("random", "needs a field with a range to draw from, such as log(1e-4,1e-1)")
    count = math.prod(len(c) for c in vary.values() if not isinstance(c, Range)) if draws is None else draws
    if not 0 < count <= MAX_LANES:
        raise ConfigError("sweep", f"must have 1 to {MAX_LANES:,} settings, got {count:,}")
    return tuple(_product(config, vary) if draws is None else _drawn(config, vary, draws, random_seed))


def make_plan(config: ExperimentConfig, seeds: Sequence[int], settings: Sequence[dict[str, Any]], **how: Any) -> Plan:
    """The plan, after checking its seeds.

    Raises:
        ConfigError: A seed breaks its rule or occurs twice, there is no seed, or there are too many lanes.
    """
    if not 0 < len(seeds) * len(settings) <= MAX_LANES:
        raise ConfigError("seeds", f"must make 1 to {MAX_LANES:,} lanes, got {len(seeds) * len(settings):,}")
    if repeated := _repeated(seeds):
        raise ConfigError("seeds", f"must all differ, got {repeated}")
    seeds = tuple(with_values(config, {"seed": seed}).seed for seed in seeds)
    return Plan(config=config, seeds=seeds, settings=tuple(settings), **how)


def with_values(config: ExperimentConfig, values: Mapping[str, Any]) -> ExperimentConfig:
    """The config with these values, by dotted path. The kind of a part is set before its fields.

    Raises:
        ConfigError: A value breaks its rule.
    """
    for name in sorted(values, key=lambda name: name.count(".")):
        value = values[name]
        config = with_value(config, name, tuple(value) if isinstance(value, list) else value)
    return config


def _names(config: ExperimentConfig, values: Mapping[str, Any]) -> list[str]:
    """The fields of an experiment, including fields of the part kinds that a sweep sets."""
    found = dict.fromkeys(paths(config))
    kinds = {name: each for name, each in values.items() if name in found and isinstance(value_at(config, name), str)}
    for name, each in kinds.items():
        for kind in each if isinstance(each, Sequence) and not isinstance(each, str) else [each]:
            with contextlib.suppress(ConfigError):
                found |= dict.fromkeys(paths(with_value(config, name, kind)))
    return list(found)


def _check_choices(name: str, choices: Choices, draws: int | None) -> None:
    if not isinstance(choices, Range):
        if isinstance(choices, str) or not len(choices):
            raise ConfigError(name, f"needs a list of at least one value, got {choices!r}")
    elif not -math.inf < choices.low < choices.high < math.inf:
        raise ConfigError(name, f"needs a range that rises between finite numbers, got {choices}")
    elif choices.log and choices.low <= 0:
        raise ConfigError(name, f"needs a range above 0 for its logarithm, got {choices}")
    elif draws is None:
        raise ConfigError(name, f"is drawn from {choices}: give the number of draws with --random N")


def _repeated(values: Sequence[Any]) -> str:
    """The first value that occurs more than once, and how often. Empty if all differ."""
    return next((f"{value} {times} times" for value, times in Counter(map(str, values)).items() if times > 1), "")


def _product(config: ExperimentConfig, vary: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [_setting(config, dict(zip(vary, values, strict=True))) for values in itertools.product(*vary.values())]
    if repeated := _repeated([", ".join(f"{name}={value}" for name, value in each.items()) for each in found]):
        raise ConfigError("set", f"must make settings that all differ, got {repeated}")
    return found


def _drawn(config: ExperimentConfig, vary: Mapping[str, Choices], draws: int, random_seed: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number in range(100 * draws):
        values = {}
        for name, choices in vary.items():
            part = random.Random(f"{random_seed} {number} {name}").random()
            if isinstance(choices, Range):
                draw = choices.draw_whole if isinstance(value_at(config, name), int) else choices.draw
                try:
                    values[name] = draw(part)
                except ValueError as error:
                    raise ConfigError(name, str(error)) from None
            else:
                values[name] = choices[int(part * len(choices))]
        setting = _setting(config, values)
        if setting not in found:
            found.append(setting)
        if len(found) == draws:
            return found
    raise ConfigError("random", f"must be at most the {len(found)} different settings that exist, got {draws}")


def _setting(config: ExperimentConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON, after the config has converted them: a rate of 1 becomes 1.0."""
    config = with_values(config, values)
    return {
        name: to_plain(value) if isinstance(value, Part | Mapping) else value_at(config, name)
        for name, value in values.items()
    }
