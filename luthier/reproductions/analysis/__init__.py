"""Experiments of the edits axis."""
