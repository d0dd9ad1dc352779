"""HTTP: vLLM's own OpenAI routes composed with ours."""
