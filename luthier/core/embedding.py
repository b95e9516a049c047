"""Texts as vectors: final states of the tokens to one vector a sequence, and how near two of them are.

    cls   state of the first real token       mean  mean of the states of all real tokens
    last  state of the last real token: the one that has seen all others in a decoder

    dot     q . d                             cosine  q . d / (|q| |d|)

Real tokens are those of the mask, wherever the padding is. Everything is at least float32. Objectives and scorers take both
from here, so what is trained is what is searched with.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Pooling = Literal["cls", "mean", "last"]
Similarity = Literal["dot", "cosine"]


def pooled(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """(B, T, D) states and (B, T) mask to (B, D)."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if how == "mean":
        weights = mask[..., None].to(states)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    real = mask.long()
    at = real.argmax(1) if how == "cls" else real.shape[1] - 1 - real.flip(1).argmax(1)
    return states[torch.arange(len(states), device=states.device), at]


def similarity(queries: Tensor, documents: Tensor, how: Similarity) -> Tensor:
    """(Q, D) and (N, D) to (Q, N), without autocast: dot products of states may be large."""
    if how == "cosine":
        queries, documents = F.normalize(queries, dim=-1), F.normalize(documents, dim=-1)
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ documents.T
