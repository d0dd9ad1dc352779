"""What an installed copy must hold beside its modules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]


def test_templates_and_pages_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where setuptools looks for packages
    distribution = Distribution({"src_root": "."})
    distribution.script_name = "setup.py"  # as a build calls it
    distribution.parse_config_files(["pyproject.toml"])
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    installed = {str(Path(folder, name)) for _, folder, _, names in command.data_files for name in names}
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "app/server/page", "*.j2"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in listed if name.startswith(("app/", "guard/", "models/"))}
    assert ours
    assert ours <= installed
