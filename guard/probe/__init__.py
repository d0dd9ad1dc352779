"""The probe bundle and its arithmetic. Imports neither vLLM nor FastAPI."""
