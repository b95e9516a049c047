"""The distribution drawn from, computed by hand and by transformers' own warpers; and what is drawn follows it."""

from __future__ import annotations

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from luthier.checks._compare import require
from luthier.checks.decoding import PROMPTS, _fits, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits

SETTINGS = (
    {"temperature": 0.7, "top_p": 0.8},
    {"top_p": 1.0, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.6, "top_k": 20},
)


def _by_hand(p: torch.Tensor, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    """Token by token: the likeliest `top_k`, renormalised, until their mass reaches `top_p`, renormalised."""
    q = p ** (1 / temperature)
    order = sorted(range(len(q)), key=lambda v: -float(q[v]))[: top_k or len(q)]
    whole = sum(float(q[v]) for v in order)
    kept, mass = torch.zeros_like(q), 0.0
    for v in order:
        if mass >= top_p:
            break
        kept[v] = q[v]
        mass += float(q[v]) / whole
    return kept / kept.sum()


def oracle_exact_distribution() -> None:
    """Drawn first tokens follow the distribution computed by hand, and none lies outside its nucleus."""
    for settings in SETTINGS:
        decoder = method(__name__, **settings)
        world = worlds(decoder)[0]
        model = world.model()
        p = _by_hand(world.logp(model, PROMPTS[0], []).exp(), decoder.temperature, decoder.top_p, decoder.top_k)
        said = decoder.generate(model, [PROMPTS[0]] * 2000, Limits(max_new_tokens=1, seed=3))
        found = [g.ids[0] for g in said]
        require(all(p[v] > 0 for v in found), f"{settings}: a token outside the nucleus was drawn")
        _fits(found, p, str(settings))


def oracle_transformers() -> None:
    """The tokens that can be drawn are those that transformers' warpers leave, with the probabilities that they leave."""
    for settings in SETTINGS:
        decoder = method(__name__, **settings)
        world = worlds(decoder)[0]
        logp = world.logp(world.model(), PROMPTS[0], [])
        warpers = LogitsProcessorList([TemperatureLogitsWarper(decoder.temperature)])
        if decoder.top_k:
            warpers.append(TopKLogitsWarper(decoder.top_k))
        if decoder.top_p < 1:
            warpers.append(TopPLogitsWarper(decoder.top_p))
        wanted = warpers(torch.LongTensor([[0]]), logp[None])[0].softmax(-1)
        mine = _by_hand(logp.exp(), decoder.temperature, decoder.top_p, decoder.top_k)
        gap = float((wanted - mine).abs().max())
        require(gap < 1e-9, f"{settings}: the hand-made distribution differs from transformers' by {gap:.1e}")
