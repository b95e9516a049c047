"""Ranking by hand: the log-probability of each choice, by one plain forward over prompt and choice."""

from __future__ import annotations

import torch

from luthier.checks import evaluation
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of


@torch.no_grad()
def oracle_plain_forward() -> None:
    scorer = method(__name__)
    subject = evaluation.worlds(scorer)[0].real(4096)
    words = ["maple", "river", "stone cloud", "amber"]
    rows = [{"prompt": f"the {a} is a", "choices": words, "label": i % 4} for i, a in enumerate(words * 5)]
    answers = scorer.ask(subject, items_of(rows))
    right = normed = 0
    for row in rows:
        prompt, scores = subject.tokenizer(row["prompt"])["input_ids"], []
        for word in words:
            whole = subject.tokenizer(row["prompt"] + scorer.delimiter + word)["input_ids"]
            logp = subject.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(float(logp[t - 1, whole[t]]) for t in range(len(prompt), len(whole))))
        right += scores.index(max(scores)) == row["label"]
        by_length = [s / len(w) for s, w in zip(scores, words)]
        normed += by_length.index(max(by_length)) == row["label"]
    equal(evaluation.value(scorer, answers, "accuracy"), right / len(rows), "accuracy")
    equal(evaluation.value(scorer, answers, "accuracy_norm"), normed / len(rows), "accuracy_norm")
