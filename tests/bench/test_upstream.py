"""vLLM's tests against both servers: what is compared, how servers are started, and what of the archive is unpacked."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from bench.upstream import __main__ as command_line
from bench.upstream import archive, checkpoint, plugin
from bench.upstream.results import GUARDED, Known, Side, differing, read_known, read_outcomes, verdict
from guard.errors import GuardError

PLAIN = {"a": "passed", "b": "passed", "c": "failed", "d": "skipped"}


def known(reasons: dict[str, str], least: int = 0) -> Known:
    return Known(dict.fromkeys(GUARDED, reasons), least)


def test_what_passes_on_one_server_only_differs() -> None:
    assert differing(PLAIN, PLAIN) == {}
    assert differing(PLAIN, {**PLAIN, "c": "error"}) == {}, "it fails on both"
    assert differing(PLAIN, {**PLAIN, "a": "failed", "c": "passed"}) == {
        "a": "passed plain, failed guarded",
        "c": "failed plain, passed guarded",
    }
    assert differing(PLAIN, {**PLAIN, "b": "skipped"}) == {"b": "passed plain, skipped guarded"}


def test_what_one_server_did_not_run_differs() -> None:
    fewer = {test: outcome for test, outcome in PLAIN.items() if test not in ("c", "d")}
    assert differing(PLAIN, fewer) == {"c": "failed plain, not run guarded", "d": "skipped plain, not run guarded"}
    assert differing(fewer, PLAIN) == {"c": "not run plain, failed guarded", "d": "not run plain, skipped guarded"}


def test_only_what_is_listed_may_differ() -> None:
    found = {**PLAIN, "a": "failed"}
    assert verdict(PLAIN, {Side.SCORE: found}, known({"a": "closed"})) == []
    assert verdict(PLAIN, {Side.SCORE: found}, known({})) == ["score: a: passed plain, failed guarded, and not listed"]


def test_what_is_listed_must_differ() -> None:
    assert verdict(PLAIN, {Side.ABSTAIN: PLAIN}, known({"a": "closed"})) == ["abstain: a: listed, and no difference"]
    gone = verdict(PLAIN, {Side.ABSTAIN: PLAIN}, known({"renamed": "closed"}))
    assert gone == ["abstain: renamed: listed, and no difference"]


def test_a_broken_fixture_is_no_agreement() -> None:
    (line,) = verdict(PLAIN, {Side.SCORE: PLAIN}, known({}, least=3))
    assert line.startswith("plain: 2 tests pass, of which there were 3")
    assert verdict(PLAIN, {Side.SCORE: PLAIN}, known({}, least=2)) == []


def test_the_worst_outcome_of_a_test_counts(tmp_path: Path) -> None:
    rows = [("a", "passed"), ("a", "error"), ("b", "failed"), ("c", "skipped")]
    path = tmp_path / "outcomes.jsonl"
    path.write_text("".join(json.dumps({"test": t, "outcome": o, "said": ""}) + "\n" for t, o in rows), "utf-8")
    assert read_outcomes(path) == {"a": "error", "b": "failed", "c": "skipped"}


def test_differences_are_read_by_mode(tmp_path: Path) -> None:
    path = tmp_path / "differences.toml"
    path.write_text(
        'least = 5\n[[difference]]\nreason = "closed"\ntests = ["a", "b"]\n'
        '[[difference]]\nreason = "held"\nmodes = ["abstain"]\ntests = ["c"]\n',
        "utf-8",
    )
    both = {"a": "closed", "b": "closed"}
    assert read_known(path) == Known({Side.SCORE: both, Side.ABSTAIN: {**both, "c": "held"}}, 5)


@pytest.mark.parametrize(
    "groups",
    [
        '[[difference]]\nreason = " "\ntests = ["a"]\n',
        '[[difference]]\nreason = "one"\ntests = ["a"]\n[[difference]]\nreason = "two"\ntests = ["a"]\n',
    ],
    ids=["no reason", "twice"],
)
def test_each_difference_has_one_reason(tmp_path: Path, groups: str) -> None:
    path = tmp_path / "differences.toml"
    path.write_text("least = 0\n" + groups, "utf-8")
    with pytest.raises(GuardError):
        read_known(path)


def test_what_is_listed_belongs_to_tests_that_are_run() -> None:
    listed = read_known(command_line.HERE / "differences.toml")
    for reasons in listed.differences.values():
        assert [test for test in reasons if test.partition("::")[0] not in command_line.FILES] == []


def test_both_servers_get_what_a_test_asks_for() -> None:
    asked = ["--dtype", "bfloat16", "--max-model-len", "64", "--enable-lora", "--lora-modules", "a=b", "c=d"]
    asked += ["--enforce-eager", "--served-model-name", "one", "two", "--port=80", "--seed", "0"]
    own, rest = plugin.split(asked)
    assert own == {"--served-model-name": ["one", "two"], "--port": ["80"]}
    assert rest == ["--max-model-len", "64", "--seed", "0"]
    plain = plugin.command(Side.PLAIN, Path("model"), "name", asked)
    abstain = plugin.command(Side.ABSTAIN, Path("model"), "name", asked)
    for line in (plain, abstain):
        assert line[-4:] == rest
        at = len(line) - line[::-1].index("--served-model-name") - 1
        assert line[at + 1 : at + 3] == ["one", "two"]
    assert abstain[abstain.index("--threshold") + 1] == "1", "at which nothing is withheld"
    assert "--threshold" not in plugin.command(Side.SCORE, Path("model"), "name", asked)


@pytest.mark.parametrize(
    ("arguments", "asked", "shared"),
    [
        (["--dtype", "half", "--max-model-len", "8192", "--enforce-eager", "--port", "80", "--seed", "0"], None, True),
        (["--max-model-len", "1024"], None, False),
        (["--max-model-len=2048", "--max-num-seqs", "4"], None, True),
        (["--max-model-len", "8192", "--return-tokens-as-token-ids"], None, False),
        (["--served-model-name", "other"], None, False),
        ([], {"VLLM_API_KEY": "key"}, False),
    ],
)
def test_only_tests_that_ask_for_nothing_special_share_a_server(
    arguments: list[str], asked: dict[str, str] | None, shared: bool
) -> None:
    assert plugin.shares(arguments, asked) is shared


def test_every_model_is_the_random_one(tmp_path: Path) -> None:
    file = tmp_path / "test_a.py"
    file.write_text('A = "Qwen/Qwen3-0.6B"\nB = "Qwen/Qwen3-0.6B-base"\nC = "facebook/opt-125m"\n', "utf-8")
    checkpoint.renamed(tmp_path)
    assert file.read_text("utf-8") == f'A = "{checkpoint.NAME}"\nB = "Qwen/Qwen3-0.6B-base"\nC = "{checkpoint.NAME}"\n'


def test_plain_vllm_has_no_plugin_and_the_guard_the_same_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    asked = {"VLLM_API_KEY": "key", "VLLM_SERVER_DEV_MODE": "1"}
    plain = plugin.environment(Side.PLAIN, tmp_path, asked)
    guarded = plugin.environment(Side.SCORE, tmp_path, asked)
    assert (plain["VLLM_PLUGINS"], plain["VLLM_API_KEY"]) == ("", "key")
    assert "VLLM_PLUGINS" not in guarded
    assert "VLLM_API_KEY" not in guarded
    assert guarded["HGUARD_API_KEYS"] == "key"
    assert plain["VLLM_SERVER_DEV_MODE"] == guarded["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_archive_is_the_pinned_one_and_only_tests_of_the_api_leave_it(tmp_path: Path) -> None:
    packed = tmp_path / archive.NAME
    root = packed.name.removesuffix(".tar.gz")
    names = (
        "tests/utils.py",
        "tests/conftest.py",
        "tests/entrypoints/test_a.py",
        "vllm/__init__.py",
        "../tests/utils.py",
    )
    with tarfile.open(packed, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"\n"))
    with pytest.raises(GuardError, match="sha256"):
        archive.fetched(tmp_path)
    folder = archive.unpacked(packed, tmp_path / "src")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"tests/utils.py", "tests/entrypoints/test_a.py"}
