"""SmolLM2-135M-Instruct: the checkpoint from a Python package, questions from data packages, the probe's fit."""
