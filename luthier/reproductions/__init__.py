"""Experiments that measure the claims of a method's paper here: `<axis>/<name>.py`, one `Experiment` each."""
