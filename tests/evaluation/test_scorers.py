"""Every scorer: an oracle scores 1, guessing is chance, batches change nothing, values equal an independent library."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from sklearn import metrics as sk
from tiny_models import bert_classifier, llama, tokenizer

from luthier.core.method import LuthierError
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.evaluation import _statistics as st
from luthier.evaluation._family import Answers, Scorer, items_of, right_choice
from luthier.evaluation.answer import Answer
from luthier.evaluation.calibration import Calibration, calibration_stats, equal_count, equal_width, reliability
from luthier.evaluation.choice import Choice
from luthier.evaluation.classification import Classification
from luthier.evaluation.drift import Drift
from luthier.evaluation.exact_match import ExactMatch
from luthier.evaluation.perplexity import Perplexity
from luthier.evaluation.regression import Regression
from luthier.evaluation.skills import Skills


@dataclass
class Oracle(Subject):
    """A subject that looks answers up: `said` texts by prompt, `known` probabilities by text, `right` completions."""

    said: dict[str, str] = field(default_factory=dict)
    known: dict[str, list[float]] = field(default_factory=dict)

    def generate(self, prompts: Any, max_new_tokens: int = 64, stop: Any = (), seed: int | None = None) -> list[str]:
        return [self.said[p] for p in prompts]

    def logp(self, prompts: Any, completions: Any) -> tuple[np.ndarray, np.ndarray]:
        right = [c.strip() == self.said[p] for p, c in zip(prompts, completions, strict=True)]
        return np.where(right, -0.01, -9.0), np.ones(len(right), int)

    def class_probabilities(self, texts: Any) -> np.ndarray:
        return np.array([self.known[t] for t in texts])


def oracle(rows: list[dict[str, Any]], task: str = "causal_lm") -> Oracle:
    said = {
        r["prompt"]: str(r.get("answer", r["choices"][r["label"]] if "choices" in r else ""))
        for r in rows
        if "prompt" in r
    }
    return Oracle(bert_classifier(3), tokenizer(), task, said=said)


def value(scorer: Scorer, answers: Answers, metric: str) -> float:
    return st.value(scorer.aggregate(metric, answers), answers.stats)


QUESTIONS = [
    {"prompt": f"{i} + {i}?", "answer": str(2 * i), "choices": [str(2 * i), str(2 * i + 1), "x"], "label": 0}
    for i in range(40)
]


def test_oracle_scores_one() -> None:
    items, who = items_of(QUESTIONS), oracle(QUESTIONS)
    plain = items_of([{"prompt": r["prompt"], "answer": r["answer"]} for r in QUESTIONS])
    for scorer in (
        ExactMatch(),
        Answer(),
        Choice(),
        Calibration(),
        Classification(labels=tuple(str(i) for i in range(0, 80, 2))),
    ):
        answers = scorer.ask(who, plain if isinstance(scorer, Classification) else items)
        main = next(m for m, up in scorer.metrics.items() if up)
        assert value(scorer, answers, main) == 1.0, scorer.name


def test_guessing_is_chance() -> None:
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"q{i}", "choices": list("abcd"), "label": int(rng.integers(4))} for i in range(400)]
    who = oracle(rows)
    who.said = {p: "abcd"[rng.integers(4)] for p in who.said}
    answers = Choice().ask(who, items_of(rows))
    low, high = st.wilson(answers.stats["accuracy"].sum(), 400)
    assert low <= 0.25 <= high
    assert answers.floors["chance"] == 0.25
    assert 0.25 <= max(answers.floors.values()) < 0.35


def test_constant_answer_floor() -> None:
    rows = [{"prompt": f"q{i}", "answer": "no" if i < 7 else "yes"} for i in range(10)]
    assert ExactMatch().ask(oracle(rows), items_of(rows)).floors == {"always 'no'": 0.7}


@pytest.mark.parametrize(
    "scorer", [ExactMatch(max_new_tokens=6), Choice(), Calibration(), Answer(max_new_tokens=6)], ids=lambda s: s.name
)
def test_batch_size_independent(scorer: Scorer) -> None:
    found = [
        scorer.ask(Subject(llama(), tokenizer(), decoder=Greedy(), tokens_per_batch=n), items_of(QUESTIONS[:12]))
        for n in (1, 64, 4096)
    ]
    for other in found[1:]:
        assert other.outputs == found[0].outputs
        for name in found[0].stats:
            np.testing.assert_allclose(other.stats[name], found[0].stats[name], atol=1e-4)


def test_perplexity_by_hand() -> None:
    texts = ["the cat", "in an on abcd", "x"]
    who, scorer = Subject(llama(), tokenizer()), Perplexity()
    answers = scorer.ask(who, items_of([{"text": t} for t in texts]))
    parts = who.token_logp(texts)
    logp, tokens = sum(p.sum() for p in parts), sum(map(len, parts))
    assert value(scorer, answers, "perplexity") == pytest.approx(math.exp(-logp / tokens), rel=1e-5)
    assert value(scorer, answers, "bits_per_character") == pytest.approx(
        -logp / math.log(2) / sum(map(len, texts)), rel=1e-5
    )
    rows = [{"prompt": "the", "completion": " cat"}]
    only = scorer.ask(who, items_of(rows))
    assert only.stats["tokens"][0] == len(who.encode_pair("the", " cat")[1])


def test_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    flat = copy.deepcopy(llama())
    torch.nn.init.zeros_(flat.lm_head.weight)
    answers = Perplexity().ask(Subject(flat, tokenizer()), items_of([{"text": "the cat is here"}]))
    assert value(Perplexity(), answers, "perplexity") == pytest.approx(128, rel=1e-5)


def test_choice_ranks_by_logp() -> None:
    who = Subject(llama(), tokenizer())
    rows = [{"prompt": "in an", "choices": ["the", "on abcd er", " x"], "label": i} for i in range(3)]
    logp, _ = who.logp(["in an"] * 3, [" the", " on abcd er", " x"])
    answers = Choice().ask(who, items_of(rows))
    assert answers.stats["accuracy"].argmax() == logp.argmax()
    assert answers.stats["accuracy_norm"].argmax() == (logp / [3, 10, 2]).argmax()
    np.testing.assert_allclose(
        answers.stats["margin"], [logp[i] - np.delete(logp, i).max() for i in range(3)], atol=1e-5
    )


def test_choices_for_all_rows() -> None:
    rows = [{"prompt": "is it?", "answer": a} for a in ("Yes", "No", "No")]
    who = Subject(llama(), tokenizer())
    answers = Choice(choices=("Yes", "No")).ask(who, items_of(rows))
    assert answers.floors == {"chance": 0.5, "always choice 2": 2 / 3}
    assert answers.references == ["Yes", "No", "No"]
    with pytest.raises(LuthierError, match="no choices"):
        Choice().ask(who, items_of(rows))


def test_right_choice() -> None:
    rows = [{"prompt": "p", "choices": ["a1", "b1"], "label": x} for x in (1, "1", "B", "b1", True)]
    assert [right_choice(i) for i in items_of(rows)] == [1] * 5
    assert right_choice(items_of([{"prompt": "p", "choices": ["x", "y"], "answer": "y"}])[0]) == 1
    with pytest.raises(LuthierError, match="none of its 2 choices"):
        right_choice(items_of([{"prompt": "p", "choices": ["x", "y"], "label": "z"}])[0])


# ----------------------------------------------------------------------------------------------- classification


def answers_of(**stats: Any) -> Answers:
    arrays = {k: np.asarray(v, float) for k, v in stats.items() if k != "names"}
    return Answers([str(i) for i in range(len(next(iter(arrays.values()))))], arrays, names=stats.get("names", []))


def test_classification_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    gold, said = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    said[:90] = gold[:90]
    answers = answers_of(gold=gold, said=said, accuracy=gold == said, names=list("abcd"))
    weights = np.stack([np.ones(200), rng.integers(0, 3, 200)]).astype(float)
    expected = {
        "accuracy": lambda g, s: sk.accuracy_score(g, s), "macro_f1": lambda g, s: sk.f1_score(g, s, average="macro"),
        "micro_f1": lambda g, s: sk.f1_score(g, s, average="micro"), "mcc": sk.matthews_corrcoef,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "f1_c": lambda g, s: sk.f1_score(g, s, average=None)[2],
    }  # fmt: skip
    for metric, oracle_value in expected.items():
        found = Classification().aggregate(metric, answers)(answers.stats, weights)
        for w, f in zip(weights.astype(int), found, strict=True):
            assert f == pytest.approx(oracle_value(np.repeat(gold, w), np.repeat(said, w))), metric


def test_classes_that_do_not_occur() -> None:
    answers = answers_of(gold=[0, 0, 1], said=[0, 1, 1], accuracy=[1, 0, 1], names=list("abc"))
    expected = sk.f1_score([0, 0, 1], [0, 1, 1], average="macro")
    assert value(Classification(), answers, "macro_f1") == pytest.approx(expected)
    one = answers_of(gold=[0, 0], said=[0, 0], accuracy=[1, 1], names=list("ab"))
    assert value(Classification(), one, "mcc") == 0.0


def test_classification_from_head_and_from_words() -> None:
    head = Subject(bert_classifier(3), tokenizer("masked"), "classification")
    rows = [{"text": t, "label": i % 3} for i, t in enumerate(["the cat", "x", "in an", "abcd"])]
    answers = Classification().ask(head, items_of(rows))
    assert answers.names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    p = head.class_probabilities([r["text"] for r in rows])
    np.testing.assert_array_equal(answers.stats["said"], p.argmax(-1))
    words = Classification(labels=("good", "bad")).ask(
        Subject(llama(), tokenizer()),
        items_of([{"prompt": "it is", "label": "bad"}, {"text": "this", "label": "good"}]),
    )
    assert words.names == ["good", "bad"]
    np.testing.assert_array_equal(words.stats["gold"], [1, 0])
    with pytest.raises(LuthierError, match="none of the classes"):
        Classification(labels=("good",)).ask(
            Subject(llama(), tokenizer()), items_of([{"prompt": "x", "label": "ugly"}])
        )


def test_regression_is_scipys() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 6, 80).astype(float)
    said = truth + rng.normal(0, 1, 80).round(1)
    answers = answers_of(said=said, truth=truth, answered=np.ones(80))
    weights = np.stack([np.ones(80), rng.integers(0, 3, 80)]).astype(float)
    expected = {
        "pearson": lambda a, b: scipy_stats.pearsonr(a, b).statistic,
        "spearman": lambda a, b: scipy_stats.spearmanr(a, b).statistic,
        "rmse": lambda a, b: float(np.sqrt(np.mean((a - b) ** 2))),
    }
    for metric, of in expected.items():
        found = Regression().aggregate(metric, answers)(answers.stats, weights)
        for w, f in zip(weights.astype(int), found, strict=True):
            assert f == pytest.approx(of(np.repeat(said, w), np.repeat(truth, w))), metric


def test_regression_reads_numbers() -> None:
    rows = [{"prompt": "a", "label": 3.5}, {"prompt": "b", "label": "1"}, {"prompt": "c", "label": 2}]
    who = oracle(rows)
    who.said = {"a": "I say 3.5", "b": "1,000", "c": "none"}
    answers = Regression().ask(who, items_of(rows))
    np.testing.assert_allclose(answers.stats["said"], [3.5, 1000, 6.5 / 3])
    assert value(Regression(), answers, "answered") == pytest.approx(2 / 3)
    head = Subject(bert_classifier(1), tokenizer("masked"), "classification")
    assert len(Regression().ask(head, items_of([{"text": "x", "label": 1.0}, {"text": "y", "label": 2.0}]))) == 2


# -------------------------------------------------------------------------------------------------- calibration


def every(n: int) -> np.ndarray:
    return np.ones((1, n))


def test_ece_of_a_constant_predictor() -> None:
    stats = {"confidence": np.full(100, 0.9), "accuracy": np.arange(100) % 2 * 1.0}
    for bins in (1, 5, 10, 15):
        assert equal_width(stats, every(100), bins)[0] == pytest.approx(0.4)
        assert equal_count(stats, every(100), 1)[0] == pytest.approx(0.4)


def test_ece_of_a_calibrated_predictor_tends_to_zero() -> None:
    rng = np.random.default_rng(0)
    found = []
    for n in (200, 2000, 200_000):
        confidence = rng.uniform(0.25, 1, n)
        stats = {"confidence": confidence, "accuracy": (rng.random(n) < confidence).astype(float)}
        found.append(float(equal_width(stats, every(n), 10)[0]))
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.006


def test_confidence_one_is_in_the_top_bin() -> None:
    stats = {"confidence": np.array([1.0, 0.95, 0.0, 0.1, 0.3]), "accuracy": np.array([1.0, 0, 0, 0, 1])}
    bins = reliability(stats, 10)
    assert bins[-1]["count"] == 2
    assert (bins[-1]["low"], bins[-1]["high"]) == (0.9, 1.0)
    assert bins[0]["count"] == 2, "0.0 and the edge 0.1 are in the lowest"
    assert sum(b["count"] for b in bins) == 5


def test_ece_by_hand_and_weights() -> None:
    stats = {"confidence": np.array([0.55, 0.58, 0.9, 0.95]), "accuracy": np.array([1.0, 0, 1, 0])}
    by_hand = 0.5 * abs(0.5 - 0.565) + 0.25 * abs(1 - 0.9) + 0.25 * abs(0 - 0.95)
    assert equal_width(stats, every(4), 10)[0] == pytest.approx(by_hand)
    assert equal_count(stats, every(4), 2)[0] == pytest.approx(0.5 * 0.065 + 0.5 * abs(0.5 - 0.925))
    twice = {k: np.repeat(v, [2, 0, 1, 3]) for k, v in stats.items()}
    w = np.array([[2.0, 0, 1, 3]])
    assert equal_width(stats, w, 10)[0] == pytest.approx(equal_width(twice, every(6), 10)[0])


def test_brier_and_nll() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    stats = calibration_stats(list(p), [0, 2, 0])
    assert np.mean(stats["nll"]) == pytest.approx(sk.log_loss([0, 2, 0], p, labels=[0, 1, 2]))
    assert np.mean(stats["brier"]) == pytest.approx(np.mean(((p - np.eye(3)[[0, 2, 0]]) ** 2).sum(1)))
    assert stats["confidence"] == pytest.approx([0.7, 0.8, 0.4])
    assert stats["accuracy"] == [1, 1, 0]


def test_calibration_of_head_and_choices() -> None:
    head = Subject(bert_classifier(3), tokenizer("masked"), "classification")
    found = Calibration().ask(head, items_of([{"text": "the cat", "label": 1}, {"text": "x", "label": 2}]))
    np.testing.assert_allclose(found.stats["confidence"], head.class_probabilities(["the cat", "x"]).max(-1))
    chosen = Calibration().ask(Subject(llama(), tokenizer()), items_of(QUESTIONS[:5]))
    assert (chosen.stats["confidence"] >= 1 / 3).all()
    assert set(Calibration().details(chosen)) == {"bins", "ece"}


# -------------------------------------------------------------------------------------------------------- drift

TEXTS = [{"text": t} for t in ("the cat is here", "in an on abcd", "hello there", "xy")]


def shifted(scale: float) -> torch.nn.Module:
    model = copy.deepcopy(llama())
    torch.manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight) * scale)
    return model


def test_drift_is_the_plain_divergence() -> None:
    base, tuned = llama(), shifted(0.1)
    exact = Drift(keep=0)
    before = exact.ask(Subject(base, tokenizer()), items_of(TEXTS))
    after = exact.ask(Subject(tuned, tokenizer(), tokens_per_batch=30), items_of(TEXTS), before)
    kl, tv, agree = [], [], []
    for row in TEXTS:
        ids = torch.tensor([tokenizer()(row["text"])["input_ids"]])
        with torch.no_grad():
            p, q = (m(ids).logits[0, :-1].double().log_softmax(-1) for m in (base, tuned))
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        tv += ((p.exp() - q.exp()).abs().sum(-1) / 2).tolist()
        agree += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert value(exact, after, "kl") == pytest.approx(np.mean(kl), rel=1e-3)
    assert value(exact, after, "tv") == pytest.approx(np.mean(tv), rel=1e-3)
    assert value(exact, after, "top1_agreement") == pytest.approx(np.mean(agree))
    assert value(exact, before, "kl") == 0
    assert value(exact, before, "top1_agreement") == 1
    some = Drift(keep=20)
    part = some.ask(Subject(tuned, tokenizer()), items_of(TEXTS), some.ask(Subject(base, tokenizer()), items_of(TEXTS)))
    assert 0 < value(some, part, "kl") < value(exact, after, "kl"), "a lower bound"
    assert value(some, part, "top1_agreement") == pytest.approx(np.mean(agree))


def test_drift_of_the_same_model_is_zero() -> None:
    for keep in (0, 16):
        scorer = Drift(keep=keep)
        before = scorer.ask(Subject(llama(), tokenizer()), items_of(TEXTS))
        after = scorer.ask(Subject(llama(), tokenizer(), tokens_per_batch=20), items_of(TEXTS), before)
        assert abs(value(scorer, after, "kl")) < 1e-5
        assert value(scorer, after, "top1_agreement") == 1
    assert scorer.verdict("kl", 0.02, 0.05) == "worse"
    assert scorer.verdict("kl", 0.001, 0.05) == "same"
    assert scorer.verdict("top1_agreement", -0.2, -0.1) == "worse"


# ------------------------------------------------------------------------------------------------------- skills


def test_skills_ask_the_world() -> None:
    scorer = Skills(world="sequence", task="copy", n=12)
    rows = scorer.rows()
    who = oracle(rows)
    answers = scorer.ask(who, items_of(rows))
    assert value(scorer, answers, "score") == 1.0
    who.said = dict.fromkeys(who.said, " z z z")
    assert value(scorer, scorer.ask(who, items_of(rows)), "score") == 0.0
