"""Composes the server: guarded engine, vLLM's routes behind the guard, our own routes, uvicorn."""

from __future__ import annotations

import copy
import logging
import os
import resource
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

import guard
from app import errors
from app.ingress import auth
from app.ingress.admission import Admission, capacity
from app.ingress.middleware import IngressMiddleware
from app.protocols import openapi, risk, routes, validation
from app.protocols.adapters.registry import GUARDED
from app.protocols.limits import RENDERING, RISK, Limits
from app.protocols.options import PolicyResolver
from app.protocols.tokenizer import Detokenizer
from app.protocols.wire import Writer
from app.resolver import find_model, find_probe, locate
from app.server import address, docs, health, lifecycle, system
from app.server.exchange import ProbeExchange
from app.server.head import Head
from app.server.routes import close_unguarded
from app.settings import Settings
from app.telemetry.metrics import IngressMetrics, Metrics, OwnRequestsMetrics
from app.telemetry.record import Exporter, Exporters, LogLine
from app.telemetry.shadow import Shadow
from guard.errors import UnsupportedError
from guard.launch import support
from guard.launch.engines import chat_template, engine_arguments, guarded_engine, warn
from guard.probe.bundle import Bundle, load_bundle, require_calibrated, require_model
from guard.versions import engine_version


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was checked before any process starts."""

    settings: Settings
    model: Path
    name: str
    bundle: Bundle
    resolver: PolicyResolver
    args: Namespace
    shadow: PolicyResolver | None = None


def plan(settings: Settings, extra: Sequence[str] = ()) -> Plan:
    """Check model, probe, engine and options. Raises GuardError with a sentence for the operator."""
    model, name, bundle = _served(settings)
    if bundle.reference is None:
        warn(
            f"probe {bundle.card.id} has no reference: config.json and the layers' scores are compared with nothing; "
            f"`hguard probe reference {settings.model} --probe DIR` makes one"
        )
    resolver = PolicyResolver(settings, bundle)
    own = ["--host", settings.host, "--port", str(settings.port), "--disable-uvicorn-access-log", *extra]
    args = engine_arguments(
        model,
        name,
        bundle,
        settings.compile,
        own,
        settings.relaxed,
        room=settings.probe_room,
        apart=bool(settings.explain_neurons),
    )
    if settings.explain_neurons is None and args.enforce_eager:
        settings = settings.model_copy(update={"explain_neurons": True})
        resolver = PolicyResolver(settings, bundle)
    if (args.host, args.port) != (settings.host, settings.port):
        raise UnsupportedError("the address is set with --host and --port before --, not among vLLM's arguments")
    support.require_node(args, first=True)
    return Plan(settings, model, name, bundle, resolver, args, _shadow(settings, bundle))


def _shadow(settings: Settings, serving: Bundle) -> PolicyResolver | None:
    """That of the probe which is scored beside the one that serves. Raises GuardError for one that cannot be."""
    if settings.shadow_probe is None:
        return None
    bundle = load_bundle(locate(settings.shadow_probe), with_reference=False)
    require_calibrated(bundle, settings.model)
    if not bundle.reads_within(serving):
        raise UnsupportedError(
            f"the shadow probe {bundle.card.id} reads what {serving.card.id} does not, or other weights: only what is "
            "measured for the probe that serves can be scored beside it (the same neurons, `hguard calibrate` keeps "
            "them); take it up instead with --probe"
        )
    return PolicyResolver(settings, bundle)


def _served(settings: Settings) -> tuple[Path, str, Bundle]:
    """As ``matched``; and GuardError for a probe that was never calibrated."""
    model, name, bundle = matched(settings)
    require_calibrated(bundle, settings.model)
    return model, name, bundle


def matched(settings: Settings) -> tuple[Path, str, Bundle]:
    """(model's folder, served name, probe) that belong together. Raises GuardError when they do not."""
    model, name = find_model(settings)
    bundle = load_bundle(find_probe(settings))
    for difference in require_model(bundle, model, settings.relaxed):
        warn(f"WARNING: {difference} from what the probe was fit on; its risks may be off")
    return model, name, bundle


@asynccontextmanager
async def guarded_app(plan: Plan) -> AsyncIterator[FastAPI]:
    """The app over a running engine whose self-test has passed."""
    from vllm.entrypoints.openai.api_server import build_app, init_app_state

    settings, bundle = plan.settings, plan.bundle
    async with guarded_engine(plan.args, bundle, plan.resolver.policy, settings.slots, settings.max_tokens) as engine:
        tasks = await engine.get_supported_tasks()
        app: FastAPI = build_app(plan.args, tasks, engine.model_config)
        await init_app_state(engine, app.state, plan.args, tasks)
        for served in app.state.openai_serving_models.base_model_paths:
            served.model_path = plan.name  # what /v1/models calls its root: callers need not know the server's folders
        app.title, app.version = "hneuron-guard", guard.__version__
        closed = close_unguarded(app)
        admission = app.state.admission = _admission(settings, engine.vllm_config.scheduler_config.max_num_seqs)
        metrics = Metrics(bundle, plan.name)
        metrics.slots.set_function(lambda: engine.pool.in_use)
        metrics.all_slots.set(engine.pool.size)
        OwnRequestsMetrics(engine.own, plan.name)
        tokenizer, template = engine.get_tokenizer(), chat_template(plan.args)
        beside: list[Exporter] = []
        if (shadow := plan.shadow) is not None:
            beside.append(Shadow(shadow.bundle, shadow.threshold, plan.name))
        spell, exporters = Detokenizer(tokenizer).spell, Exporters((metrics, LogLine(), *beside))
        reader = Detokenizer(copy.deepcopy(tokenizer), template)  # works in a thread of its own

        def guard_of(bundle: Bundle) -> routes.Guard:
            resolver, writer = PolicyResolver(settings, bundle), Writer(bundle, spell)
            return routes.Guard(resolver, writer, exporters, settings.refusal, settings.fallback_text)

        exchange = app.state.exchange = ProbeExchange(
            engine, lambda: _served(settings)[2], guard_of, metrics, settings.drain_seconds
        )
        current = exchange.current
        app.include_router(routes.router(current))
        limits = Limits(settings, admission.capacity)
        scorer = risk.RiskScorer(engine, plan.name, current, reader, settings.risk_seconds, limits.max_risk_items)
        app.include_router(risk.router(scorer))
        app.include_router(
            system.router(lambda: exchange.bundle, lambda: _effective(plan, exchange.resolver, engine, closed))
        )
        app.include_router(health.router(admission, lambda: engine.errored))
        if app.openapi_url:  # without `-- --disable-fastapi-docs`
            app.include_router(docs.router())
        openapi.install(app, bool(settings.api_keys), settings.max_risk_items)
        inner: ExceptionMiddleware = innermost(app).app
        inner.add_exception_handler(HTTPException, errors.of_http)
        validation.install(inner)
        # Innermost: vLLM's CORS headers are on our errors, and nothing between us and the router changes a path.
        innermost(app).app = _ingress(Head(inner), settings, admission, limits)
        yield app


def bind(plan: Plan) -> socket.socket:
    """Take the port before the engine starts. Raises GuardError when it is in use, UnsupportedError without keys."""
    address.require_keys(plan.settings)
    return address.listen(plan.settings)


async def serve(plan: Plan, sock: socket.socket) -> None:
    """Serve until a signal has ended it; see ``serving``. Raises GuardError when the engine died."""
    # Every connection is a descriptor, and shells allow 1,024 of them.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("hguard").setLevel(logging.INFO)
    os.environ.pop(auth.VARIABLE, None)  # the engine's processes inherit the environment, and need no keys
    url = f"http://{address.shown(plan.settings)}"
    print(f"hguard: starting {plan.name} ...", flush=True)
    from vllm.envs import enable_envs_cache

    async with guarded_app(plan) as app:
        # vLLM reads some variables for every token: from here on none of them changes.
        enable_envs_cache()
        ready = f"hguard: {plan.name} is ready, guarded by {plan.bundle.card.id}: {url}"
        await lifecycle.serve(
            app,
            sock,
            engine=app.state.engine_client,
            admission=app.state.admission,
            drain_seconds=plan.settings.drain_seconds,
            keep_alive_seconds=plan.settings.keep_alive_seconds,
            ready=lambda: print(ready, flush=True),
            on_hangup=app.state.exchange,
        )


def innermost(app: FastAPI) -> Any:
    """The middleware right before the router's error handling.

    The stack is built already, by vLLM's SageMaker bootstrap, and its metrics do not survive being built twice.
    """
    layer: Any = app.middleware_stack or app.build_middleware_stack()
    app.middleware_stack = layer
    while not isinstance(layer.app, ExceptionMiddleware):
        layer = layer.app
    return layer


def _ingress(app: ASGIApp, settings: Settings, admission: Admission, limits: Limits) -> IngressMiddleware:
    """The layer that every request passes first. No request may ask for more answers than the server has room for."""
    return IngressMiddleware(
        app,
        keys=settings.api_keys,
        limits=limits,
        admission=admission,
        refused=IngressMetrics(admission).refused,
        working=GUARDED | RISK | RENDERING,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
    )


def _admission(settings: Settings, running: int) -> Admission:
    """Places for the answers that the engine runs and those that may wait."""
    return Admission(settings.max_concurrent_requests, capacity(running, settings.max_queue, settings.slots))


def _effective(plan: Plan, resolver: PolicyResolver, engine: Any, closed: list[str]) -> dict[str, Any]:
    distribution, version = engine_version()
    bundle = resolver.bundle
    return {
        "version": guard.__version__,
        "engine": {"distribution": distribution, "version": version, "compiled": not plan.args.enforce_eager},
        "model": {
            "name": plan.name,
            "dtype": str(engine.model_config.dtype).removeprefix("torch."),
            "context": engine.model_config.max_model_len,
        },
        "probe": {"id": bundle.card.id, "revision": bundle.revision, "h_neurons": bundle.h_neurons},
        "shadow": plan.shadow and {"id": plan.shadow.bundle.card.id, "revision": plan.shadow.bundle.revision},
        "threshold": resolver.threshold,
        "ceilings": asdict(resolver.ceilings),
        "settings": plan.settings.model_dump(mode="json", exclude={"model", "probe", "shadow_probe", "api_keys_file"}),
        "closed_routes": closed,
    }
