"""Beam search: keep the best few continuations instead of one.

    score(y) = log p(y | x) / |y|^length_penalty,     |y| counts the stop token

    num_beams       K continuations kept per prompt
    length_penalty  0 ranks by probability, above 0 favours longer answers
A row ends when it holds K finished answers and none that still runs has a better score at its present length.
Cost:       K rows per prompt; the prompt itself is read once.
Paper:      Freitag and Al-Onaizan, 2017, arXiv:1702.01806; in the form that transformers has (`early_stopping=False`).
Departures: none from transformers. Stop strings end a beam as a stop token does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from luthier.decoding._beams import BeamDecoder


@dataclass(frozen=True)
class Beam(BeamDecoder):
    paper: ClassVar[str] = "Freitag and Al-Onaizan, 2017, arXiv:1702.01806"
    num_beams: int = 4
    length_penalty: float = 1.0
