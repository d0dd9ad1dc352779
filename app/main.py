"""Composes the server: guarded engine, vLLM's routes behind the guard, our own routes, uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

import guard
from app import info, risk
from app.guarding import GuardMiddleware
from app.metrics import Metrics
from app.options import Defaults
from app.routes import close_unguarded
from app.settings import Settings
from app.source import find_model, find_probe
from app.spelling import Speller
from app.wire import Writer
from guard.engine import support
from guard.engine.launch import complain, engine_arguments, guarded_engine
from guard.errors import UnsupportedError
from guard.probe.bundle import Bundle, load_bundle, require_calibrated, require_model


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was checked before any process starts."""

    settings: Settings
    model: Path
    name: str
    bundle: Bundle
    defaults: Defaults
    args: Namespace


def plan(settings: Settings, extra: Sequence[str] = ()) -> Plan:
    """Check model, probe, engine and options. Raises GuardError with a sentence for the operator."""
    support.engine_version()
    model, name = find_model(settings)
    bundle = load_bundle(find_probe(settings))
    for difference in require_model(bundle, model, settings.relaxed):
        complain(f"WARNING: {difference} from what the probe was fit on; its risks may be off")
    require_calibrated(bundle, settings.model)
    defaults = Defaults.resolve(settings.mode, settings.threshold, settings.target_fpr, bundle, settings.preempt)
    own = ["--host", settings.host, "--port", str(settings.port), "--disable-uvicorn-access-log", *extra]
    args = engine_arguments(model, name, bundle, settings.compile, own, settings.relaxed)
    if (args.host, args.port) != (settings.host, settings.port):
        raise UnsupportedError("the address is set with --host and --port before --, not among vLLM's arguments")
    return Plan(settings, model, name, bundle, defaults, args)


@asynccontextmanager
async def guarded_app(plan: Plan) -> AsyncIterator[FastAPI]:
    """The app over a running engine whose canary has passed."""
    from vllm.entrypoints.openai.api_server import build_app, init_app_state

    settings, bundle = plan.settings, plan.bundle
    async with guarded_engine(
        plan.args, bundle, plan.defaults.policy, settings.fallback_text, settings.slots
    ) as engine:
        tasks = await engine.get_supported_tasks()
        app: FastAPI = build_app(plan.args, tasks, engine.model_config)
        await init_app_state(engine, app.state, plan.args, tasks)
        app.title, app.version = "hneuron-guard", guard.__version__
        closed = close_unguarded(app)
        metrics = Metrics(bundle, plan.name)
        metrics.slots.set_function(lambda: engine.pool.in_use)
        speller = Speller(engine.get_tokenizer(), _chat_template(plan.args))
        writer = Writer(bundle, speller.spell)
        scorer = risk.RiskScorer(engine, plan.name, plan.defaults, speller, writer, metrics, settings.max_risk_items)
        app.include_router(risk.router(scorer, settings.max_body_bytes))
        app.include_router(info.router(bundle, _effective(plan, engine, closed)))
        app.middleware_stack = None  # vLLM's SageMaker bootstrap built it already; it is built anew with ours on top
        app.add_middleware(
            GuardMiddleware,
            bundle=bundle,
            defaults=plan.defaults,
            writer=writer,
            metrics=metrics,
            refusal=settings.refusal,
            max_body_bytes=settings.max_body_bytes,
        )
        yield app


def bind(plan: Plan) -> socket.socket:
    """Take the port before the engine starts. Raises OSError when it is in use."""
    from guard.engine.vllm_api import create_server_socket

    sock: socket.socket = create_server_socket((plan.settings.host, plan.settings.port), reuse_port=False)
    return sock


async def serve(plan: Plan, sock: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    from vllm import envs

    from guard.engine.vllm_api import serve_http

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hguard").setLevel(logging.INFO)
    address = f"http://{_host_in_url(plan.settings.host)}:{plan.settings.port}"
    print(f"hguard: starting {plan.name} ...", flush=True)
    async with guarded_app(plan) as app:
        ready = f"hguard: {plan.name} is ready, guarded by {plan.bundle.card.id}: {address}"
        announcing = asyncio.create_task(_announce(app, ready))
        shutdown = await serve_http(
            app,
            sock=sock,
            host=plan.settings.host,
            port=plan.settings.port,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        )
        announcing.cancel()
    await shutdown


async def _announce(app: FastAPI, line: str) -> None:
    """Print ``line`` once requests are accepted; serve_http leaves its uvicorn server in the app's state."""
    while not getattr(getattr(app.state, "server", None), "started", False):  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.05)
    print(line, flush=True)


def _host_in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _chat_template(args: Namespace) -> str | None:
    """vLLM's --chat-template: a file or the template itself."""
    given: str | None = args.chat_template
    if given is not None and "\n" not in given and Path(given).is_file():
        return Path(given).read_text(encoding="utf-8")
    return given


def _effective(plan: Plan, engine: Any, closed: list[str]) -> dict[str, Any]:
    distribution, version = support.engine_version()
    return {
        "version": guard.__version__,
        "engine": {"distribution": distribution, "version": version, "compiled": not plan.args.enforce_eager},
        "model": {
            "name": plan.name,
            "dtype": str(engine.model_config.dtype).removeprefix("torch."),
            "context": engine.model_config.max_model_len,
        },
        "probe": {"id": plan.bundle.card.id, "revision": plan.bundle.revision, "h_neurons": plan.bundle.h_neurons},
        "threshold": plan.defaults.threshold,
        "settings": plan.settings.model_dump(mode="json", exclude={"model", "probe"}),
        "closed_routes": closed,
    }
