"""transformers' own loss on the same texts, one by one: exp of the mean over all tokens."""

from __future__ import annotations

import math

import torch

from luthier.checks import evaluation
from luthier.checks.oracles._evaluation import equal, method
from luthier.evaluation._family import items_of


@torch.no_grad()
def oracle_transformers() -> None:
    scorer = method(__name__)
    subject = evaluation.worlds(scorer)[0].real(4096)
    texts = ["maple river stone", "a garden", "the window of the ladder is amber", "cloud"]
    answers = scorer.ask(subject, items_of([{"text": t} for t in texts]))
    total, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[subject.tokenizer.bos_token_id, *subject.tokenizer(text)["input_ids"]]])
        n = ids.shape[1] - 1
        total, tokens = total + float(subject.model(input_ids=ids, labels=ids).loss.double()) * n, tokens + n
    found, wanted = evaluation.value(scorer, answers, "perplexity"), math.exp(total / tokens)
    evaluation.require(abs(found / wanted - 1) < 1e-5, f"perplexity {found}, transformers' loss gives {wanted}")
    characters = sum(map(len, texts))
    bits = evaluation.value(scorer, answers, "bits_per_character")
    equal(round(bits, 4), round(total / math.log(2) / characters, 4), "bits per character")
