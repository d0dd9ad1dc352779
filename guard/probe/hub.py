"""Probe bundles on the Hugging Face Hub, by ``hf://owner/name@revision``; what the Hub says no to, in sentences."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # httpx's, of whichever generation the client stands on; not exported by name
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from guard.errors import BundleError, GuardError
from guard.probe.bundle import FILES, Bundle, load_bundle
from guard.probe.reference import FILE as REFERENCE
from guard.templates import template

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ADDRESS = re.compile(rf"hf://(?P<repo>{HUB_ID.pattern})(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOGIN = "run `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Address:
    """``hf://repo@revision``: a branch, a tag or a commit of a repository; None is its main branch."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises BundleError for what is no address."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise BundleError(f"{text!r} is not of the form hf://owner/name@revision")
        return cls(match["repo"], match["revision"])

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def snapshot(repo: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a repository's files at a revision; from the cache when the Hub is out of reach."""
    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def fetch(address: Address) -> Path:
    """The folder of the bundle's files, named by its commit; not verified. Raises BundleError."""
    with translate_hub_errors(f"the probe {address} could not be fetched"):
        folder = snapshot(address.repo, address.revision, (*FILES, REFERENCE))
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise BundleError(f"{address} holds no probe bundle: it has no {' and no '.join(missing)}")
    return folder


def pull(address: Address, out: Path) -> tuple[Bundle, str]:
    """Fetch and verify, then write to ``out``, which a refusal leaves alone: (bundle, commit). Raises BundleError."""
    with translate_hub_errors(f"the probe {address} could not be fetched"):
        # Asked of the Hub each time: the cache may remember an older commit of the same branch.
        commit = HfApi().model_info(address.repo, revision=address.revision).sha
    folder = fetch(Address(address.repo, commit))
    try:
        load_bundle(folder)
    except BundleError as error:
        raise BundleError(f"{address} is refused, and {out} is as it was: {error}") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".pull-") as staged:
            names = [name for name in (*FILES, REFERENCE) if (folder / name).is_file()]
            for name in names:
                (Path(staged) / name).write_bytes((folder / name).read_bytes())
            for name in names:
                (Path(staged) / name).replace(out / name)
            if REFERENCE not in names:
                (out / REFERENCE).unlink(missing_ok=True)  # of another bundle, which was here before
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from None
    return load_bundle(out), folder.name


def push(folder: Path, address: Address, private: bool = False, message: str | None = None) -> str:
    """Verify the bundle and push it with a model card in one commit, which is returned. Raises BundleError."""
    if address.revision is not None and _COMMIT.fullmatch(address.revision):
        raise BundleError(f"{address} names a commit, and what is pushed needs a branch")
    bundle = load_bundle(folder)
    api = HfApi()
    with translate_hub_errors(f"{folder} could not be pushed to {address}"):
        model = bundle.card.model.id
        base = model if HUB_ID.fullmatch(model) and not Path(model).exists() and api.repo_exists(model) else None
        api.create_repo(address.repo, private=private or None, exist_ok=True)
        # The Hub ignores the wish for a repository that exists, and what was public once cannot be taken back.
        if private and not api.model_info(address.repo).private:
            raise BundleError(f"{address.repo} exists and is public: make it private on the Hub, or drop --private")
        if address.revision is not None and not address.revision.startswith("refs/"):
            api.create_branch(address.repo, branch=address.revision, exist_ok=True)
        contents = {name: (folder / name).read_bytes() for name in FILES}
        contents["README.md"] = readme(bundle, str(address), base).encode()
        changes: list[CommitOperationAdd | CommitOperationDelete] = []
        if bundle.reference is not None:
            contents[REFERENCE] = (folder / REFERENCE).read_bytes()
        elif api.file_exists(address.repo, REFERENCE, revision=address.revision):
            changes.append(CommitOperationDelete(REFERENCE))  # of the bundle that this one replaces
        commit = api.create_commit(
            address.repo,
            [*(CommitOperationAdd(name, content) for name, content in contents.items()), *changes],
            commit_message=message or f"Probe {bundle.card.id}, revision {bundle.revision}",
            revision=address.revision,
        )
    return commit.oid


@contextmanager
def translate_hub_errors(what: str, kind: type[GuardError] = BundleError) -> Iterator[None]:
    """Turn what the Hub's client raises into one sentence for a person, of type ``kind``."""
    try:
        yield
    # Its own errors are OSErrors and ValueErrors; what its transfers raise comes wrapped in RuntimeErrors.
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise kind(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        return _reason(error.__cause__)
    if isinstance(error, GatedRepoError):
        return f"its owner grants access on the repository's page; then {_LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is private: in that case {_LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"the Hub does not allow it ({error.response.status_code}): {_LOGIN} with a token that may do this"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the cache does not have it"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError):
        return f"{constants.ENDPOINT} is out of reach ({text})"
    return text


def readme(bundle: Bundle, address: str, base_model: str | None) -> str:
    """A short page: which model, how to serve it, what was measured; ``base_model`` is that model's id on the Hub."""
    card = bundle.card
    # A folder's name says as much as its whole path, which is nobody's business.
    model = base_model or Path(card.model.id).name
    return template(Path(__file__).with_name("readme.md.j2")).render(
        bundle=bundle,
        card=card,
        model=model,
        base_model=base_model,
        served=base_model or (model if model == "atlas" else "MODEL"),
        address=address,
        layers=len(set(bundle.layer.tolist())),
        parts=list(dict.fromkeys(part for report in card.metrics.values() for part in report.auroc)),
    )
