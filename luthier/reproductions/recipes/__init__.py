"""Experiments of the recipes axis."""
