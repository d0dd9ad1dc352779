"""vLLM's tests against both servers: what is compared, how servers are started, and what of the archive is unpacked."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.upstream import __main__ as command_line
from bench.upstream import archive, checkpoint, fork_server, plugin
from bench.upstream.fork_server import ForkServer
from bench.upstream.results import GUARDED, Known, Side, differing, read_known, read_outcomes, verdict
from guard.errors import GuardError

TALK = plugin.ONE_FOR_ALL
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


def test_a_race_may_end_as_it_will_but_is_run() -> None:
    races = replace(known({}, least=1), races={"a": "looks twice"})
    for outcome in ("passed", "failed"):
        assert verdict({**PLAIN, "a": "failed"}, {Side.SCORE: {**PLAIN, "a": outcome}}, races) == []
    without = {test: outcome for test, outcome in PLAIN.items() if test != "a"}
    assert verdict(PLAIN, {Side.SCORE: without}, races) == ["score: a: a race, and not run"]
    (line,) = verdict(PLAIN, {Side.SCORE: PLAIN}, replace(races, least=2))
    assert line.startswith("plain: 1 tests pass"), "nor does it count among those that pass"
    assert races.of(["other"]).races == {}


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
        '[[race]]\nreason = ""\ntests = ["a"]\n',
        '[[race]]\nreason = "one"\ntests = ["a"]\n[[difference]]\nreason = "two"\ntests = ["a"]\n',
    ],
    ids=["no reason", "twice", "a race without a reason", "a race that differs"],
)
def test_each_difference_has_one_reason(tmp_path: Path, groups: str) -> None:
    path = tmp_path / "differences.toml"
    path.write_text("least = 0\n" + groups, "utf-8")
    with pytest.raises(GuardError):
        read_known(path)


def test_what_is_listed_belongs_to_tests_that_are_run() -> None:
    listed = read_known(command_line.HERE / "differences.toml")
    for reasons in (*listed.differences.values(), listed.races):
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
        (["--dtype", "half", "--max-model-len", "8192", "--enforce-eager", "--port", "80", "--seed", "0"], None, TALK),
        (["--max-model-len", "512"], None, None),
        (["--max-model-len=2048", "--max-num-seqs", "4", "--no-enable-prefix-caching"], None, TALK),
        (["--max-model-len", "8192", "--return-tokens-as-token-ids"], None, None),
        (["--max-model-len", "8192", "--max-model-len", "10100"], None, None),
        (["--served-model-name", checkpoint.NAME], None, TALK),
        (["--enable-prompt-tokens-details", "--seed", "0"], None, plugin.DETAILED),
        (["--served-model-name", "other"], None, None),
        ([], {"VLLM_API_KEY": "key"}, None),
        (["--reasoning-parser", "qwen3", "--max-model-len", "2048"], None, plugin.THINKING),
        (["--max_model_len", "5000"], {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}, plugin.THINKING),
        ([], {"VLLM_ENABLE_RESPONSES_API_STORE": "0"}, None),
    ],
)
def test_only_tests_that_ask_for_nothing_special_share_a_server(
    arguments: list[str], asked: dict[str, str] | None, shared: tuple[str, ...] | None
) -> None:
    assert plugin.shares(arguments, asked) == shared


def test_who_asks_for_long_answers_may_have_them() -> None:
    for side in Side:
        line = plugin.command(side, Path("model"), "name", ["--max-model-len", "8192", *plugin.UNCAPPED, "--seed", "0"])
        assert line[-2:] == ["--generation-config", "vllm"]
        assert "--generation-config" not in plugin.command(side, Path("model"), "name", ["--max-model-len", "8192"])


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """Of processes that sleep, in the place of servers."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from bench.upstream import fork_server\n"
        "from bench.upstream.results import Side\n"
        "def serve(side, arguments):\n"
        "    open(arguments[0], 'w').write(os.environ['SAYS'])\n"
        "    time.sleep(float(arguments[1]))\n"
        "    return 3\n"
        "fork_server.serve, fork_server._MODULES, fork_server._SPAWNING = serve, (), ()\n"
        "sys.argv = ['', 'plain']\n"
        "fork_server.main()\n",
        "utf-8",
    )
    monkeypatch.setattr(fork_server, "COMMAND", [sys.executable, str(program)])
    made = ForkServer(Side.PLAIN, command_line.ROOT, {**os.environ, "PYTHONPATH": str(command_line.ROOT)})
    yield made
    made.close()


def test_a_forked_server_has_arguments_and_an_environment_of_its_own(servers: ForkServer, tmp_path: Path) -> None:
    told = [tmp_path / "one", tmp_path / "two"]
    started = [servers.start([str(path), "0"], {"SAYS": path.name}) for path in told]
    assert [one.wait(20) for one in started] == [3, 3]
    assert [path.read_text("utf-8") for path in told] == ["one", "two"]
    assert started[0].poll() == 3, "a second time, too"


def test_a_forked_server_is_ended_and_those_left_are_with_the_last(servers: ForkServer, tmp_path: Path) -> None:
    one, two = (servers.start([str(tmp_path / "told"), "60"], {"SAYS": ""}) for _ in range(2))
    assert one.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0)
    one.terminate()
    assert one.wait(20) == -signal.SIGTERM
    servers.close()
    for _ in range(100):
        if not Path(f"/proc/{two.pid}").exists():
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_every_model_is_the_random_one(tmp_path: Path) -> None:
    file = tmp_path / "test_a.py"
    file.write_text('A = "Qwen/Qwen3-0.6B"\nB = "Qwen/Qwen3-0.6B-base"\nC = "facebook/opt-125m"\n', "utf-8")
    checkpoint.renamed(tmp_path)
    assert file.read_text("utf-8") == f'A = "{checkpoint.NAME}"\nB = "Qwen/Qwen3-0.6B-base"\nC = "{checkpoint.NAME}"\n'


def test_plain_vllm_has_no_plugin_and_the_guard_the_same_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    asked = {"VLLM_API_KEY": "key", "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    plain = plugin.environment(Side.PLAIN, tmp_path, asked)
    guarded = plugin.environment(Side.SCORE, tmp_path, asked)
    assert (plain["VLLM_PLUGINS"], plain["VLLM_API_KEY"]) == ("", "key")
    assert "VLLM_PLUGINS" not in guarded
    assert not {"VLLM_API_KEY", "VLLM_ENABLE_RESPONSES_API_STORE"} & guarded.keys()
    assert plain["VLLM_ENABLE_RESPONSES_API_STORE"] == "1"
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
