"""The test suite."""

import os

import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported: kernels then run anywhere, slowly. Engines on the CPU use none.
    os.environ["TRITON_INTERPRET"] = "1"
