"""Names of metrics in PromQL, and in what a server exposes."""

from __future__ import annotations

import re

import httpx

_NAME = re.compile(r"\b(?:hguard_\w+|hguard:[\w:]+|vllm:\w+|http_\w+|process_\w+|up)\b")


def names_in(expr: str) -> set[str]:
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expr)))


def names_of(exposition: str) -> set[str]:
    return {re.split(r"[{ ]", line, maxsplit=1)[0] for line in exposition.splitlines() if line and line[0] != "#"}


def exposed_by(url: str) -> set[str]:
    """After one request: those of HTTP begin with the first."""
    body = {"model": "atlas", "messages": [{"role": "user", "content": "Where is Kandy?"}]}
    httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
    return names_of(httpx.get(f"{url}/metrics", timeout=60).text)
