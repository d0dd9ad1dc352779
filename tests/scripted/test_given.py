"""What a server that withholds says of given texts, which nobody can withhold; and what it keeps to itself."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.settings import Settings
from guard.policy import Mode
from tests.scripted.server import over, scripted_app


async def scored(http: httpx.AsyncClient, response: str, **options: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": "Where is Kandy?"}],
        "response": response,
        "hallucination": options,
    }
    reply = await http.post("/risk", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()["hallucination"]
    return found


@pytest.mark.parametrize(("mode", "action"), [(Mode.SCORE, "pass"), (Mode.FLAG, "flagged"), (Mode.ABSTAIN, "flagged")])
async def test_nothing_is_called_withheld(mode: Mode, action: str) -> None:
    async with scripted_app(Settings(mode=mode)) as app, over(app) as http:
        found = await scored(http, "It is risky.")
        (one,) = found["results"]
        assert (found["mode"], one["flagged"], one["action"]) == (mode.value, True, action)
        assert one["tokens"], "nor is anything left out"
        assert (await scored(http, "It is safe."))["results"][0]["action"] == "pass"
        metrics = (await http.get("/metrics")).text
        assert 'hguard_requests_total{model="atlas",outcome="abstained"} 0.0' in metrics
        marked = float(action == "flagged")
        assert f'hguard_would_abstain_total{{model="atlas"}} {marked}' in metrics


async def test_what_has_no_score_is_marked_where_the_guard_fails_closed() -> None:
    async with scripted_app(Settings(mode=Mode.ABSTAIN)) as app, over(app) as http:
        found = await scored(http, "It is nan and all that.")
        assert (found["type"], found["reason"], found["action"]) == ("not_scored", "not_finite", "flagged")
        metrics = (await http.get("/metrics")).text
        assert 'hguard_requests_total{model="atlas",outcome="not_scored"} 1.0' in metrics
        for counter in ("hguard_bypass_total", "hguard_withheld_unscored_total"):
            assert f'{counter}{{model="atlas",reason="not_finite"}} 0.0' in metrics


async def test_vllms_option_closes_the_documents() -> None:
    async with scripted_app(extra=["--disable-fastapi-docs"]) as app, over(app) as http:
        assert [(await http.get(path)).status_code for path in ("/docs", "/openapi.json", "/redoc")] == [404] * 3


async def test_models_do_not_tell_where_they_lie() -> None:
    async with scripted_app(Settings(served_model_name="mine")) as app, over(app) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [(one["id"], one["root"]) for one in listed] == [("mine", "mine")]
        assert (await http.get("/v1/models/mine")).json()["root"] == "mine"
