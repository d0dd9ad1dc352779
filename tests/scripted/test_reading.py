"""Routes that are only read: HEAD is answered as GET, and one model has a route of its own."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from app.ingress.auth import ApiKeys
from app.settings import Settings
from tests.scripted.server import listening, over, scripted_app

READ = ("/", "/live", "/ready", "/health", "/ping", "/version", "/v1/models", "/v1/models/atlas", "/info", "/v1/probe")


async def test_head(app: FastAPI) -> None:
    async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as http:
        for path in READ:
            get, head = await http.get(path), await http.head(path)
            assert (get.status_code, head.status_code) == (200, 200), path
            assert head.content == b""
            assert head.headers["content-length"] == str(len(get.content)), path
        for path, status in (("/v1/chat/completions", 405), ("/nowhere", 404)):
            head = await http.head(path)
            assert (head.status_code, head.content) == (status, b"")
        assert (await http.head("/v1/chat/completions")).headers["allow"] == "POST"
        assert (await http.get("/live")).json() == {"status": "live"}, "the connection is still in step"


async def test_head_says_when_the_server_ends(app: FastAPI, http: httpx.AsyncClient) -> None:
    app.state.admission.close("draining")
    assert (await http.head("/ready")).status_code == 503


async def test_head_needs_a_key_where_get_does() -> None:
    async with scripted_app(Settings(api_keys=ApiKeys.parse("secret"))) as app, over(app) as http:
        for path in READ:
            assert (await http.head(path)).status_code == (await http.get(path)).status_code, path


async def test_a_slash_more_is_no_matter_of_keys() -> None:
    async with scripted_app(Settings(api_keys=ApiKeys.parse("secret"))) as app, over(app) as http:
        for path in ("/health", "/live", "/ready", "/ping"):
            moved = await http.get(f"{path}/")
            assert (moved.status_code, moved.headers["location"]) == (307, f"http://scripted{path}"), path
        assert "hguard_slots" in (await http.get("/metrics/")).text
        for path in ("/info/", "/v1/models/", "/metrics//"):
            assert (await http.get(path)).status_code in (401, 404), path


async def test_one_model(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    for card in listed:
        one = (await http.get(f"/v1/models/{card['id']}")).json()
        assert {**one, "created": 0, "permission": []} == {**card, "created": 0, "permission": []}
    assert [one["id"] for one in (await http.get("/v1/models/")).json()["data"]] == ["atlas"]


@pytest.mark.parametrize("name", ["other", "atlas/x", "org%2Fother"])
async def test_no_such_model(http: httpx.AsyncClient, name: str) -> None:
    response = await http.get(f"/v1/models/{name}")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)
    assert "this server has 'atlas'" in error["message"]
