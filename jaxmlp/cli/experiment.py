"""How do flags name and change an experiment? Every value of its CONFIG is a flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxmlp.cli import flags, say
from jaxmlp.errors import UsageError
from jaxmlp.source.shipped import experiment_path
from jaxmlp.system.runtime import is_up, prepare

if TYPE_CHECKING:
    from jaxmlp.experiment.config import ExperimentConfig


def parse_experiment[Chosen: flags.Flags](
    kind: type[Chosen], argv: Sequence[str], command: str
) -> tuple[Chosen, ExperimentConfig]:
    """Parse a command line that names an EXPERIMENT.py: the command's flags, and the file's config changed by them.

    The file is the first word, or the first word that ends in `.py`. `experiment_path` says which file a word means.
    Without a file the command's own help is shown.

    Args:
        kind: The command's own flags.
        argv: Words after the command.
        command: Name of the command, for help and messages.

    Raises:
        ConfigError, UsageError, SystemExit: As `flags.parse` and `load_experiment`.
    """
    at = next((i for i, word in enumerate(argv) if word.endswith(".py") and not word.startswith("-")), 0)
    # Moved to the front, because a flag with many values would take the file as a value.
    words = [*argv[at : at + 1], *argv[:at], *argv[at + 1 :]]
    name = "EXPERIMENT.py"
    if not words or words[0].startswith("-"):
        default: flags.Flags = kind()
        if not {"-h", "--help"} & {*words}:
            from jaxmlp.experiment.config import ExperimentConfig

            config, words = _with_kinds(ExperimentConfig(), words)
            default = _with_config(kind, config)
        hint = f" For the flags of its values: jaxmlp {command} {name} --help"
        (word,) = flags.parse(default, words, command, name, hint=hint)[1]
        raise UsageError(f"{word} must come before the flags, or end in .py: jaxmlp {command} {word} ...")
    chosen, _ = parse_changes(kind, words, command, name, _loaded(experiment_path(words[0]), words))
    return chosen, chosen.config  # type: ignore[attr-defined]


def parse_changes[Chosen: flags.Flags](
    kind: type[Chosen], words: Sequence[str], command: str, name: str, config: ExperimentConfig
) -> tuple[Chosen, list[str]]:
    """The command's flags, whose `config` is the given config changed by the flags, and the remaining words.

    Raises:
        ConfigError, UsageError, SystemExit: As `flags.parse`.
    """
    found, left = _with_kinds(config, words)

    def unknown(flag: str) -> str:
        others = sorted(other_kinds(found, flag))
        return f"{flag} needs another kind of part: add {' or '.join(others)}" if others else ""

    lists = [f"--{field}" for field in _lists_of_parts(config) if f"--{field}" in words]
    hint = f" Kinds are joined with commas: {lists[0]} A,B" if lists else ""
    return flags.parse(_with_config(kind, found), left, command, name, hint=hint, unknown=unknown)


def _loaded(path: Path, words: Sequence[str]) -> ExperimentConfig:
    """The file's config. Device and XLA's flags are set first, because the file's imports may start JAX."""
    # Parsing refuses a wrong device later.
    devices: list[Any] = [word for word in flags.words_after("--device", words) if word in ("cpu", "gpu", "tpu")]
    prepare(devices[0] if devices else "auto")
    from jaxmlp.source.file import load_experiment

    was_up = is_up()
    config = load_experiment(path).config
    if is_up() and not was_up:
        say(f"{path} starts JAX itself, before jaxmlp can choose the devices. Create arrays inside functions.")
    return config


def _with_config[Chosen: flags.Flags](kind: type[Chosen], config: ExperimentConfig) -> Chosen:
    """The command's flags together with the flags of the experiment's values."""
    from jaxmlp.experiment.parts import PlainObject

    # A plain object has no flags. tyro would look inside it.
    PlainObject.__annotations__ |= {"value": tyro.conf.Fixed[object], "source": tyro.conf.Fixed[str]}
    hint: Any = Annotated[type(config), tyro.conf.arg(name="")]
    field: Any = dataclasses.field(default=config)
    both: type[Chosen] = dataclasses.make_dataclass(
        kind.__name__, [("config", hint, field)], bases=(kind,), frozen=True, kw_only=True,
        namespace={"__doc__": kind.__doc__, "__module__": __name__},
    )  # fmt: skip
    return both()


def _with_kinds(config: ExperimentConfig, words: Sequence[str]) -> tuple[ExperimentConfig, list[str]]:
    """The config with the kinds of parts that flags such as `--optimizer adam` choose, and the remaining words."""
    from jaxmlp.experiment.plain import roles_of, with_value

    left: list[str] = []
    chosen: dict[str, str] = {}
    waiting = iter([*words, None])
    known = {*roles_of(config), *_lists_of_parts(config)}
    for word in waiting:
        if word is None:
            break
        flag, equals, value = word.partition("=")
        path = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or path not in known:
            left.append(word)
            continue
        taken = value if equals else next(waiting)
        if not taken or taken.startswith("--"):
            raise UsageError(f"{flag} needs a value")
        chosen[path] = taken
        known |= {"optimizer.schedule", "optimizer.optimizer"} if path == "optimizer" else set()
    for path in sorted(chosen, key=lambda each: each.count(".")):
        config = with_value(config, path, chosen[path])
    return config, left


def _lists_of_parts(config: ExperimentConfig) -> list[str]:
    """Names of the fields that hold several parts, such as `metrics`."""
    from jaxmlp.experiment.parts import role_of_several

    return [item.name for item in dataclasses.fields(config) if role_of_several(config, item.name)]


def other_kinds(config: ExperimentConfig, flag: str) -> Iterator[str]:
    """Other kinds of part that have this flag, when the experiment's part does not."""
    from jaxmlp.experiment.parts import role_of
    from jaxmlp.experiment.plain import kinds, roles_of

    for path, part in roles_of(config).items():
        name = flag.removeprefix(f"--{path}.").replace("-", "_")
        if flag.startswith(f"--{path}."):
            for kind, cls in kinds(role_of(type(part))).items():
                if name in {item.name for item in dataclasses.fields(cls)}:  # type: ignore[arg-type]
                    yield f"--{path} {kind}"
