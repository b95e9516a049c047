"""transformers' own beam search, prompt by prompt, with and without a stop token, for several length penalties."""

from __future__ import annotations

from luthier.checks.oracles._decoding import against_transformers


def oracle_transformers() -> None:
    for penalty in (0.0, 1.0, 2.0):
        against_transformers(__name__, num_beams=3, length_penalty=penalty)
