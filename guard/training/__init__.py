"""From answers to a probe bundle: choose examples, select neurons, calibrate."""
