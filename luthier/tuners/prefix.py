"""Prefix tuning: trained keys and values in front of the sequence, in every attention of the model.

    head_i = attention(q_i, [P_K; K_i], [P_V; V_i])                          P_K, P_V (G, l, d) in each attention module
           = (1 - g) attention(q_i, K_i, V_i) + g softmax(q_i P_K^T / sqrt d) P_V,     g = share of the weight on P_K
    [P_K; P_V] = tanh(E W_1 + b_1) W_2 + b_2          in training: E (l, D), W_1 (D, h), W_2 (h, 2 G d) a layer

    length  l, rows;  G key heads of d features (fewer than query heads where queries are grouped)
    mlp     h, width of the network that makes the rows, one for each kind of attention (encoder, decoder, cross);
            0: keys and values are trained directly, from N(0, 0.02^2)
    folded  set by `core.adapt.folded`: the adapter holds keys and values only
Start:      not the base model: even a prefix of zeros takes weight from the tokens.
Cost:       2 l G d scalars an attention module when served; (l + h) D + h a kind and (h + 1) 2 G d a module in training.
Paper:      Li and Liang, 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv:2101.00190,
            section 4; He et al., 2022, arXiv:2110.04366, equation 6.
Departures: rows take no position: rotary keys of the prefix are not rotated, relative biases are zero on them, text counts
            from 0; they are in front of cross-attention too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from luthier.tuners._unified import PrefixTuner


@dataclass(frozen=True)
class Prefix(PrefixTuner):
    paper: ClassVar[str] = "arXiv:2101.00190"
    cards: ClassVar[tuple[int, ...]] = (19, 60)
    capabilities: ClassVar[frozenset[str]] = frozenset({"fold", "off", "several", "generate"})
    learning_rate: ClassVar[float] = 1e-3

    @classmethod
    def example(cls) -> Self:
        return cls(length=3, mlp=8)
