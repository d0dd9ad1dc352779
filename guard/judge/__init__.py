"""Is an answer right? By rule, or by asking another model."""
