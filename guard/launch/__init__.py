"""From settings to a running engine: what is refused, where it writes, and the self-test before the first request."""
