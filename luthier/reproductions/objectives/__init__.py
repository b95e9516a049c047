"""Experiments of the objectives axis."""
