"""Every fenced block of the documents, and every example: run, where a scripted server can answer; else parsed."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli import main
from app.settings import Settings
from guard.errors import GuardError
from tests.curl import ADDRESS, excerpts_after, reply_to
from tests.curl import need as need_curl
from tests.documents import DOCUMENTS, ROOT, Block, blocks_of, indented_of
from tests.excerpt import objects_of, shows
from tests.scripted.server import ForkedScriptedServer, ScriptedServer
from tests.shell import Command, commands_of

BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
EXAMPLES = sorted((ROOT / "examples").iterdir())
# Programs that are not ours: what they are asked to read must be there.
OTHERS = {
    "cd",
    "docker",
    "export",
    "git",
    "helm",
    "hf",
    "kill",
    "kubectl",
    "openssl",
    "promtool",
    "pre-commit",
    "ray",
    "serve",
    "sleep",
}
READS = {"-f", "--file", "--filename", "-k", "--kustomize"}
WRITES = {"-o", "--out", "--output", "--json"}
# Lines that begin with "/" in .gitignore: what users put there.
MADE_BY_USERS = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if line.startswith("/")}


def in_blocks(*languages: str) -> pytest.MarkDecorator:
    """Parameter ``block``."""
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.name)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    running = ForkedScriptedServer()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def strict() -> Iterator[ScriptedServer]:
    running = ForkedScriptedServer(["--mode", "abstain"])
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to write to, with the key file that users make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # read at import, which would ask the net for prices
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/api_keys").write_text("a-key\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_has_a_language(document: Path) -> None:
    assert indented_of(document) == [], "fence it, and say what it is"
    assert document.read_text(encoding="utf-8").count("```") == 2 * len(list(blocks_of(document)))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_language_is_known(block: Block) -> None:
    assert block.language in {"bash", "json", "mermaid", "python", "text", "toml", "yaml"}


@in_blocks("json", "yaml", "toml")
def test_data(block: Block) -> None:
    parse: dict[str, Callable[[str], Any]] = {
        "json": objects_of,
        "yaml": lambda text: list(yaml.safe_load_all(text)),
        "toml": tomllib.loads,
    }
    assert parse[block.language](block.text)


@in_blocks("python")
def test_python(block: Block, server: ScriptedServer) -> None:
    assert ADDRESS in block.text, "it asks no server: what is to be seen of it?"
    source = block.text.replace(ADDRESS, server.url)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, block.name, "exec"), {"__name__": "snippet"})
    assert printed.getvalue().strip()


@in_blocks("bash")
def test_commands(block: Block, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = commands_of(block.text)
    assert commands
    for command in commands:
        for name, value in command.variables.items():
            monkeypatch.setenv(name, value)
        check = checker(command)
        assert check is not None, f"{command.name!r} is a program that this test does not know"
        check(command)
        require_files(command)
        if command.name == "curl" and ADDRESS in command.text:
            ask(command, block, server)


def checker(command: Command) -> Callable[[Command], None] | None:
    """What knows this program's arguments."""
    name = Path(command.name).name
    if re.fullmatch(r"python[\d.]*", name):
        return check_python
    if "/" in command.name and not command.name.startswith(".venv"):
        return check_program
    ours = {"hguard": check_hguard, "make": check_make, "pip": check_pip, "docker": check_docker, "curl": check_curl}
    return ours.get(name) or (require_files if name in OTHERS else None)


def check_hguard(command: Command) -> None:
    hguard(command.words[1:])


def hguard(arguments: list[str]) -> None:
    """As the command line reads them, and its settings; what follows -- as vLLM does."""
    own, extra = main._split(arguments)
    options = main._parser().parse_args(own)
    if options.command in ("serve", "worker"):
        main.settings_from({name: value for name, value in vars(options).items() if name in Settings.model_fields})
    if extra:
        engine_parser().parse_args(["--model", "model", *extra])


@cache
def engine_parser() -> argparse.ArgumentParser:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from guard.compat import make_arg_parser

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return parser


def check_make(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words[1:]:
        variable, given, _ = word.partition("=")
        known = f"$({variable})" in makefile if given else re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE)
        assert known, f"the Makefile does not know {word}"


def check_python(command: Command) -> None:
    words = command.words
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
    else:
        assert (ROOT / words[1]).is_file()


def check_program(command: Command) -> None:
    assert os.access(ROOT / command.name, os.X_OK), f"{command.name} is no program of this repository"


def check_pip(command: Command) -> None:
    assert command.words[1] == "install"
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in command.words[2:]:
        assert not word.startswith("hneuron-guard"), "it is on no index"
        for extras in re.findall(r"^\.\[(.*)\]$", word):
            assert set(extras.split(",")) <= set(known)


def check_docker(command: Command) -> None:
    """Of ``docker run``: the guard's variables and arguments."""
    words = command.words
    if words[1] != "run":
        return
    for flag, value in pairwise(words):
        if flag in ("-e", "--env") and value.startswith("HGUARD_"):
            assert value.partition("=")[0].removeprefix("HGUARD_").lower() in Settings.model_fields
    for at, word in enumerate(words):
        if word.startswith("hneuron-guard:") and words[at + 1 :]:
            hguard(words[at + 1 :])


