"""transformers' own greedy `generate`, prompt by prompt, with and without a stop token."""

from __future__ import annotations

from luthier.checks.oracles._decoding import against_transformers


def oracle_transformers() -> None:
    against_transformers(__name__)
