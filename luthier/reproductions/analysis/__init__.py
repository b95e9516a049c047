"""Experiments of the analysis axis."""
