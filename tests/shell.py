"""What a piece of shell would run, as bash itself parses it. None of it is run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Bash shows each simple command to the trap before it runs it, and skips it where the trap fails.
_SHOW = """\
shopt -s extdebug
trap 'printf "%s\\0" "$BASH_COMMAND" >> "$SEEN"; false' DEBUG
"""
_BASH = shutil.which("bash") or "/bin/bash"


@dataclass(frozen=True)
class Command:
    """A simple command. ``text``: as it was written, with redirections; ``words``: without these, quotes removed, and
    nothing substituted; ``variables``: what is set for it alone."""

    text: str
    words: list[str]
    variables: dict[str, str]

    @property
    def name(self) -> str:
        return self.words[0] if self.words else ""


def commands_of(text: str) -> list[Command]:
    """Raises ValueError for what bash cannot parse."""
    checked = subprocess.run([_BASH, "-n"], input=text, capture_output=True, text=True)
    if checked.returncode or checked.stderr:
        raise ValueError(checked.stderr.strip() or "bash cannot parse it")
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"
        seen.touch()
        environment = {"SEEN": str(seen), "PATH": "", "LC_ALL": os.environ.get("LC_ALL", "C.UTF-8")}
        subprocess.run([_BASH, "--norc"], input=_SHOW + text, env=environment, cwd=folder, text=True, check=True)
        texts = seen.read_text(encoding="utf-8").split("\0")[:-1]
    return [_command(one) for one in texts]


def _command(text: str) -> Command:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    variables: dict[str, str] = {}
    tokens = iter(lexer)
    for token in tokens:
        if token and set(token) <= {"<", ">"}:
            next(tokens, None)
            if words and words[-1] == "2":
                words.pop()
        elif not words and token.partition("=")[0].isidentifier() and "=" in token:
            name, _, value = token.partition("=")
            variables[name] = value
        else:
            words.append(token)
    return Command(text, words, variables)
