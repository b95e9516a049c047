"""Greedy drafts against transformers' plain greedy `generate`; sampled ones against the exact distribution of pairs."""

from __future__ import annotations

from collections import Counter

import torch

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.checks.decoding import PROMPTS, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits


@torch.no_grad()
def oracle_transformers() -> None:
    """Whatever is drafted, and however many tokens, the tokens are those of the model alone."""
    for tokens in (1, 3, 8):
        decoder = method(__name__, tokens=tokens, temperature=0.0)
        for world in worlds(decoder):
            model, bound = world.model(), decoder.for_models(world.other)
            found = bound.generate(model, PROMPTS, Limits(max_new_tokens=9, pad_id=PAD))
            for prompt, g in zip(PROMPTS, found):
                ids = torch.tensor([list(prompt)])
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, num_beams=1,
                    eos_token_id=None, pad_token_id=PAD,
                )[0].tolist()  # fmt: skip
                wanted = out[1 if world.kind == "encoder-decoder" else len(prompt) :]
                require(g.ids == wanted, f"{world.label}, {tokens} drafts: {g.ids}, transformers says {wanted}")


@torch.no_grad()
def oracle_exact_distribution() -> None:
    """Pairs of the second and third token (one drafted, one after it), in total variation from their exact distribution."""
    n, decoder = 4000, method(__name__, tokens=2, temperature=0.7, top_k=4, top_p=0.95)
    world = worlds(decoder)[0]
    model, bound = world.model(), decoder.for_models(world.other)
    said = bound.generate(model, [PROMPTS[0]] * n, Limits(max_new_tokens=3, seed=2))

    def drawn_from(past: list[int]) -> dict[int, float]:
        logp = world.logp(model, PROMPTS[0], past)
        kept = sorted(range(len(logp)), key=lambda v: -float(logp[v]))[:4]
        p = {v: float((logp[v] / 0.7).exp()) for v in kept}
        whole, mass, out = sum(p.values()), 0.0, {}
        for v in kept:
            if mass < 0.95:
                out[v] = p[v]
            mass += p[v] / whole
        return {v: q / sum(out.values()) for v, q in out.items()}

    exact = {
        (a, b, c): p * q * r
        for a, p in drawn_from([]).items()
        for b, q in drawn_from([a]).items()
        for c, r in drawn_from([a, b]).items()
    }
    found = Counter(tuple(g.ids) for g in said)
    require(set(found) <= set(exact), "a text was drawn that has no probability")
    apart = sum(abs(found[t] / n - p) for t, p in exact.items()) / 2
    expected = sum((p * (1 - p) / n) ** 0.5 for p in exact.values()) * 0.4  # mean of |binomial error| is 0.8 sigma
    require(apart < 1.5 * expected, f"total variation {apart:.4f}, {expected:.4f} is expected of {n} draws")
