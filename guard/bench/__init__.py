"""What the guard costs: plain and guarded vLLM side by side in one run, alternating, under the same load."""
