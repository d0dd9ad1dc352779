"""Tests of ``guard/launch`` that start no engine."""
