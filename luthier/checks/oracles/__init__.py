"""Independent implementations, one file per method: `<axis>_<name>.py` with functions `oracle_<source>()`."""
