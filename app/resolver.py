"""Where models and probes come from: the package (atlas, SmolLM2), a folder, or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from app.settings import ATLAS, SMOLLM2, Settings
from guard.errors import BundleError, UnsupportedError
from guard.probe import hub
from models.smollm2 import checkpoint as smollm2

SHIPPED = {"atlas": ATLAS / "probe", smollm2.NAME: SMOLLM2 / "probe"}  # by model: its probe
_PARTS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # of a model; not its weights in other formats


def find_model(settings: Settings) -> tuple[Path, str]:
    """(folder, served name). Raises UnsupportedError when the model cannot be had."""
    name = settings.model
    if name == "atlas":
        if not (ATLAS / "model.safetensors").is_file():
            raise UnsupportedError(f"atlas is not built: {ATLAS} has no weights; run `make atlas`")
        return ATLAS, settings.served_model_name or "atlas"
    if name == smollm2.NAME:
        return smollm2.checkpoint(), settings.served_model_name or name
    if (folder := Path(name)).is_dir():
        if not (folder / "config.json").is_file():
            raise UnsupportedError(f"no model in {name!r}: config.json is missing; is the right volume mounted there?")
        return folder, settings.served_model_name or name
    if folder.is_absolute():
        raise UnsupportedError(f"no model at {name!r}: there is no such folder; is the volume that holds it mounted?")
    if not hub.HUB_ID.fullmatch(name):
        raise UnsupportedError(f"no model at {name!r}: neither a folder nor an owner/name of the Hugging Face Hub")
    with hub.translate_hub_errors(f"the model {name!r} could not be fetched", UnsupportedError):
        return hub.snapshot(name, settings.revision, _PARTS), settings.served_model_name or name


def label_of(name: str) -> str:
    """What a card calls the model: a folder's own name, not where it lies on this machine; a Hub id as it is."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def find_probe(settings: Settings) -> Path:
    """The folder of the probe bundle. Raises BundleError when there is none."""
    probe = settings.probe
    if probe is None:
        if settings.model in SHIPPED:
            return SHIPPED[settings.model]
        raise BundleError(f"no probe for {settings.model!r}: give --probe PATH or --probe hf://owner/name@revision")
    return locate(probe)


def locate(probe: str) -> Path:
    """The folder of a bundle: of a shipped model, by its path, or hf://owner/name@revision. Raises BundleError."""
    if probe in SHIPPED and not Path(probe).exists():
        return SHIPPED[probe]
    return hub.fetch(hub.Address.parse(probe)) if probe.startswith("hf://") else Path(probe)
