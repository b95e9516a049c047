"""Experiments for tuners."""
