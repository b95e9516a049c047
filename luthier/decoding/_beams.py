"""Beam search as a base class: what a continuation is worth is the method's, the bookkeeping is here.

    score(y) = worth(y | x) / |y|^length_penalty,     worth adds up over tokens, |y| counts the stop token

A row ends when it holds K finished answers and none that still runs has a better score at its present length. `worth`
may forbid tokens (-inf): a beam after which nothing may come is dropped, and where that is all of them, the best one
is the answer as it is.

B rows that still run, K beams, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.core.method import Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.subject import at_rest
from luthier.decoding._family import Stream, stream, text_ended

__all__ = ["BeamDecoder", "Limits", "LuthierError", "Refusal"]

_NEVER = -1.0e9
"""Score of a beam that only fills up the K of a row."""


@dataclass(slots=True)
class _Hunt:
    """The search of one prompt. `beams` are K token lists that still run, best first."""

    index: int
    beams: list[list[int]]
    done: list[tuple[float, Generation]] = field(default_factory=list)


@dataclass(frozen=True)
class BeamDecoder(Decoder):
    exact: ClassVar[bool] = False
    num_beams: int = 4
    length_penalty: float = 1.0

    def worth(self, logp: Tensor, said: Sequence[Sequence[int]], limits: Limits) -> Tensor:
        """What each next token is worth (B K, V), from its log-probability; -inf where it may not follow."""
        return logp

    def generate(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        return [best[0] for best in self._ranked(model, ids, limits)]

    def candidates(
        self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits, k: int
    ) -> list[list[Generation]]:
        """The k finished answers of each prompt with the best scores, fewer where the search found fewer."""
        if k > self.num_beams:
            raise LuthierError(f"{k} candidates need as many beams: decoding.num_beams is {self.num_beams}")
        return [best[:k] for best in self._ranked(model, ids, limits)]

    def _ranked(self, model: nn.Module, ids: Sequence[Sequence[int]], limits: Limits) -> list[list[Generation]]:
        """The finished answers of each prompt, best first."""
        if not ids or limits.max_new_tokens == 0:
            return [[Generation([], False, 0.0)] for _ in ids]
        with at_rest(model):
            return self._search(stream(model, limits.pad_id), ids, limits)

    def _search(self, source: Stream, ids: Sequence[Sequence[int]], limits: Limits) -> list[list[Generation]]:
        K, hunts = self.num_beams, [_Hunt(i, [[] for _ in range(self.num_beams)]) for i in range(len(ids))]
        everyone = list(hunts)
        logits = source.start(ids)  # (B, V): the prompts are read once, then every beam continues them
        fan = torch.arange(len(ids), device=logits.device).repeat_interleave(K)
        source.keep(fan)
        logits, score = logits[fan], torch.full((len(ids), K), _NEVER, device=logits.device)
        score[:, 0] = 0.0
        own = score.clone()  # (B, K) log-probability of each beam under the model
        while True:
            beam, token, value, logp = self._candidates(logits, score, own, hunts, limits)  # (B, C) each, best first
            score, own, parents, tokens, alive = self._advance(hunts, beam, token, value, logp, score, own, limits)
            if not alive:
                return [[found for _, found in h.done] for h in everyone]
            hunts = [hunts[b] for b in alive]
            source.keep(parents)
            logits = source.feed(tokens)

    def _candidates(
        self, logits: Tensor, score: Tensor, own: Tensor, hunts: Sequence[_Hunt], limits: Limits
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Enough of the best continuations that K go on even if all beams could stop."""
        B, K = score.shape
        logp = logits.log_softmax(-1)
        worth = self.worth(logp, [beam for hunt in hunts for beam in hunt.beams], limits)
        total = worth.view(B, K, -1) + score[..., None]  # (B, K, V)
        wanted = min(max(2, 1 + len(limits.stop_ids)) * K, total[0].numel())
        value, at = total.flatten(1).topk(wanted, -1)
        said = (logp.view(B, K, -1) + own[..., None]).flatten(1).gather(1, at)
        return at // total.shape[-1], at % total.shape[-1], value, said

    def _advance(
        self, hunts: list[_Hunt], beam: Tensor, token: Tensor, value: Tensor, logp: Tensor, score: Tensor, own: Tensor,
        limits: Limits,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:  # fmt: skip
        """Sort candidates into finished answers and beams that go on; scores, cache rows and tokens of the latter."""
        K, scores, owns, parents, tokens, alive = self.num_beams, [], [], [], [], []
        table = zip(beam.tolist(), token.tolist(), value.tolist(), logp.tolist(), strict=True)
        for b, (hunt, candidates) in enumerate(zip(hunts, table, strict=True)):
            go_on = []
            for rank, (k, t, v, p) in enumerate(zip(*candidates, strict=True)):
                if v == float("-inf"):
                    break  # candidates come best first: what is left may not follow
                found = self._finished(hunt.beams[k], t, p, limits)
                if found is None:
                    go_on.append((k, t, v, p))
                elif rank < K:
                    hunt.done.append((v / (len(hunt.beams[k]) + 1) ** self.length_penalty, found))
            if not go_on and not hunt.done:  # nothing may follow, and nothing was finished on the way here
                best = int(score[b].argmax())
                length = max(1, len(hunt.beams[best]))
                ended = Generation(hunt.beams[best], False, float(own[b, best]))
                hunt.done.append((float(score[b, best]) / length**self.length_penalty, ended))
            hunt.done = sorted(hunt.done, key=lambda d: -d[0])[:K]
            if not go_on or self._settled(hunt, go_on[0][2]):
                continue
            go_on = (go_on + [(k, t, _NEVER, p) for k, t, _, p in go_on] * K)[:K]
            hunt.beams = [[*hunt.beams[k], t] for k, t, _, _ in go_on]
            scores.append([v for _, _, v, _ in go_on])
            owns.append([p for *_, p in go_on])
            parents += [b * K + k for k, *_ in go_on]
            tokens += [t for _, t, *_ in go_on]
            alive.append(b)
        device = value.device
        return (
            torch.tensor(scores, device=device), torch.tensor(owns, device=device),
            torch.tensor(parents, dtype=torch.long, device=device),
            torch.tensor(tokens, dtype=torch.long, device=device), alive,
        )  # fmt: skip

    def _finished(self, said: list[int], token: int, logp: float, limits: Limits) -> Generation | None:
        """The answer that ends with `token`, or None if it goes on."""
        if token in limits.stop_ids:
            return Generation(said, True, logp)
        now = [*said, token]
        ended = text_ended(now, limits)
        return Generation(now, ended, logp) if ended or len(now) >= limits.max_new_tokens else None

    def _settled(self, hunt: _Hunt, best: float) -> bool:
        """Whether no beam that runs can replace a finished answer, by the score it has now."""
        if len(hunt.done) < self.num_beams:
            return False
        return best / (len(hunt.beams[0]) + 1) ** self.length_penalty <= hunt.done[-1][0]
