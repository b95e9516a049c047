"""One file per world; the file name is the name."""
