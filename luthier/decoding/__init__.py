"""How tokens are chosen: one decoder per file, one cached step loop in `_family.py`. Nothing is imported before use."""
