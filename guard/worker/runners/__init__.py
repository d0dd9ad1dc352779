"""Adapters to vLLM's two model runners."""
