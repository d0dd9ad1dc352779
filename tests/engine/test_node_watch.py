"""How a further node notices that the first one is gone."""

from __future__ import annotations

import socket
import threading

import pytest

from guard.errors import GuardError
from guard.launch.multinode import connect, wait_for_end
from tests.engine.server import free_port


def test_a_line_ends_with_the_other_side() -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        line = connect(*store.getsockname())
        other, _ = store.accept()
        waiting = threading.Thread(target=wait_for_end, args=(line,))
        waiting.start()
        other.sendall(b"whatever a store may say")
        waiting.join(0.2)
        assert waiting.is_alive()
        other.close()
        waiting.join(10)
        assert not waiting.is_alive()


def test_a_silent_machine_is_asked_whether_it_lives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as store, connect(*store.getsockname()) as line:
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert line.gettimeout() is None


def test_no_first_node() -> None:
    with pytest.raises(GuardError, match="the first node does not answer at"):
        connect("127.0.0.1", free_port())
