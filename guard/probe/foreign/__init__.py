"""Probes in other people's formats: lists of neurons, and what hprobes saves."""
