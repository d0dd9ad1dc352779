"""vLLM's own tests of its API, against plain vLLM and against the guard: ``make vllm-tests``."""
