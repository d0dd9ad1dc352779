"""vLLM's source distribution: found as pip finds it, checked, kept, and of it the tests of the API unpacked."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from guard.errors import GuardError

VERSION = "0.32.0"
NAME = f"vllm-{VERSION}.tar.gz"
SHA256 = "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"
# tests/conftest.py is left out: it needs what runs models of all kinds, and no test that is run here needs it.
WANTED = ("tests/__init__.py", "tests/utils.py", "tests/entrypoints/")
_BLOCK = 1 << 20


def fetched(folder: Path, sha256: str = SHA256) -> Path:
    """The archive in ``folder``, downloaded if it is not there. Raises GuardError if its sha256 is another one."""
    path = folder / NAME
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        download(part)
        part.replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise GuardError(f"{path} has the sha256 {found}, not {sha256}: delete it to have it downloaded again")
    return path


def download(path: Path) -> None:
    """Write the archive to ``path``. Raises GuardError when pip's indexes do not have it.

    ``pip download`` builds a source distribution to read its metadata, and this one builds on no machine without
    CUDA. So pip's own finder and session are used: whatever index, proxy and certificate pip is configured with counts.
    """
    from pip._internal.commands import create_command

    command: Any = create_command("download")
    options, _ = command.parse_args(["--quiet", "--no-binary", "vllm", f"vllm=={VERSION}"])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = [found.link for found in finder.find_all_candidates("vllm") if found.link.filename == NAME]
        if not links:
            raise GuardError(f"no index that pip is configured with has {NAME}")
        # Without an encoding: a proxy that unpacks what it passes on would change the sum.
        with session.get(links[0].url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True) as reply:
            reply.raise_for_status()
            with path.open("wb") as out:
                for block in reply.iter_content(_BLOCK):
                    out.write(block)


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder with the tests of the API, and what these import, in it."""
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            inner = "/".join(name.parts[1:])
            if name.parts[0] != root or ".." in name.parts or not inner.startswith(WANTED):
                continue
            content = tar.extractfile(member)  # `extract` has no filter in Debian 12's Python
            if content is not None:  # of a file
                target = folder / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    return folder
