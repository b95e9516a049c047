"""The shapes of objectives, so that a method file holds its loss and nothing else.

TokenObjective  loss of per-token log-probabilities                    (supervised fine-tuning and relatives)
PairObjective   loss of summed log-probabilities of chosen and rejected (preference tuning)
PointObjective  loss of single answers that were judged good or bad    (unpaired preference tuning)
GroupObjective  loss of the log-probabilities of all answers of a prompt  (ranked answers)
HeadObjective   loss of a task head's outputs                          (classification, regression)
SearchObjective loss of scores of documents for queries                (retrieval, re-ranking)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from luthier.core.batch import Batch, Example, SearchExample
from luthier.core.logprobs import Scorer, forward_kl
from luthier.core.method import Loss, LuthierError, Objective


@dataclass(frozen=True)
class TokenLogp:
    """What a token objective sees.

    logp     (N,) log-probability of each scored token
    owner    (N,) answer it belongs to
    weights  (N,) weight of each token
    mean     (N,) mean log-probability of all tokens of the vocabulary there, where `needs_mean` asks for it
    """

    logp: Tensor
    owner: Tensor
    weights: Tensor
    mean: Tensor | None = None


@dataclass(frozen=True)
class TokenObjective(Objective):
    """Weight: the sum of token weights."""

    @property
    def needs_mean(self) -> bool:
        return False

    def loss(self, tokens: TokenLogp) -> Tensor:
        """Loss (N,) of each token, before weighting."""
        raise NotImplementedError

    def losses(self, scorer: Scorer, batch: Batch) -> Tensor:
        """Loss (N,) of each scored token, before weighting, by asking the model."""
        assert batch.owner is not None
        logp, mean = scorer.read(batch, logp_and_mean) if self.needs_mean else (scorer.token_logp(batch), None)
        weights = torch.ones_like(logp) if batch.weights is None else batch.weights.to(logp)
        return self.loss(TokenLogp(logp, batch.owner, weights, mean))

    def weight(self, batch: Batch) -> float:
        assert batch.target is not None
        return float(len(batch.target)) if batch.weights is None else float(batch.weights.sum())

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        losses = self.losses(scorer, batch)
        if batch.weights is not None:
            losses = losses * batch.weights.to(losses)
        return Loss(losses.sum(), self.weight(batch))


def logp_and_mean(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log pi(target) and the mean over the vocabulary of log pi, (n,) each, from logits (n, V)."""
    logp = logits.log_softmax(-1)
    return logp.gather(1, target[:, None])[:, 0], logp.mean(-1)


@dataclass(frozen=True)
class PairLogp:
    """Summed log-probabilities (P,) of P pairs under the policy and, where asked for, the reference."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    chosen_kl: Tensor | None = None
    rejected_kl: Tensor | None = None

    @property
    def kl(self) -> tuple[Tensor, Tensor]:
        """Sequential KL (P,) of the chosen and of the rejected answers: sum over tokens of KL(reference || policy)."""
        assert self.chosen_kl is not None and self.rejected_kl is not None
        return self.chosen_kl, self.rejected_kl

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """log pi / pi_ref (P,) of the chosen and of the rejected answers."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """log pi per token (P,) of the chosen and of the rejected answers."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens


@dataclass(frozen=True)
class PairObjective(Objective):
    """Weight: the number of pairs. Answers of a batch alternate: chosen, rejected, chosen, rejected."""

    rows = ("preference",)
    reference = "answers"

    def loss(self, pair: PairLogp) -> Tensor:
        """Loss (P,) of each pair."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> float:
        return float(batch.answers // 2)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        pair = self.ask(scorer, batch)
        return Loss(self.loss(pair).sum(), self.weight(batch), self.figures(pair))

    def ask(self, scorer: Scorer, batch: Batch) -> PairLogp:
        """Both models about the pairs of a batch."""
        assert batch.owner is not None
        kl = []
        if self.reference == "model":
            logp, ref, *kl = (batch.by_answer(column) for column in scorer.compare(batch, forward_kl))  # (2P,)
        else:
            logp = scorer.answer_logp(batch)
            if self.reference and batch.reference is None:
                raise LuthierError(f"objective '{self.name}' needs reference log-probabilities, and none were computed")
            ref = batch.reference.to(logp) if batch.reference is not None else torch.zeros_like(logp)
        tokens = torch.bincount(batch.owner, minlength=batch.answers).to(logp)
        return PairLogp(*(side for column in (logp, ref, tokens, *kl) for side in (column[0::2], column[1::2])))

    def figures(self, pair: PairLogp) -> dict[str, tuple[Tensor, float]]:
        """What is logged, under trl's names. Without a reference a reward is beta log pi; with a KL, beta (gain + D)."""
        won, lost = (gain.detach() for gain in pair.gains)
        beta, P = getattr(self, "beta", 1.0), float(len(won))
        found = {}
        if pair.chosen_kl is not None:
            D_w, D_l = (kl.detach() for kl in pair.kl)
            a_token = D_w / pair.chosen_tokens + D_l / pair.rejected_tokens
            found = {
                "kl/chosen": (D_w.sum(), P),
                "kl/rejected": (D_l.sum(), P),
                "kl/gap": ((D_l - D_w).sum(), P),
                "kl/token": (a_token.sum() / 2, P),
            }
            won, lost = won + D_w, lost + D_l
        return found | {
            "rewards/chosen": (beta * won.sum(), P),
            "rewards/rejected": (beta * lost.sum(), P),
            "rewards/margins": (beta * (won - lost).sum(), P),
            "rewards/accuracies": ((won > lost).to(won).sum(), P),
            "logps/chosen": (pair.chosen.detach().sum(), P),
            "logps/rejected": (pair.rejected.detach().sum(), P),
        }


