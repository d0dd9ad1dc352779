"""What a probe is worth on held-out answers, beside baselines."""
