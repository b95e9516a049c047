"""The tiny models of the decoding tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "decoding"))
