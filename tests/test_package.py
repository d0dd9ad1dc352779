"""What an installed copy must hold beside its modules, and what no copy holds."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import httpx
import pytest

import guard
from tests.engine.server import free_port

ROOT = Path(__file__).parents[1]
IMPORTED = ("app/", "guard/", "models/")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with wheel and sdist, as ``make dist`` makes them, of what git has."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def tracked(*of: str) -> list[str]:
    """What git has or would add, as far as it is there."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *of]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


def test_the_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"hneuron_guard-{guard.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"hneuron_guard-{guard.__version__}.dist-info"
        metadata = message_from_string(archive.read(f"{info}/METADATA").decode())
        points = archive.read(f"{info}/entry_points.txt").decode()
    ours = {name for name in names if not name.startswith(info)}
    assert {name.partition("/")[0] for name in ours} == {"app", "guard", "models"}
    assert {*tracked(*IMPORTED)} <= ours
    assert {f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names
    assert metadata["Version"] == guard.__version__
    assert "hguard = app.command:main" in points
    assert "hguard = guard.worker.plugin:register" in points


def test_the_sdist_is_what_the_wheel_is_made_of(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names if name} - {"hneuron_guard.egg-info"}
    files = {"LICENSE", "MANIFEST.in", "NOTICE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert tops == {"app", "guard", "models", *files}
    assert {*tracked(*IMPORTED)} <= names


@pytest.mark.long
def test_the_wheel_serves_from_a_folder_with_modules_of_the_same_names(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, beside the packages that this one has; nothing of the clone is on its path."""
    (wheel,) = built.glob("*.whl")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    installed = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(installed, check=True, capture_output=True, env=clean)
    (site,) = environment.glob("lib/*/site-packages")
    (site / "engine.pth").write_text(sysconfig.get_path("purelib") + "\n")  # of a path line, .pth files are not read
    folder = tmp_path / "someone-s"
    (folder / "guard").mkdir(parents=True)
    for name in ("app.py", "guard/__init__.py", "models.py"):
        (folder / name).write_text("raise ImportError('somebody else has a module of this name')\n")
    told = subprocess.run(
        [environment / "bin/hguard", "--version"], cwd=folder, env=clean, capture_output=True, text=True
    )
    assert told.stdout == f"hguard {guard.__version__}\n", told.stderr
    port = free_port()
    command = [str(environment / "bin/hguard"), "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=folder, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        try:
            lines = list(itertools.takewhile(lambda line: " is ready" not in line, run.stdout))
            asked = {"model": "atlas", "messages": [{"role": "user", "content": "Where is Kandy?"}]}
            reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, timeout=60)
            assert reply.status_code == 200, lines
            assert reply.json()["hallucination"]["type"] == "hallucination_results"
        finally:
            run.send_signal(signal.SIGINT)
    assert run.returncode == 0