@dataclass(frozen=True)
class PointLogp:
    """Summed log-probabilities (A,) of judged answers under policy and reference, and which are good.

    shared  (k,) what `statistic` gave over the whole step; zeros where no step was asked
    """

    logp: Tensor
    ref: Tensor
    good: Tensor
    shared: Tensor

    @property
    def gain(self) -> Tensor:
        """log pi / pi_ref (A,)."""
        return self.logp - self.ref


@dataclass(frozen=True)
class PointObjective(Objective):
    """Weight: the number of answers. A pair is a good answer, its chosen one, and a bad one."""

    rows = ("unpaired", "preference")
    reference = "answers"

    def loss(self, points: PointLogp) -> Tensor:
        """Loss (A,) of each answer."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> float:
        return float(batch.answers)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.scores is not None and batch.group is not None
        logp, ref = self.gains(scorer, batch)
        first = torch.ones_like(batch.group, dtype=torch.bool)
        first[1:] = batch.group[1:] != batch.group[:-1]
        paired = torch.bincount(batch.group)[batch.group] == 2
        good = torch.where(paired, first, batch.scores > 0)
        shared = logp.new_zeros(1) if batch.shared is None else batch.shared.to(logp)
        points = PointLogp(logp, ref, good, shared)
        return Loss(self.loss(points).sum(), self.weight(batch), self.figures(points))

    def gains(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi and log pi_ref (A,)."""
        if batch.reference is None:
            raise LuthierError(f"objective '{self.name}' needs reference log-probabilities, and none were computed")
        logp = scorer.answer_logp(batch)
        return logp, batch.reference.to(logp)

    def figures(self, points: PointLogp) -> dict[str, tuple[Tensor, float]]:
        """What is logged, under trl's names."""
        gain, good = getattr(self, "beta", 1.0) * points.gain.detach(), points.good
        return {
            "rewards/chosen": (gain[good].sum(), float(good.sum())),
            "rewards/rejected": (gain[~good].sum(), float((~good).sum())),
            "logps/chosen": (points.logp.detach()[good].sum(), float(good.sum())),
            "logps/rejected": (points.logp.detach()[~good].sum(), float((~good).sum())),
        }


@dataclass(frozen=True)
class Group:
    """The K answers of one prompt.

    logp    (K,) summed log-probabilities
    tokens  (K,) their tokens
    scores  (K,) the higher the better
    """

    logp: Tensor
    tokens: Tensor
    scores: Tensor

    @property
    def means(self) -> Tensor:
        """Log-probability a token (K,)."""
        return self.logp / self.tokens

    @property
    def above(self) -> Tensor:
        """(K, K): whether answer i is better than answer j."""
        return self.scores[:, None] > self.scores[None]

    @property
    def best(self) -> int:
        """The first of the answers with the highest score."""
        return int(self.scores.argmax())


