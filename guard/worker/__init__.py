"""The part of the guard inside vLLM's workers: tapped layers, their kernels, and adapters to the runners."""
