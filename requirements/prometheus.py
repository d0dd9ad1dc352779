"""Puts promtool and prometheus into .venv/bin from Debian's package, where the system has none. Needs no root.

The rules and dashboards of ``deploy/`` are tested with them. Standard library only.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = ("promtool", "prometheus")


def main(folder: Path) -> int:
    """Install; where that is not possible, say what to do: the tests that need them will say that they were skipped."""
    if all(shutil.which(name) for name in TOOLS):
        return 0
    if not shutil.which("apt-get"):
        print("hguard: no promtool: install Prometheus to have deploy/ tested", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as work:
        if not fetched(Path(work)):
            print("hguard: apt-get cannot download prometheus; `apt install prometheus` as root", file=sys.stderr)
            return 0
        (package,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, work], check=True)
        for name in TOOLS:
            shutil.copy(Path(work) / "usr/bin" / name, folder / name)
    return 0


def fetched(folder: Path) -> bool:
    """Download the package, with fresh lists if it takes them and they may be had."""
    download = ["apt-get", "download", "-qq", "prometheus"]
    for before in ([], ["apt-get", "update", "-qq"]):
        if before and subprocess.run(before, stderr=subprocess.DEVNULL).returncode:
            return False
        if not subprocess.run(download, cwd=folder, stderr=subprocess.DEVNULL).returncode:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
