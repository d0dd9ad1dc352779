"""``make`` installs with pip's own settings, and takes torch's CPU build from PyTorch's index where those lack it.

pip is the real one, with a folder to install into; the indices are folders that a server of this test gives out.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import runpy
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0+cpu"


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of two indices: ``/pypi`` without torch's CPU build, ``/torch`` with it (a wheel of nothing)."""
    folder = tmp_path_factory.mktemp("indices")
    for index in ("pypi", "torch"):
        (folder / index / "torch").mkdir(parents=True)
        (folder / index / "torch" / "index.html").write_text("<html></html>")
    wheel = folder / "torch/torch/torch-2.13.0+cpu-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "torch-2.13.0+cpu.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    link = f'<a href="{wheel.name.replace("+", "%2B")}#sha256={digest}">{wheel.name}</a>'
    (wheel.parent / "index.html").write_text(f"<html><body>{link}</body></html>")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def install(into: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installer with no settings of pip's but these."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_INDEX"))}
    bare |= {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1", "no_proxy": "127.0.0.1", **environment}
    command = [sys.executable, str(ROOT / "requirements/install.py"), "the engine's packages"]
    command += ["--target", str(into), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=bare)


def test_torch_comes_from_its_own_index(indices: str, tmp_path: Path) -> None:
    done = install(tmp_path, TORCH, PIP_INDEX_URL=f"{indices}/pypi", TORCH_INDEX=f"{indices}/torch")
    assert not done.returncode, done.stderr
    assert not done.stderr
    told = done.stdout.splitlines()
    assert told[0] == "hguard: installing the engine's packages ..."
    assert told[1] == f"hguard: torch's CPU build comes from {indices}/torch ..."
    assert told[2].startswith("hguard: installed the engine's packages in ")
    assert len(told) == 3
    assert (tmp_path / "torch-2.13.0+cpu.dist-info").is_dir()


def test_pip_s_own_settings_come_first(indices: str, tmp_path: Path) -> None:
    fetched = install(tmp_path, TORCH, PIP_INDEX_URL=f"{indices}/torch", TORCH_INDEX="http://127.0.0.1:9/no")
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert "comes from" not in fetched.stdout


@pytest.mark.parametrize(
    ("index", "arguments", "says"),
    [
        (
            "/pypi",
            [TORCH],
            "http://127.0.0.1:9/torch, cannot be reached ([Errno 111] Connection refused): set TORCH_INDEX to an index",
        ),
        (
            "/pypi",
            ["nothing-of-this-name"],
            "Could not find a version that satisfies the requirement nothing-of-this-name",
        ),
        (":9/", ["nothing"], "check the network, and HTTPS_PROXY if there is a proxy"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    index: str, arguments: list[str], says: str, indices: str, tmp_path: Path
) -> None:
    address = f"{indices}{index}" if index.startswith("/") else f"http://127.0.0.1{index}"
    done = install(tmp_path, *arguments, PIP_INDEX_URL=address, TORCH_INDEX="http://127.0.0.1:9/torch")
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert says in lines[0]
    assert all(line.startswith("hguard: ") for line in lines)
    assert len(lines) <= 2


def test_a_full_disk() -> None:
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    cause = runpy.run_path(str(ROOT / "requirements/install.py"))["_cause"](said)
    assert cause == "the disk is full: make room for 6 GiB, in .venv and in pip's cache"
