"""The ASGI layer around vLLM's generating routes: options in, verdict out.

It reads the request's ``hallucination`` object, makes the policy current for the engine client, and writes the verdict
into the JSON or the stream that vLLM produced. The text itself was already let go or withheld by the engine client.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.metrics import Metrics
from app.options import FIELD, Defaults, parse
from app.sse import FrameEditor
from app.wire import Writer
from guard.engine.call import GuardCall, Verdict, use_call
from guard.errors import RequestError
from guard.policy import Action, Fallback, Policy
from guard.probe.bundle import Bundle

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GUARDED = frozenset({CHAT, COMPLETIONS})

log = logging.getLogger("hguard")


class GuardMiddleware:
    """Pure ASGI; wraps the routes in GUARDED and leaves the others alone."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        bundle: Bundle,
        defaults: Defaults,
        writer: Writer,
        metrics: Metrics,
        refusal: str,
        max_body_bytes: int,
    ) -> None:
        self.app = app
        self._bundle, self._defaults, self._writer, self._metrics = bundle, defaults, writer, metrics
        self._refusal = refusal
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if path not in GUARDED:
            await self.app(scope, receive, send)
            return
        try:
            body = await read_body(scope, receive, self._max_body_bytes)
            request = parse_json(body)
            policy = self._policy(path, request)
        except RequestError as error:
            await errors.of(error)(scope, receive, send)
            return
        with use_call(GuardCall(policy)) as call:
            reply = _Reply(self._writer, call, self._refusal, send)
            began = time.perf_counter()
            try:
                await self.app(scope, _replay(request, receive), reply.send)
            finally:
                self._metrics.observe(call)
                _log(path, call, time.perf_counter() - began)

    def _policy(self, path: str, request: dict[str, Any]) -> Policy:
        raw = request.pop(FIELD, None)
        if request.get("use_beam_search"):
            raise RequestError("beam search is not guarded; use n instead", param="use_beam_search")
        if path == CHAT and request.get("messages") == []:
            raise RequestError("messages must hold at least one message", param="messages")
        wants_logprobs = bool(request.get("logprobs")) and path == CHAT
        return parse(raw, self._defaults, self._bundle, wants_logprobs)


def route_path(scope: Scope) -> str:
    """The path that the router will match: without the prefix that ``--root-path`` puts in front."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. Raises RequestError (413) beyond ``limit`` bytes, before they are all read."""
    declared = Headers(scope=scope).get("content-length")
    parts: list[bytes] = []
    size = int(declared) if declared and declared.isdigit() else 0
    more = size <= limit
    total = 0
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        total += len(parts[-1])
        more = message.get("more_body", False) and total <= limit
    if max(size, total) > limit:
        raise RequestError(f"the body is larger than {limit} bytes", param="body", status=413)
    return b"".join(parts)


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises RequestError."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", param="body") from None
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object", param="body")
    return content


def _replay(request: dict[str, Any], receive: Receive) -> Receive:
    """``receive`` for the inner app: the body without our field, then whatever the server says (a disconnect)."""
    body: bytes | None = json.dumps(request).encode()

    async def replay() -> Message:
        nonlocal body
        if body is not None:
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message
        return await receive()

    return replay


class _Reply:
    """Edits one response on its way out."""

    def __init__(self, writer: Writer, call: GuardCall, refusal: str, send: Send) -> None:
        self._writer, self._call, self._refusal, self._send = writer, call, refusal, send
        self._start: Message | None = None
        self._buffer: list[bytes] = []
        self._editor: FrameEditor | None = None
        self._sent: dict[int, int] = {}  # logprobs items sent, by choice

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if message["status"] != 200:
                await self._send(message)
            elif headers.get("content-type", "").startswith("text/event-stream"):
                self._editor = FrameEditor(self._edit)
                await self._send(message)
            else:
                self._start = message
        elif self._editor is not None:
            await self._send_frames(self._editor, message)
        elif self._start is not None:
            await self._send_json(self._start, message)
        else:
            await self._send(message)

    async def _send_frames(self, editor: FrameEditor, message: Message) -> None:
        more = message.get("more_body", False)
        body = editor.feed(message.get("body", b"")) + (b"" if more else editor.flush())
        if body or not more:
            await self._send({**message, "body": body})

    async def _send_json(self, start: Message, message: Message) -> None:
        self._buffer.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        content = json.loads(b"".join(self._buffer))
        self._edit(content)
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})

    def _edit(self, content: dict[str, Any]) -> None:
        """Write what the guard knows into a whole response or one chunk of a stream."""
        if "error" in content:
            return
        call = self._call
        ended: list[Verdict] = []
        for choice in content.get("choices", []):
            verdict = call.verdicts.get(choice["index"])
            if choice.get("finish_reason") is not None and verdict is not None:
                ended.append(verdict)
                if verdict.decision.action is Action.ABSTAINED:
                    self._abstain(choice, verdict)
            self._mark_tokens(choice)
        if self._editor is None:
            content[FIELD] = self._writer.write(ended)
            return
        if ended:
            content[FIELD] = self._writer.write(ended)
        if content.get("usage") and not content.get("choices"):
            everything = [call.verdicts[index] for index in sorted(call.verdicts)]
            content["usage"][FIELD] = self._writer.write(everything)

    def _mark_tokens(self, choice: dict[str, Any]) -> None:
        items = (choice.get("logprobs") or {}).get("content") or []
        risks = self._call.token_risks.get(choice["index"], [])
        first = self._sent.get(choice["index"], 0)
        for position, item in enumerate(items, first):
            item["risk"] = risks[position] if position < len(risks) else None
        self._sent[choice["index"]] = first + len(items)

    def _abstain(self, choice: dict[str, Any], verdict: Verdict) -> None:
        for leak in ("logprobs", "token_ids"):
            if leak in choice:
                choice[leak] = None
        if verdict.policy.fallback is Fallback.MESSAGE:
            return
        for part in ("message", "delta"):
            if part in choice:
                choice[part] = {"role": "assistant", "content": None, "refusal": self._refusal}


def _log(path: str, call: GuardCall, seconds: float) -> None:
    verdicts = [call.verdicts[index] for index in sorted(call.verdicts)]
    line = {
        "event": "answered",
        "route": path,
        "mode": call.policy.mode.value,
        "damp": call.policy.damp,
        "risks": [None if v.risk is None else round(v.risk, 4) for v in verdicts],
        "actions": [v.decision.action.value for v in verdicts],
        "preempted": any(v.preempted for v in verdicts),
        "tokens": sum(len(v.token_ids) for v in verdicts),
        "seconds": round(seconds, 4),
        "guard_seconds": round(call.overhead_seconds, 6),
    }
    log.info(json.dumps(line))
