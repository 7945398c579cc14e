"""Every block in the documents does what it says: Python runs, and commands run, or show what they would train.

A block that cannot run has `<!-- not run: why -->` on the line above; its commands and flags must exist all the same.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

import jaxmlp
from jaxmlp import DataConfig, data, errors, portable, sweep
from jaxmlp.cli import COMMANDS, main
from jaxmlp.source.file import load_experiment
from jaxmlp.source.shipped import shipped

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
KIND = re.compile(r"--(optimizer(\.(optimizer|schedule))?|augmentation|controllers|metrics)")
"""Flags of parts that have flags of their own."""
SEPARATORS = {";", "&&", "||", "|", "do", "done"}

PUBLIC = {f"{module.__name__}.{name}" for module in (jaxmlp, data, sweep, portable) for name in module.__all__}
"""Every public name, with its module."""

ELSEWHERE = {"compile", "sweep", "bench", "doctor", "import-keras"}
"""Commands that train or measure for long, or want a file of yours: here their flags are checked, and no more."""


class Block(NamedTuple):
    """A fenced block."""

    document: str
    line: int
    language: str
    text: str
    why: str | None
    """Why it is not run here. May be that another test runs it, which it then names first."""


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text()
        for found in BLOCK.finditer(text):
            line = 1 + text.count("\n", 0, found.start("text"))
            yield Block(document.name, line, found["language"], found["text"], found["why"])


ALL = list(blocks())
SHELL = [block for block in ALL if block.language in ("console", "bash", "sh")]


def lines_of(block: Block) -> Iterator[str]:
    """The commands of a block, a continued one on one line."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language != "console":
            yield line
        elif line.startswith("$ "):
            yield line[2:]


def commands(line: str) -> Iterator[list[str]]:
    """The simple commands of a line, without redirections and with numbers for the values of variables."""
    line = re.sub(r"\$\{?\w+\}?", "0", re.sub(r">+ *\S+", "", line))
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in SEPARATORS:
            if words:
                yield words
            words = []
        else:
            words.append(word)


def jaxmlp_commands(block: Block) -> Iterator[list[str]]:
    """The words after `jaxmlp`, whatever starts it; a RUN is the last one."""
    for line in lines_of(block):
        for words in commands(line.replace(" RUN", " last")):
            if "jaxmlp" in words and "pip" not in words:
                yield words[words.index("jaxmlp") + 1 :]


def name(block: Block) -> str:
    return f"{block.document}:{block.line}"


