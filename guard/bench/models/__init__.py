"""What is measured where no model is at hand: real shapes with random weights, and an engine without a model."""
