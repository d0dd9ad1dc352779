"""Where models and probes come from: a folder, atlas in the package, or the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.settings import ATLAS, Settings
from guard.errors import BundleError, UnsupportedError

_HF = re.compile(r"^hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_GONE = (RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError)


def find_model(settings: Settings) -> tuple[Path, str]:
    """(folder, served name). Raises UnsupportedError when the model cannot be had."""
    name = settings.model
    if name == "atlas":
        if not (ATLAS / "model.safetensors").is_file():
            raise UnsupportedError(f"atlas is not built: {ATLAS} has no weights; run `make atlas`")
        return ATLAS, settings.served_model_name or "atlas"
    if (folder := Path(name)).is_dir():
        return folder, settings.served_model_name or name
    if not _HUB_ID.match(name):
        raise UnsupportedError(f"no model at {name!r}: neither a folder nor an owner/name of the Hugging Face Hub")
    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        path = snapshot_download(name, revision=settings.revision, allow_patterns=patterns)
    except _GONE as error:
        raise UnsupportedError(f"the model {name!r} could not be fetched from the Hugging Face Hub: {error}") from None
    return Path(path), settings.served_model_name or name


def find_probe(settings: Settings) -> Path:
    """The folder of the probe bundle. Raises BundleError when there is none."""
    probe = settings.probe
    if probe is None:
        if settings.model == "atlas":
            return ATLAS / "probe"
        raise BundleError(f"no probe for {settings.model!r}: give --probe PATH or --probe hf://owner/name@revision")
    if not probe.startswith("hf://"):
        return Path(probe)
    match = _HF.match(probe)
    if match is None:
        raise BundleError(f"--probe {probe!r} is not of the form hf://owner/name@revision")
    try:
        return Path(
            snapshot_download(
                match["repo"], revision=match["revision"], allow_patterns=["probe.json", "probe.safetensors"]
            )
        )
    except _GONE as error:
        raise BundleError(f"the probe {probe!r} could not be fetched from the Hugging Face Hub: {error}") from None
