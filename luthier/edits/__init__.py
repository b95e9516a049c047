"""Weights changed without gradient training."""
