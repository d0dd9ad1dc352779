"""The scripted application, and a client of it; every slot of it is free again at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from tests.scripted.server import over, scripted_app


@pytest.fixture
async def app() -> AsyncIterator[FastAPI]:
    async with scripted_app() as made:
        yield made
        assert made.state.engine_client.pool.in_use == 0


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with over(app) as client:
        yield client