@dataclass(frozen=True)
class GroupObjective(Objective):
    """Weight: the number of prompts. A pair is a group of two."""

    rows = ("ranked", "preference")

    def loss(self, group: Group) -> Tensor:
        """Loss of one prompt."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> float:
        assert batch.group is not None
        return float(batch.group[-1] + 1)

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.owner is not None and batch.group is not None
        if batch.scores is None:
            raise LuthierError(f"objective '{self.name}' needs answers with scores, and these have none")
        logp = scorer.answer_logp(batch)
        tokens = torch.bincount(batch.owner, minlength=batch.answers).to(logp)
        sizes = torch.bincount(batch.group).tolist()
        columns = (column.split(sizes) for column in (logp, tokens, batch.scores.to(logp)))
        groups = [Group(*parts) for parts in zip(*columns, strict=True)]
        losses = torch.stack([self.loss(group) for group in groups])
        return Loss(losses.sum(), self.weight(batch), _assessment(groups))


def _assessment(groups: list[Group]) -> dict[str, tuple[Tensor, float]]:
    """How often better answers have the higher log-probability a token, and what that is."""
    rows = []
    for group in groups:
        s, above = group.means.detach(), group.above
        right = ((s[:, None] > s[None]) & above).sum() / above.sum().clamp(min=1)  # of this prompt's pairs
        worse = above.any(0)
        rows.append(torch.stack([right, above.any().to(s), s[group.best], s[worse].sum(), worse.sum().to(s)]))
    right, asked, best, worse, n = torch.stack(rows).sum(0)
    return {
        "assessment/accuracy": (right, float(asked)),
        "logps/best": (best, float(len(groups))),
        "logps/worse": (worse, float(n)),
    }


@dataclass(frozen=True)
class HeadObjective(Objective):
    """Weight: the number of rows.

    problems  kinds of labels it takes, in transformers' words (`problem_type`)
    Rows may carry, in their extras, a `target` (C,) of shares of the classes in place of one class, and a `share` by which
    their loss is multiplied.
    """

    rows = ("labelled",)
    task = "classification"
    problems: ClassVar[tuple[str, ...]] = ()

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        """Loss (B,) from head outputs (B, C) and labels."""
        raise NotImplementedError

    def weight(self, batch: Batch) -> float:
        return float(len(batch.rows))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss (B,) of each row: of its label, or the mean over the classes of its target."""
        assert batch.label is not None
        target, share = batch.extras.get("target"), batch.extras.get("share")
        if target is None:
            losses = self.loss(outputs, batch.label)
        else:
            of_class = [self.loss(outputs, torch.full_like(batch.label, c)) for c in range(outputs.shape[1])]
            losses = (outputs.new_tensor(target) * torch.stack(of_class, 1)).sum(1)
        return losses if share is None else outputs.new_tensor(share) * losses

    def said(self, scorer: Scorer, batch: Batch) -> Tensor:
        """Outputs (B, C) of the head, at least float32."""
        outputs = scorer.class_logits(batch)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.label is not None
        outputs = self.said(scorer, batch)
        return Loss(self.losses(outputs, batch).sum(), self.weight(batch), self.figures(outputs.detach(), batch.label))

    def figures(self, outputs: Tensor, label: Tensor) -> dict[str, tuple[Tensor, float]]:
        return {}


@dataclass(frozen=True)
class SearchObjective(Objective):
    """Weight: the number of queries. A method gives the scores; the loss is that of finding the right document.

    loss(q) = - log softmax of the scores of the documents that q chooses from, at the right one
    """

    rows = ("retrieval",)

    def scores(self, scorer: Scorer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (Q, D) of D documents for Q queries, at least float32, and which of them each query chooses from."""
        raise NotImplementedError

    def for_examples(self, examples: Sequence[Example]) -> Self:
        """Raises LuthierError where a row has nothing that its right document could be taken for."""
        for e in examples:
            if self.group == 1 and isinstance(e, SearchExample) and len(e.documents) < 2:
                raise LuthierError(
                    f"objective '{self.name}': row {e.row} has no negative to tell the right document from: give a column "
                    "negatives, or say data.hard_negatives: 1"
                )
        return self

    def weight(self, batch: Batch) -> float:
        return float(len(batch.rows))

    def compute(self, scorer: Scorer, batch: Batch) -> Loss:
        assert batch.asked_by is not None
        scores, allowed = self.scores(scorer, batch)
        scores = scores.masked_fill(~allowed, -torch.inf)
        right = first_documents(batch)  # (Q,)
        losses = scores.logsumexp(1) - scores.gather(1, right[:, None])[:, 0]
        best = scores.detach().argmax(1) == right
        return Loss(losses.sum(), self.weight(batch), {"accuracy": (best.to(losses).sum(), self.weight(batch))})


def first_documents(batch: Batch) -> Tensor:
    """(Q,) index of each query's right document: the first of its own."""
    assert batch.asked_by is not None
    counts = batch.asked_by.bincount(minlength=len(batch.rows))
    return counts.cumsum(0) - counts
