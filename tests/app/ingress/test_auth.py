"""API keys: kept as digests, never shown, compared as a whole."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.cli.main import main, settings_from
from app.ingress.auth import ApiKeys, is_loopback
from app.server.app import Plan, bind
from app.settings import Settings
from guard.errors import GuardError, UnsupportedError

SECRET = "hg-" + "5f3c9a" * 4


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def bearer(token: bytes | str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    raw = token if isinstance(token, bytes) else token.encode()
    return [(b"host", b"test"), (b"authorization", scheme.encode() + b" " + raw)]


@pytest.mark.parametrize(
    ("given", "count"),
    [("", 0), (" , ", 0), ("a", 1), ("a,b c\n\td,,e", 5), (["a", "b,c"], 3), ([], 0), (("a",), 1)],
)
def test_keys_from_text_and_lists(given: Any, count: int) -> None:
    assert len(ApiKeys.parse(given)) == count
    assert bool(ApiKeys.parse(given)) == (count > 0)


@pytest.mark.parametrize("given", [None, 5, {"a": 1}, [1, 2], [None], "schlüssel", "a\x00b", ["ok", "na\u00efve"]])
def test_what_is_no_key_is_refused_without_being_shown(given: Any) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        ApiKeys.parse(given)
    assert "schl" not in str(caught.value)


def test_either_of_two_keys_lets_in_and_says_which() -> None:
    keys = ApiKeys.parse("first,second")
    assert keys.holder(bearer("first")) == 0
    assert keys.holder(bearer("second")) == 1
    assert keys.holder(bearer("second", "bEaReR")) == 1
    assert keys.holder([(b"x-api-key", b"second")]) == 1
    assert keys.holder([(b"authorization", b"Basic abc"), (b"x-api-key", b"first")]) == 0
    assert keys.holder([(b"x-api-key", b"wrong"), (b"authorization", b"Bearer first")]) == 0


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer("  "),
        bearer("firs"),
        bearer("first2"),
        bearer("First"),
        bearer("first,second"),
        bearer("first second"),
        bearer("first", "Basic"),
        bearer("first", "Token"),
        bearer("first", ""),
        bearer("f\u00efrst"),
        bearer(b"\xff\xfe"),
        bearer(b"first\x00"),
        [(b"authorization", b"first")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer\tfirst")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"Bearer first")],
        [(b"api-key", b"first")],
        [(b"cookie", b"first")],
    ],
)
def test_nothing_else_does(headers: list[tuple[bytes, bytes]]) -> None:
    assert ApiKeys.parse("first,second").holder(headers) is None
    assert ApiKeys.parse("").holder(headers) is None


def test_every_digest_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a refusal or a welcome takes does not say which key was nearly right."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("app.ingress.auth.hmac.compare_digest", compare)
    keys = ApiKeys.parse("a,b,c")
    for offered in ("a", "c", "none"):
        compared.clear()
        keys.holder(bearer(offered))
        assert len(compared) == 3
        assert {len(part) for pair in compared for part in pair} == {32}


def test_keys_are_settings_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("hguard.toml").write_text('api_keys = ["one", "two"]\n')
    assert len(settings_from({}).api_keys) == 2
    monkeypatch.setenv("HGUARD_API_KEYS", "one, two\nthree")
    assert len(settings_from({}).api_keys) == 3
    assert len(settings_from({"api_keys": "one"}).api_keys) == 1
    assert not Settings.model_fields["api_keys"].default


def test_keys_are_nowhere_to_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HGUARD_API_KEYS", f"{SECRET},other")
    settings = settings_from({})
    shown = [repr(settings), str(settings), json.dumps(settings.model_dump(mode="json")), settings.model_dump_json()]
    assert settings.model_dump(mode="json")["api_keys"] == 2
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown.append(capsys.readouterr().out)
    assert "--api-keys" in shown[-1]
    assert not [text for text in shown if SECRET in text]
    assert SECRET.encode() not in b"".join(settings.api_keys._digests)


def test_a_wrong_key_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HGUARD_API_KEYS", f"{SECRET}-\u00fc")
    with pytest.raises(GuardError, match=r"api_keys: .*key 1 has letters") as caught:
        settings_from({})
    assert SECRET not in str(caught.value)


def test_keys_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\nother\n")
    monkeypatch.setenv("HGUARD_API_KEYS_FILE", str(tmp_path / "secret"))
    settings = settings_from({})
    assert settings.api_keys.holder(bearer(SECRET)) == 0
    assert len(settings.api_keys) == 2
    assert SECRET not in f"{settings!r} {settings.model_dump_json()}"
    monkeypatch.setenv("HGUARD_API_KEYS", "third")
    with pytest.raises(GuardError, match="given twice"):
        settings_from({})
    monkeypatch.setenv("HGUARD_API_KEYS_FILE", "")
    assert len(settings_from({}).api_keys) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory): mount the secret"),
        (b"", "holds no key"),
        (b" ,\n", "holds no key"),
        (SECRET.encode() + b"\xff", "is not text"),
        (SECRET.encode() + "\u00fc".encode(), "is wrong: key 1 has letters"),
    ],
)
def test_a_wrong_key_secret_never_opens_the_server(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    assert main(["serve", "--api-keys-file", str(secret)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hguard: wrong settings: the API key file {secret} ")
    assert says in line
    assert SECRET not in line


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org", "128.0.0.1"])
def test_reachable_from_elsewhere(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UnsupportedError, match=r"no keys: set HGUARD_API_KEYS or HGUARD_API_KEYS_FILE, or --allow"):
        bind(planned(host=host))


@pytest.mark.parametrize("more", [{"api_keys": "one"}, {"allow_unauthenticated": True}, {"host": "127.0.0.1"}])
def test_a_server_that_may_listen(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    taken: list[Any] = []

    def take(address: Any, reuse_port: bool) -> socket.socket:
        taken.append(address)
        return socket.socket()

    monkeypatch.setattr("guard.compat.create_server_socket", take)
    with bind(planned(**{"host": "0.0.0.0", **more})):
        assert len(taken) == 1


def planned(**values: Any) -> Plan:
    return cast(Plan, SimpleNamespace(settings=settings_from(values)))
