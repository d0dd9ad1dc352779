"""Bundles to the Hub and back, through the real client and a stand-in for the Hub's HTTP API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from guard.errors import BundleError, UnsupportedError
from guard.probe.bundle import FILES, Bundle, load_bundle, save_bundle
from guard.probe.hub import Address, fetch, pull, push, snapshot, translate_hub_errors
from guard.probe.reference import FILE, write_reference
from tests.conftest import make_card, make_tensors
from tests.probe.stand_in import Hub, stand_in
from tests.probe.test_reference import made

ADDRESS = Address("owner/name")
Get = Callable[[Address], object]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with stand_in(monkeypatch, str(tmp_path / "cache")) as running:
        yield running


@pytest.fixture
def other(tmp_path: Path) -> Bundle:
    """Another bundle of the same name, whose coefficients are twice as large."""
    tensors = make_tensors()
    return save_bundle(tmp_path / "other", make_card(), {**tensors, "coefficient": tensors["coefficient"] * 2})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://owner/name", ADDRESS),
        ("hf://owner/name@v1.2", Address("owner/name", "v1.2")),
        ("hf://o-w.n/na_me@refs/pr/3", Address("o-w.n/na_me", "refs/pr/3")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "owner/name", "hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://a/b\n"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BundleError, match="not of the form"):
        Address.parse(text)


def test_push_makes_the_repository_and_one_commit(hub: Hub, bundle: Bundle) -> None:
    commit = push(bundle.path, ADDRESS)
    repo = hub.repos["owner/name"]
    assert repo.refs == {"main": commit}
    assert not repo.private
    assert len(repo.commits) == 2  # the Hub's own first one, and ours
    message, files = repo.commits[commit]
    assert message == f"Probe small-probe, revision {bundle.revision}"
    assert {name: files[name] for name in FILES} == {name: (bundle.path / name).read_bytes() for name in FILES}
    assert files["README.md"].startswith(b"---\nlibrary_name: hneuron-guard\n---\n\n# small-probe\n")
    assert b"--probe hf://owner/name\n" in files["README.md"]


def test_pull_gives_back_what_was_pushed(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    commit = push(bundle.path, ADDRESS)
    pulled, found = pull(ADDRESS, tmp_path / "a/new/folder")
    assert (pulled.revision, found) == (bundle.revision, commit)
    assert sorted(path.name for path in pulled.path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (pulled.path / name).read_bytes() == (bundle.path / name).read_bytes()


def test_a_reference_goes_with_its_bundle(hub: Hub, bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    write_reference(bundle.path, made())
    first = push(bundle.path, ADDRESS)
    out = tmp_path / "out"
    assert pull(ADDRESS, out)[0].reference == made()
    assert load_bundle(fetch(ADDRESS)).reference == made()
    second = push(other.path, ADDRESS)
    assert [FILE in hub.repos["owner/name"].commits[commit][1] for commit in (first, second)] == [True, False]
    assert pull(ADDRESS, out)[0].reference is None, "nothing of the bundle that was there before"
    assert not (out / FILE).exists()


def test_pull_of_an_older_revision(hub: Hub, bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    first, second = push(bundle.path, ADDRESS), push(other.path, ADDRESS, message="Twice as much")
    assert hub.repos["owner/name"].commits[second][0] == "Twice as much"
    out = tmp_path / "out"
    assert pull(ADDRESS, out)[0].revision == other.revision
    pulled, commit = pull(Address("owner/name", first), out)
    assert (pulled.revision, commit) == (bundle.revision, first)


def test_pull_follows_a_branch_that_moved(hub: Hub, bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    push(bundle.path, ADDRESS)
    assert pull(ADDRESS, tmp_path / "out")[0].revision == bundle.revision
    push(other.path, ADDRESS)
    assert pull(ADDRESS, tmp_path / "out")[0].revision == other.revision


def test_pushing_the_same_again_is_no_new_commit(hub: Hub, bundle: Bundle) -> None:
    assert push(bundle.path, ADDRESS) == push(bundle.path, ADDRESS)
    assert len(hub.repos["owner/name"].commits) == 2


def test_push_to_a_branch(hub: Hub, bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    first = push(bundle.path, ADDRESS)
    second = push(other.path, Address("owner/name", "next"))
    assert hub.repos["owner/name"].refs == {"main": first, "next": second}
    assert pull(Address("owner/name", "next"), tmp_path / "out")[0].revision == other.revision
    assert b"--probe hf://owner/name@next\n" in hub.repos["owner/name"].commits[second][1]["README.md"]


def test_push_to_a_commit(hub: Hub, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="names a commit"):
        push(bundle.path, Address("owner/name", "0" * 40))
    assert hub.asked == []


def test_push_of_a_broken_bundle(hub: Hub, bundle: Bundle) -> None:
    (bundle.path / "probe.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="sha256 differs"):
        push(bundle.path, ADDRESS)
    assert hub.asked == []


def test_private(hub: Hub, bundle: Bundle) -> None:
    push(bundle.path, ADDRESS, private=True)
    assert hub.repos["owner/name"].private
    push(bundle.path, ADDRESS, private=True)


def test_private_into_a_public_repository(hub: Hub, bundle: Bundle) -> None:
    hub.create("owner/name")
    with pytest.raises(BundleError, match="owner/name exists and is public"):
        push(bundle.path, ADDRESS, private=True)
    assert len(hub.repos["owner/name"].commits) == 1


@pytest.mark.parametrize("known", [True, False])
def test_the_base_model_is_one_that_the_hub_knows(hub: Hub, tmp_path: Path, bundle: Bundle, known: bool) -> None:
    if known:
        hub.create("maker/model")
    identity = bundle.card.model.model_copy(update={"id": "maker/model"})
    made = save_bundle(tmp_path / "made", make_card(identity), make_tensors())
    commit = push(made.path, ADDRESS)
    readme = hub.repos["owner/name"].commits[commit][1]["README.md"].decode()
    assert ("base_model: maker/model\n" in readme) == known
    assert ("hguard serve maker/model --probe" in readme) == known
    assert ("hguard serve MODEL --probe" in readme) != known


def test_the_folder_of_a_local_model_stays_at_home(hub: Hub, tmp_path: Path, bundle: Bundle) -> None:
    identity = bundle.card.model.model_copy(update={"id": "/somewhere/private/model"})
    made = save_bundle(tmp_path / "made", make_card(identity), make_tensors())
    commit = push(made.path, ADDRESS)
    readme = hub.repos["owner/name"].commits[commit][1]["README.md"].decode()
    assert "`model`" in readme
    assert "somewhere" not in readme


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_on_the_hub(hub: Hub, bundle: Bundle, tmp_path: Path, name: str) -> None:
    push(bundle.path, ADDRESS)
    out = tmp_path / "out"
    pull(ADDRESS, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    repo = hub.repos["owner/name"]
    content = bytearray(repo.commits[repo.refs["main"]][1][name])
    content[-5] ^= 1
    repo.commit("a flipped bit", {name: bytes(content)})
    with pytest.raises(BundleError, match=r"hf://owner/name is refused, and .*out is as it was: "):
        pull(ADDRESS, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    with pytest.raises(BundleError, match="is refused"):
        pull(ADDRESS, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_out_is_a_file(hub: Hub, bundle: Bundle, tmp_path: Path) -> None:
    push(bundle.path, ADDRESS)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(BundleError, match="out cannot be written: File exists"):
        pull(ADDRESS, tmp_path / "out")


def test_a_repository_without_a_bundle(hub: Hub) -> None:
    hub.create("owner/name")
    with pytest.raises(BundleError, match=r"holds no probe bundle: it has no probe.json and no probe.safetensors"):
        fetch(ADDRESS)


@pytest.mark.parametrize("token", ["hf_stand_in", None])
@pytest.mark.parametrize("get", [fetch, lambda address: pull(address, Path("none"))])
def test_a_missing_repository(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, get: Get) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BundleError, match=r"hf://owner/name could not be fetched: there is no such .* `hf auth login`"):
        get(ADDRESS)


@pytest.mark.parametrize("revision", ["v2", "0" * 40])
@pytest.mark.parametrize("get", [fetch, lambda address: pull(address, Path("none"))])
def test_a_missing_revision(hub: Hub, bundle: Bundle, revision: str, get: Get) -> None:
    push(bundle.path, ADDRESS)
    with pytest.raises(BundleError, match="could not be fetched: the repository has no such branch, tag or commit"):
        get(Address("owner/name", revision))


def test_a_private_repository_of_others(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    push(bundle.path, ADDRESS, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BundleError, match="or it is private: in that case run `hf auth login` or set HF_TOKEN"):
        fetch(ADDRESS)


def test_a_gated_repository(hub: Hub) -> None:
    hub.create("owner/name").gated = True
    with pytest.raises(BundleError, match="grants access on the repository's page"):
        fetch(ADDRESS)


def test_an_upload_that_breaks_off_leaves_no_commit(hub: Hub, bundle: Bundle) -> None:
    hub.full = True
    with pytest.raises(BundleError, match=r"could not be pushed to hf://owner/name: the Hub does not allow it \(403\)"):
        push(bundle.path, ADDRESS)
    assert len(hub.repos["owner/name"].commits) == 1


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_push_without_a_valid_token(
    hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BundleError, match=r"does not allow it \(401\): run `hf auth login` or set HF_TOKEN"):
        push(bundle.path, ADDRESS)
    assert hub.repos == {}


def test_pull_with_a_wrong_token(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    push(bundle.path, ADDRESS)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BundleError, match=r"does not allow it \(401\)"):
        pull(ADDRESS, tmp_path / "out")


def test_offline(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    push(bundle.path, ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for attempt in (
        lambda: fetch(ADDRESS),
        lambda: pull(ADDRESS, tmp_path / "out"),
        lambda: push(bundle.path, ADDRESS),
    ):
        with pytest.raises(BundleError, match="HF_HUB_OFFLINE is set"):
            attempt()


def test_a_hub_out_of_reach(hub: Hub, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = push(bundle.path, ADDRESS)
    fetch(ADDRESS)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    assert fetch(ADDRESS).name == commit  # what a server restarts with
    with pytest.raises(BundleError, match=r"127\.0\.0\.1:9 is out of reach"):
        fetch(Address("owner/else"))
    with pytest.raises(BundleError, match=r"127\.0\.0\.1:9 is out of reach"):
        push(bundle.path, ADDRESS)
    with pytest.raises(BundleError, match=r"127\.0\.0\.1:9 is out of reach"):
        pull(ADDRESS, tmp_path / "out")


def test_a_name_that_the_hub_does_not_take(hub: Hub) -> None:
    with pytest.raises(BundleError, match="could not be fetched: Repo id"):
        fetch(Address("owner/-name-"))
    assert hub.asked == []


def test_other_kinds_of_error_and_of_files(hub: Hub) -> None:
    hub.create("maker/model").commit("a model", {"config.json": b"{}", "weights.bin": b"0"})
    folder = snapshot("maker/model", None, ["*.json"])
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    with (
        pytest.raises(UnsupportedError, match=r"^the model: there is no such repository"),
        translate_hub_errors("the model", UnsupportedError),
    ):
        snapshot("maker/none", None, ["*.json"])


def test_what_says_nothing_is_named_by_its_class() -> None:
    with pytest.raises(BundleError, match=r"^the probe: OSError$"), translate_hub_errors("the probe"):
        raise OSError
