"""What moved in vLLM's Python API between 0.26 and 0.32, each under one name."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import create_server_socket
except ImportError:  # 0.26
    from vllm.entrypoints.openai.api_server import create_server_socket
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args

try:
    from vllm.exceptions import GracefulHTTPError as RefusalError
    from vllm.exceptions import VLLMClientError as RequestFault
except ImportError:  # 0.26 answers with the status of this exception
    from vllm.entrypoints.openai.engine.protocol import GenerationError

    RequestFault = ValueError

    class RefusalError(GenerationError):  # type: ignore[no-redef]
        """A request that is turned away with an HTTP status of our choice."""

        def __init__(self, message: str, http_status: HTTPStatus) -> None:
            super().__init__(message)
            self.message, self.http_status, self.status_code = message, http_status, http_status


def refused(message: str) -> RefusalError:
    """To be raised where vLLM's routes are to answer that the request is wrong."""
    return RefusalError(message, HTTPStatus.BAD_REQUEST)


def refused_for_load(message: str) -> RefusalError:
    """To be raised where they are to answer that there is no room."""
    return RefusalError(message, HTTPStatus.SERVICE_UNAVAILABLE)


try:
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive
except ImportError:  # 0.26, which sends nothing into an idle stream
    from vllm.entrypoints.openai.engine.protocol import ErrorResponse

    def with_sse_keep_alive(generator: AsyncGenerator[Any, None], interval: float) -> AsyncGenerator[Any, None]:
        return generator


try:
    from vllm.renderers.chat_utils import load_chat_template
except ImportError:  # 0.26
    from vllm.entrypoints.chat_utils import load_chat_template

__all__ = [
    "ErrorResponse",
    "RefusalError",
    "RequestFault",
    "create_server_socket",
    "load_chat_template",
    "make_arg_parser",
    "refused",
    "refused_for_load",
    "validate_parsed_serve_args",
    "with_sse_keep_alive",
]
