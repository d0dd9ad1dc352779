"""Lets vLLM's V2 model runner run without a GPU: its Triton kernels on the CPU, by Triton's own interpreter.

Python imports this at the start of every process that has this folder on PYTHONPATH, so also in vLLM's workers.
vLLM's CPU backend takes the V2 runner where Triton has a backend called ``cpu``; interpreted kernels need none.
"""

import os

from triton.backends import Backend, backends

os.environ["TRITON_INTERPRET"] = "1"


class InterpretedDriver:
    """What vLLM asks of a backend's driver."""

    @staticmethod
    def is_active() -> bool:
        return True


backends["cpu"] = Backend(compiler=None, driver=InterpretedDriver)
