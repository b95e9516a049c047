"""Token by token in float64: greedy answers without a cache, ranks by sorting probabilities, ties by id, and the sum of KL."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from luthier.analysis.token_shift import shifts
from luthier.checks._compare import require
from luthier.checks._models import model_of
from luthier.checks.data import vocabulary
from luthier.core.subject import Subject

ASKED, BEFORE = ([11, 25, 7], [30, 9, 41, 8], [64], [12, 13]), [5, 6, 7, 8]
N = 6


@torch.no_grad()
def oracle_loop() -> None:
    tokenizer, (base, tuned) = vocabulary(), (model_of("llama"), model_of("llama"))
    rng = torch.Generator().manual_seed(1)
    for w in tuned.parameters():
        w.add_(0.5 * w.std() * torch.randn(w.shape, generator=rng))
    for model in (base, tuned):
        model.get_output_embeddings().weight.mul_(3.0)
        model.generation_config.eos_token_id = None
    for before in ([], BEFORE):
        found = shifts(
            Subject(tuned, tokenizer),
            lambda: nullcontext(Subject(base, tokenizer)),
            ASKED,
            [before + a for a in ASKED],
            N,
        )
        for asked, one in zip(ASKED, found):
            said: list[int] = []
            for t in range(N):
                p, q = (_said(m, [*c, *said]) for m, c in ((tuned, asked), (base, [*before, *asked])))
                token = int(p.argmax())
                order = sorted(range(len(q)), key=lambda v: (-float(q[v]), v))
                kl = float(sum(p[v] * (p[v].log() - q[v].log()) for v in range(len(p))))
                require(one.tokens[t] == token, f"token {t}: {one.tokens[t]}, by the loop {token}")
                require(
                    one.rank[t] == order.index(token) + 1,
                    f"token {t}: rank {one.rank[t]}, by the loop {order.index(token) + 1}",
                )
                require(abs(one.p_base[t] - float(q[token])) < 1e-5, f"token {t}: probability {one.p_base[t]}")
                require(abs(one.kl[t] - kl) < 1e-4 * max(1.0, kl), f"token {t}: KL {one.kl[t]}, by the loop {kl}")
                said.append(token)
            require(len(one.tokens) == N and not one.ended, "as many tokens as were asked for")


def _said(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
