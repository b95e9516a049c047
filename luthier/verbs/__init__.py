"""The verbs of the command line, each a Python function on plain objects."""
