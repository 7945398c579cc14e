"""`jaxmlp completion`: a script with which a shell completes command lines."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxmlp.cli import COMMANDS, Answer, flags
from jaxmlp.errors import UsageError, did_you_mean

SHELLS = {"bash": "", "zsh": "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"}
"""Lines before the script. zsh loads its support for bash's completions."""
SCRIPT = """\
_jaxmlp() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} known=
  if ((COMP_CWORD == 1)); then known="{commands}"
  elif [[ $word == -* ]]; then
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _jaxmlp jaxmlp
"""


@dataclass(frozen=True, kw_only=True)
class CompletionFlags(flags.Flags):
    """Print a script with which bash or zsh completes commands, flags and file names.

    bash: jaxmlp completion bash > ~/.local/share/bash-completion/completions/jaxmlp
    zsh: jaxmlp completion zsh >> ~/.zshrc
    """


def run(argv: Sequence[str]) -> Answer:
    """Print the script for a shell."""
    _, (shell,) = flags.parse(CompletionFlags(), argv, "completion", "bash|zsh")
    if shell not in SHELLS:
        raise UsageError(f"completion is for {' and '.join(SHELLS)}, not {shell}.{did_you_mean(shell, SHELLS)}")
    cases = "\n".join(f'      {command}) known="{" ".join(_flags_of(command))}" ;;' for command in COMMANDS)
    script = SHELLS[shell] + SCRIPT.format(commands=" ".join(COMMANDS), cases=cases)
    print(script, end="")
    return Answer({"shell": shell, "script": script})


def _flags_of(command: str) -> list[str]:
    """The flags of a command, read from its help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"jaxmlp.cli.{command.replace('-', '_')}").run(["--help"])
    return sorted(set(re.findall(r"(?<!\S)--[a-z][\w.-]+", said.getvalue())))
