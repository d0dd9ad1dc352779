"""hneuron-guard: reads a language model's hallucination neurons while it answers, and acts on what they say."""

__version__ = "0.1.0"