def check_curl(command: Command) -> None:
    assert any(word.startswith(("http://", "https://")) for word in command.words)


def require_files(command: Command) -> None:
    """What a command names of this repository is there, unless it makes it, or users do."""
    for before, word in zip(["", *command.words], command.words, strict=False):
        path = word.rpartition("=")[2].split(":")[0].removeprefix("./").rstrip("/")
        if before in WRITES or path in MADE_BY_USERS:
            continue
        if path.startswith(("/", ".")) or "://" in word:
            continue
        ours = "/" in path and (ROOT / path.partition("/")[0]).exists()
        if ours or (before in READS and command.name in OTHERS and path != "-"):
            assert any(ROOT.glob(path)), f"{path} is not there"


def ask(command: Command, block: Block, server: ScriptedServer) -> None:
    """Run curl; what the document shows of its answer right after it must be in the answer."""
    need_curl()
    said = re.search(r"#.*\bstatus (\d{3})\b", block.text)
    reply = reply_to(command, server.url)
    assert reply.status == (int(said[1]) if said else 200), reply.text
    if command.text.rstrip("/").endswith(("/metrics", ADDRESS)):
        return
    objects = reply.objects
    for excerpt in excerpts_after(block):
        assert any(shows(excerpt, one, values=False) for one in objects), f"the answer is not like {excerpt}"


@pytest.mark.parametrize(
    "text",
    [
        "make nothing",
        "make image MACHINE=cpu",
        "hguard serve --prot 9000",
        "hguard serve --port web",
        "hguard serve -- --max-modellen 9",
        "hguard fit MODEL --out probe",
        "HGUARD_MODE=panic hguard serve",
        "python -m app.nothing",
        "python bench/nothing.py",
        "bench/nothing.sh",
        "pip install hneuron-guard",
        "pip install '.[gpu]'",
        "docker compose -f deploy/nothing.yaml up",
        "docker run --env HGUARD_PROT=9000 hneuron-guard:cpu",
        "docker run hneuron-guard:cpu serve --prot 9000",
        "kubectl apply -k deploy/nothing",
        "frobnicate --all",
        "echo 'open",
        f"curl -s {ADDRESS}/v1/nothing",
        f"curl -s {ADDRESS}/risk -d '[]'",
    ],
)
def test_what_is_wrong_fails(text: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError, GuardError)):
        test_commands(Block(ROOT / "README.md", 1, "bash", text), server, monkeypatch)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples(example: Path, server: ScriptedServer, tmp_path: Path) -> None:
    program = ["bash"] if example.suffix == ".sh" else [sys.executable]
    if example.name == "curl.sh":
        need_curl()
    environment = {**os.environ, "HGUARD_URL": server.url, "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(tmp_path)}
    done = subprocess.run(
        [*program, example], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Sri Lanka" in done.stdout or (tmp_path / "token_risk.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def withholding() -> Iterator[ScriptedServer]:
    """A server that withholds everything, unless it is asked otherwise."""
    running = ForkedScriptedServer(["--mode", "abstain", "--threshold", "0", "--max-threshold", "1"])
    yield running
    running.stop()


@pytest.mark.parametrize(("program", "example"), [("bash", "curl.sh"), (sys.executable, "openai_chat.py")])
def test_examples_say_what_a_server_withholds(program: str, example: str, withholding: ScriptedServer) -> None:
    if example == "curl.sh":
        need_curl()
    environment = {**os.environ, "HGUARD_URL": withholding.url}
    command = [program, str(ROOT / "examples" / example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("I am not certain enough") == (2 if example == "curl.sh" else 3)
    assert "Sri Lanka" in done.stdout, "where a request asks for another threshold"


def test_the_notebook_is_made_of_cells() -> None:
    text = (ROOT / "examples/plot_token_risk.py").read_text()
    cells = re.split(r"^# %%.*\n", text, flags=re.MULTILINE)[1:]
    assert len(cells) >= 4
    for cell in cells:
        ast.parse(cell)


@pytest.mark.parametrize("name", ["openai_chat.py", "plot_token_risk.py"])
def test_examples_on_a_server_that_withholds(name: str, strict: ScriptedServer, tmp_path: Path) -> None:
    """The others ask for a mode of their own, or print what they get."""
    test_examples(ROOT / "examples" / name, strict, tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_read_address_and_key(example: Path) -> None:
    text = example.read_text()
    assert {"HGUARD_URL", "HGUARD_API_KEY"} <= set(re.findall(r"HGUARD_[A-Z_]+", text))
    assert ADDRESS in text


def test_the_documents_name_every_example() -> None:
    named = "".join(block.text for block in BLOCKS)
    assert [example.name for example in EXAMPLES if f"examples/{example.name}" not in named] == []
