"""Experiments of the evaluation axis."""