@pytest.fixture
def workplace(two_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documents name: the experiments, a last run, digits."""
    from PIL import Image

    digit = Image.fromarray(data.load(DataConfig(name="mnist_5k")).test.inputs[0, ..., 0])
    digit.save(tmp_path / "digit.png")
    digit.resize((280, 280)).save(tmp_path / "photograph.jpg")
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    shutil.copytree(two_runs[0], tmp_path / "runs" / two_runs[0].name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXMLP_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted({block.document for block in ALL if block.language == "python"}))
def test_python_in_a_document_runs_from_top_to_bottom(
    document: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tracker that needs an account.
    monkeypatch.setitem(sys.modules, "wandb", mock.MagicMock())
    module = types.ModuleType("document")  # Where a class looks up the types of its fields.
    monkeypatch.setitem(sys.modules, "document", module)
    names = vars(module)
    for block in ALL:
        if block.document == document and block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, document, "exec")
            if not block.why:
                exec(code, names)
    if document == "keras.md":
        for line in code_in_tables(document):
            eval(line, names)


def code_in_tables(document: str) -> list[str]:
    """The second column of each table."""
    text = (ROOT / "docs" / document).read_text()
    return re.findall(r"^\| [^|]+ \| `([^|`]+)` \| [^|]*\|$", text, re.M)


def is_run(block: Block) -> bool:
    """Whether a test runs the block: here, or elsewhere as its comment says."""
    return not block.why or block.why.startswith("tests/")


def names_in(code: str, imported: dict[str, str]) -> Iterator[str]:
    """The names that code uses, with their modules. What it imports is no use, and is added to `imported`."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            yield ".".join([imported.get(first, first), *rest])


def test_every_public_name_is_used_in_an_example_that_runs() -> None:
    used: set[str] = set()
    for document in DOCUMENTS:
        codes = [block.text for block in ALL if block[:3:2] == (document.name, "python") and is_run(block)]
        imported: dict[str, str] = {}
        for code in [*codes, *(code_in_tables("keras.md") if document.name == "keras.md" else ())]:
            used |= set(names_in(code, imported))
    assert PUBLIC - used == set()


def test_every_public_name_is_in_the_reference_of_the_site() -> None:
    pages = [page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")]
    listed = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert PUBLIC - set(listed) == set()
    assert len(listed) == len(set(listed))


def test_what_everyone_reaches_for_in_the_first_week_takes_three_lines_each() -> None:
    text = (ROOT / "docs" / "keras.md").read_text()
    week = text[text.index("## The first week") : text.index("## `compile`")]
    pieces = BLOCK.findall(week)
    lines = [sum(map(bool, block[2].splitlines())) for block in pieces]  # A blank line is none.
    assert len(lines) >= 10 and max(lines) <= 3
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert len(code_in_tables("keras.md")) > 60
    assert all(code.strip() or why.strip() for _, _, code, why, _ in rows)  # What has no counterpart says why.


def test_the_tutorials_experiments_are_those_in_experiments() -> None:
    names: dict[str, Any] = {}
    for block in ALL:
        if block.document == "tutorial.md" and block.language == "python" and "= ExperimentConfig(" in block.text:
            exec(block.text, names)
    for constant, file in (("RELU", "relu_rmsprop"), ("TANH", "tanh_sgd_nesterov")):
        written = load_experiment(ROOT / "experiments" / f"{file}.py").config.to_dict()
        assert {**names[constant].to_dict(), "name": file} == written


@pytest.mark.parametrize("block", SHELL, ids=name)
def test_every_command_in_a_document_exists_with_its_flags(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in jaxmlp_commands(block):
        if words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS
        experiment = [str(ROOT / word) for word in words if (ROOT / word).is_file() and word.endswith(".py")]
        experiment += [word for word in words if word in shipped()]
        experiment += ["quickstart"] if not experiment and any(word.endswith(".py") for word in words) else []
        experiment += [word for pair in itertools.pairwise(words) if KIND.fullmatch(pair[0]) for word in pair]
        capsys.readouterr()
        # A resumed run has its flags in a help of its own.
        assert main([words[0], *experiment, *(["--resume", "x"] if "--resume" in words else []), "--help"]) == 0
        known = capsys.readouterr().out
        for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"(?<!\S){re.escape(flag)}\b", known), f"{words[0]} has no {flag}"


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in SHELL if not block.why], ids=name)
def test_the_commands_in_a_document_run(block: Block, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in lines_of(block):
        for words in commands(line):
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
            elif "jaxmlp" not in words and words[0] not in ("for", "srun", ".", "export", "cd"):
                pytest.fail(f"{line!r} is run by no test: mark the block <!-- not run: why -->")
    seen: list[list[str]] = []
    for words in jaxmlp_commands(block):
        if words[0] == "train" and "--resume" not in words:
            words = [*without(words, "--distributed", "--devices", "--out"), "--dry-run"]
        if words in seen or words[0] in ELSEWHERE:
            continue
        seen.append(words)
        assert main(words) == 0, capsys.readouterr().err


def without(words: list[str], *flags: str) -> list[str]:
    """The words less these flags and their values."""
    return [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & set(flags)]


@pytest.mark.parametrize("block", [block for block in ALL if block not in SHELL], ids=name)
def test_every_block_says_its_language_and_is_of_it(block: Block) -> None:
    assert block.language in ("python", "json", "jsonl", "yaml", "toml", "text", "csv")
    if block.language == "json":
        json.loads(block.text)


def test_every_fence_of_a_document_is_a_blocks() -> None:
    fences = sum(len(re.findall("^```", document.read_text(), re.MULTILINE)) for document in DOCUMENTS)
    assert fences == 2 * len(ALL)


def test_no_table_escapes_a_pipe() -> None:
    """The site would show the backslash."""
    for document in DOCUMENTS:
        assert "\\|" not in document.read_text(), document.name


def test_every_link_between_documents_leads_to_a_file() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            assert "://" in link or (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_file_that_a_document_names_is_there() -> None:
    for document in DOCUMENTS:
        for path in re.findall(r"`((?:jaxmlp|tests|experiments|docs)/[\w/.-]+\.\w+)`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_every_picture_in_a_document_is_there_in_light_and_dark_says_what_it_shows_and_is_used() -> None:
    shown: set[Path] = set()
    for document in DOCUMENTS:
        for dark, light, alt in re.findall(
            r'<picture>\n<source media="\(prefers-color-scheme: dark\)" srcset="(.+)">\n'
            r'<img src="(.+?)".* alt="(.+)">\n</picture>',
            text := document.read_text(),
        ):
            shown |= {document.parent / dark, document.parent / light}
            assert len(alt) > 40
        assert text.count("<img") == text.count("<picture>")
    pictures = set((ROOT / "docs" / "pictures").iterdir())
    assert shown == pictures
    assert sum(picture.stat().st_size for picture in pictures) < 200_000


def test_the_reference_has_every_command_and_every_exit_code() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    for command in COMMANDS:
        assert re.search(rf"^\| `{command}[ `]", text, re.MULTILINE), command
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    for code in codes:
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), code
