"""Style of generated tests, candidates of a decoder, and Wilcoxon's test: what oracles and battery do not reach."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from luthier.checks._models import PAD, model_of
from luthier.core import catalog
from luthier.core.method import Limits, LuthierError
from luthier.core.subject import Subject
from luthier.evaluation import _statistics as statistics
from luthier.evaluation._code import abstracted, edit_similarity, fingerprint
from luthier.evaluation._family import items_of

STYLE = catalog.load("evaluation", "code_style")()
CANDIDATES = catalog.load("evaluation", "candidates")
PROMPT = "def stow(cargo):\n return cargo[:3]\n\n# test"
GOLD = "def test_stow():\n landed = stow(full_hold())\n must_fit(landed, 3)"


def measured(said: str | list[str], gold: str = GOLD, prompt: str = PROMPT, scorer=STYLE) -> dict[str, float]:
    said = [said] if isinstance(said, str) else said
    answers = scorer.score(said, items_of([{"prompt": prompt, "answer": gold}] * len(said)))
    w = np.ones((1, len(said)))
    return {m: float(scorer.aggregate(m, answers)(answers.stats, w)[0]) for m in scorer.table(answers)}


def test_consistent_renaming_and_other_literals_change_nothing() -> None:
    renamed = "def test_x():\n out = go(make())\n check(out, 7)"
    assert fingerprint(renamed) == fingerprint(GOLD)
    assert abstracted(GOLD)[:3] == ["def", "V1", "("] and "L1" in abstracted(GOLD)
    mixed = GOLD.replace("must_fit(landed", "must_fit(stow")  # one use renamed to another name: no longer consistent
    assert fingerprint(mixed) != fingerprint(GOLD)
    assert abstracted("sorted(x)") != abstracted("list(x)")  # Python's own names stay
    found = measured(renamed)
    assert found["abstract_match"] == found["abstract_bleu"] == found["abstract_edit"] == 1.0
    assert found["own_identifiers"] == 0.0 and found["calls_focal"] == 0.0


def test_the_same_test_is_the_best_of_everything() -> None:
    found = measured(GOLD)
    assert found.pop("style_distance") == 0.0
    assert np.isnan(found.pop("own_exceptions"))  # there is none
    assert found == pytest.approx(dict.fromkeys(found, 1.0))


@pytest.mark.parametrize("said", ["", "def f(xs", "(" * 500, "\x00", "🙂" * 10, "assert stow(" * 200])
def test_broken_text_does_nothing_and_does_not_crash(said: str) -> None:
    found = measured(said)
    assert found["parses"] == found["calls_focal"] == found["has_assert"] == found["same_asserts"] == 0
    assert found["plausible"] == found["abstract_match"] == 0


def test_camel_case_is_far_from_snake_case() -> None:
    camel = GOLD.replace("must_fit", "mustFit").replace("full_hold", "fullHold").replace("test_stow", "testStow")
    near = GOLD.replace("must_fit", "must_be")
    assert measured(near)["style_distance"] == 0.0 < measured(camel)["style_distance"] <= 1.0


def test_asserts_are_counted_once() -> None:
    found = [STYLE.count_asserts(__import__("ast").parse(code)) for code in (
        "assert check(x)", "check(x)\nself.assertEqual(a, b)", "assert a\nassert b", "x = stow(1)", "assertion = 3",
    )]  # fmt: skip
    assert found == [1, 2, 2, 0, 0]


def test_the_tested_function_is_the_row_s_or_the_last_of_the_prompt() -> None:
    two = "def first(): pass\ndef second(): pass\n"
    assert measured("assert second()", "assert second()", two)["calls_focal"] == 1.0
    assert measured("assert first()", "assert second()", two)["calls_focal"] == 0.0
    items = items_of([{"prompt": two, "answer": "x", "focal": "first"}])
    assert STYLE.task("assert first()", items[0])["calls_focal"] == 1.0
    assert STYLE.task("must_fail(Error, first)", items[0])["calls_focal"] == 1.0  # handed to a helper


class Says:
    """A subject whose candidates are told."""

    def __init__(self, *texts: str):
        self.texts = list(texts)

    def candidates(self, prompts, k, *limits) -> list[list[str]]:
        return [self.texts[:k] for _ in prompts]


def test_one_of_k_is_plausible() -> None:
    scorer = replace(STYLE, k=(2, 3))
    answers = scorer.ask(Says("def broken(", "x = 1", GOLD), items_of([{"prompt": PROMPT, "answer": GOLD}]))
    found = {m: float(answers.stats[m][0]) for m in ("plausible", "plausible@2", "plausible@3")}
    assert found == {"plausible": 0.0, "plausible@2": 0.0, "plausible@3": 1.0}
    assert list(scorer.table(answers))[-2:] == ["plausible@2", "plausible@3"]
    with pytest.raises(LuthierError, match="k is"):
        replace(STYLE, k=(0,))


def test_em_at_k_rises_counts_once_and_ignores_blanks() -> None:
    items = items_of([{"prompt": "p", "answer": " a   b\n"}, {"prompt": "q", "answer": "nothing like it"}])
    answers = CANDIDATES().ask(Says("x", " x ", "a b", "a\tb"), items)
    values = [answers.stats[f"em@{k}"].mean() for k in (1, 2, 5, 10)]
    assert values == [0.0, 0.5, 0.5, 0.5]  # "x" and " x " are one candidate
    assert CANDIDATES().details(answers) == {"candidates": 2.0}
    with pytest.raises(LuthierError, match="k is"):
        CANDIDATES(k=())


def test_candidates_of_decoders() -> None:
    """The first is what `generate` says; beams rank by score, samplers draw, and the greedy decoder has one."""
    model, prompts, limits = model_of("llama"), [[11, 25, 7], [30, 9]], Limits(max_new_tokens=4, pad_id=PAD, seed=2)
    for name, options, most in (("beam", {"num_beams": 4}, 4), ("nucleus", {"top_p": 1.0}, 4), ("greedy", {}, 1)):
        decoder = catalog.load("decoding", name)(**options)
        first = decoder.generate(model, prompts, limits)
        found = decoder.candidates(model, prompts, limits, 4)
        assert [f[0].ids for f in found] == [g.ids for g in first]
        assert all(1 <= len(f) <= most and len({tuple(g.ids) for g in f}) == len(f) for f in found)
        if name == "beam":
            assert all(a.logp >= b.logp - 1e-5 for f in found for a, b in pairwise(f))
            assert [[g.ids for g in f] for f in decoder.candidates(model, prompts, limits, 2)] == [
                [g.ids for g in f[:2]] for f in found
            ]
            with pytest.raises(LuthierError, match="as many beams"):
                decoder.candidates(model, prompts, limits, 5)


def test_a_subject_s_candidates_do_not_depend_on_batches() -> None:
    from luthier import sandbox

    model, tokenizer = sandbox.load("nano-1m")
    nucleus = catalog.load("decoding", "nucleus")(temperature=1.0, top_p=1.0)
    asked = ["# sort", "# reverse, sum", "# sort"]
    found = []
    for size in (30, 4096):
        subject = Subject(model, tokenizer, decoder=nucleus, tokens_per_batch=size, seed=3)
        found.append(subject.candidates(asked, 3, 8))
        assert [f[0] for f in found[-1]][:2] == subject.generate(asked[:2], 8)
    assert found[0] == found[1]
    assert found[0][0] == found[0][2] and len(found[0][0]) > 1


def test_edit_similarity_of_lists() -> None:
    assert edit_similarity(["a", "bb", "c"], ["a", "c"]) == pytest.approx(2 / 3)
    assert edit_similarity([], []) == 1.0 and edit_similarity([], ["a"]) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_wilcoxon_is_scipy_s(seed: int) -> None:
    """Exact without ties and zeros; with ties it enumerates where scipy approximates, so only its statistic is compared."""
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(seed)
    difference = rng.normal(0.4, 1, 5 + seed)
    p, effect = statistics.wilcoxon(difference)
    told = wilcoxon(difference, mode="exact")
    assert p == pytest.approx(told.pvalue)
    total = len(difference) * (len(difference) + 1) / 2
    assert 1 - abs(effect) == pytest.approx(2 * told.statistic / total)
    assert statistics.wilcoxon(np.abs(difference))[1] == 1.0
    assert statistics.wilcoxon(np.zeros(4)) == (1.0, 0.0)
    tied = np.array([1.0, -1.0, 2.0, 0.0, 2.0])
    assert statistics.signed_ranks(tied).tolist() == [1.5, -1.5, 3.5, 0.0, 3.5]
