"""Procedures of several stages."""
