"""How much of a gap is closed, and what an offset moves: by hand on small numbers, and through the verb."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import llama, tokenizer

from luthier.analysis._offset import by_class, offsets, promoted
from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.decoding.proxy_tuning import ProxyTuning
from luthier.evaluation import _statistics as statistics
from luthier.evaluation._compare import Measured, gap_closed, task
from luthier.evaluation._family import Answers
from luthier.verbs.evaluate import evaluate
from luthier.verbs.load import Loaded

ROWS = [{"prompt": f"{i} the", "answer": "cat"} for i in range(40)]
SPEC: dict[str, Any] = {"name": "facts", "scorer": "exact_match", "data": ROWS, "max_new_tokens": 4}


def measured(hits: list[int], ids: list[int] | None = None) -> Measured:
    """Answers with given scores."""
    told, values = task(SPEC), np.array(hits, float)
    stats = dict.fromkeys(told.scorer.metrics, values)
    names = [str(i) for i in ids or range(len(hits))]
    return Measured("", {"facts": told}, {"facts": Answers(names, stats, names, names, names)})


def test_share_of_the_gap_by_hand() -> None:
    low, middle, top = [1] * 4 + [0] * 36, [1] * 22 + [0] * 18, [1] * 40
    found = gap_closed(measured(low), measured(middle), measured(top), resamples=500)["facts"]
    for entry in found.values():
        assert entry["value"] == pytest.approx((22 - 4) / (40 - 4))
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["n"] == 40
    worse = gap_closed(measured(low), measured([0] * 40), measured(top), resamples=200)["facts"]
    assert all(e["value"] == pytest.approx(-4 / 36) for e in worse.values())


def test_no_gap_no_share() -> None:
    some, same = [1, 0] * 20, [1, 0] * 19 + [0, 1]
    found = gap_closed(measured(some), measured([1] * 40), measured(same), resamples=500)["facts"]
    assert all(e["value"] is None and e["low"] is None for e in found.values())


def test_only_items_that_all_have() -> None:
    low = measured([0] * 30, list(range(30)))
    top = measured([1] * 30, list(range(10, 40)))
    middle = measured([1] * 10 + [0] * 30, [*range(20, 30), *range(20), *range(30, 40)])
    entry = next(iter(gap_closed(low, middle, top, resamples=200)["facts"].values()))
    assert (entry["n"], entry["value"]) == (20, 0.5)


def test_share_interval_is_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    low, top = (rng.random(400) < p for p in (0.2, 0.9))
    middle = rng.random(400) < 0.55

    def share(a: Any, w: Any) -> Any:
        return w @ a["x"] / w.sum(1)

    point, left, right = statistics.bootstrap_share(
        share, *({"x": x.astype(float)} for x in (low, middle, top)), resamples=400
    )
    assert point == pytest.approx((middle.mean() - low.mean()) / (top.mean() - low.mean()))
    assert 0.02 < right - point < 0.15
    assert 0.02 < point - left < 0.15


def other(scale: float) -> Any:
    model = copy.deepcopy(llama())
    torch.manual_seed(2)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight) * scale)
    return model


def test_the_verb_compares_with_models_alone() -> None:
    """Base and ceiling are asked without the other models of the decoder; a proxy that is the ceiling closes the whole gap."""
    tok, expert, anti = tokenizer(), other(0.5), copy.deepcopy(llama())
    base = Loaded(llama(), tok, "causal_lm", "base", "")
    text = Subject(expert, tok).generate([r["prompt"] for r in ROWS], 4)
    rows = [{"prompt": r["prompt"], "answer": t.split("\n")[0]} for r, t in zip(ROWS, text, strict=True)]
    rows = [r for r in rows if r["answer"].strip()]
    assert len(rows) > 10
    told = {**SPEC, "data": rows}
    ceiling = Loaded(expert, tok, "causal_lm", "ceiling", "")
    proxy = ProxyTuning(expert=expert, anti_expert=anti)
    found = evaluate(base, [told], base=base, ceiling=ceiling, decoding=proxy)
    metric = found["tasks"]["facts"]["metric"]
    assert found["tuned"]["facts"][metric]["value"] > found["base"]["facts"][metric]["value"]
    assert found["gap_closed"]["facts"][metric]["value"] == pytest.approx(1.0)
    with pytest.raises(LuthierError, match="give base"):
        evaluate(base, [told], ceiling=ceiling)


@torch.no_grad()
def test_offsets_by_hand() -> None:
    tok, base, expert = tokenizer(), llama(), other(0.4)
    texts = ["the cat in an", "hello there, 12", "x1"]
    found = offsets(
        Subject(base, tok), Subject(base, tok, decoder=ProxyTuning(expert=expert, anti_expert=llama(1))), texts
    )
    for text, one in zip(texts, found, strict=True):
        ids = torch.tensor([tok(text)["input_ids"]])
        a, b, c = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (base, expert, llama(1)))
        p, q = a.exp(), (a + b.clamp(min=-30) - c.clamp(min=-30)).softmax(-1)
        target = ids[0, 1:]
        at = torch.arange(len(target))
        assert one.tokens == target.tolist()
        np.testing.assert_allclose(one.distance, (0.5 * (p - q).abs().sum(-1)).numpy(), atol=1e-4)
        np.testing.assert_allclose(one.gain, (q[at, target] - p[at, target]).numpy(), atol=1e-4)
    classes = by_class(found, lambda i, t, token: "first" if t == 0 else "rest" if i else None)
    assert classes["first"]["tokens"] == 3
    assert classes["first"]["distance"] == pytest.approx(np.mean([o.distance[0] for o in found]))
    assert classes["rest"]["tokens"] == sum(len(o.tokens) - 1 for o in found[1:])
    ranked = promoted(found, tok, n=3, least=1)
    assert [g for _, g, _ in ranked] == sorted((g for _, g, _ in ranked), reverse=True)
    assert len(ranked) == 3
