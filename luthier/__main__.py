"""`python -m luthier`, the same as `luthier`."""

from luthier.cli import main

main()
