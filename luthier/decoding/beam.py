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

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.core.method import Decoder, Generation, Limits
from luthier.core.subject import at_rest
from luthier.decoding._family import Stream, stream, text_ended

_NEVER = -1.0e9


@dataclass(slots=True)
class _Hunt:
    """The search of one prompt. `beams` are K token lists that still run, best first."""

    index: int
    beams: list[list[int]]
    done: list[tuple[float, Generation]] = field(default_factory=list)


@dataclass(frozen=True)
class Beam(Decoder):
    paper: ClassVar[str] = "Freitag and Al-Onaizan, 2017, arXiv:1702.01806"
    exact: ClassVar[bool] = False
    num_beams: int = 4
    length_penalty: float = 1.0

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        if not ids or limits.max_new_tokens == 0:
            return [Generation([], False, 0.0) for _ in ids]
        with at_rest(model):
            return self._search(stream(model, limits.pad_id), ids, limits)

    def _search(self, source: Stream, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        K, hunts = self.num_beams, [_Hunt(i, [[] for _ in range(self.num_beams)]) for i in range(len(ids))]
        everyone = list(hunts)
        logits = source.start(ids)  # (B, V): the prompts are read once, then every beam continues them
        fan = torch.arange(len(ids), device=logits.device).repeat_interleave(K)
        source.keep(fan)
        logits, score = logits[fan], torch.full((len(ids), K), _NEVER, device=logits.device)
        score[:, 0] = 0.0
        while True:
            beam, token, value = self._candidates(logits, score, limits)  # (B, C) each, best first
            score, parents, tokens, alive = self._advance(hunts, beam, token, value, limits)
            if not alive:
                return [max(h.done, key=lambda d: d[0])[1] for h in everyone]
            hunts = [hunts[b] for b in alive]
            source.keep(parents)
            logits = source.feed(tokens)

    def _candidates(self, logits: Tensor, score: Tensor, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
        """Enough of the best continuations that K go on even if all beams could stop."""
        B, K = score.shape
        total = logits.log_softmax(-1).view(B, K, -1) + score[..., None]  # (B, K, V)
        wanted = min(max(2, 1 + len(limits.stop_ids)) * K, total[0].numel())
        value, at = total.flatten(1).topk(wanted, -1)
        return at // total.shape[-1], at % total.shape[-1], value

    def _advance(
        self, hunts: list[_Hunt], beam: Tensor, token: Tensor, value: Tensor, limits: Limits
    ) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Sort candidates into finished answers and beams that go on; scores, cache rows and tokens of the latter."""
        K, scores, parents, tokens, alive = self.num_beams, [], [], [], []
        table = zip(beam.tolist(), token.tolist(), value.tolist(), strict=True)
        for b, (hunt, (from_beam, said, worth)) in enumerate(zip(hunts, table, strict=True)):
            go_on = []
            for rank, (k, t, v) in enumerate(zip(from_beam, said, worth, strict=True)):
                found = self._finished(hunt.beams[k], t, v, limits)
                if found is None:
                    go_on.append((k, t, v))
                elif rank < K:
                    hunt.done.append((v / (len(hunt.beams[k]) + 1) ** self.length_penalty, found))
            hunt.done = sorted(hunt.done, key=lambda d: -d[0])[:K]
            if not go_on or self._settled(hunt, go_on[0][2]):
                continue
            go_on = (go_on + [(k, t, _NEVER) for k, t, _ in go_on] * K)[:K]
            hunt.beams = [[*hunt.beams[k], t] for k, t, _ in go_on]
            scores.append([v for *_, v in go_on])
            parents += [b * K + k for k, _, _ in go_on]
            tokens += [t for _, t, _ in go_on]
            alive.append(b)
        device = value.device
        as_rows = torch.tensor(parents, dtype=torch.long, device=device)
        return (
            torch.tensor(scores, device=device),
            as_rows,
            torch.tensor(tokens, dtype=torch.long, device=device),
            alive,
        )

    def _finished(self, said: list[int], token: int, value: float, limits: Limits) -> Generation | None:
        """The answer that ends with `token`, or None if it goes on."""
        if token in limits.stop_ids:
            return Generation(said, True, value)
        now = [*said, token]
        ended = text_ended(now, limits)
        return Generation(now, ended, value) if ended or len(now) >= limits.max_new_tokens else None

    def _settled(self, hunt: _Hunt, best: float) -> bool:
        """Whether no beam that runs can replace a finished answer, by the score it has now."""
        if len(hunt.done) < self.num_beams:
            return False
        return best / (len(hunt.beams[0]) + 1) ** self.length_penalty <= hunt.done[-1][0]
