"""Card 06 on the sandbox: a judge's aspects tell form from content, and neither gaps nor the order of answers move them."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np

from luthier import sandbox
from luthier.core.subject import Subject
from luthier.decoding.greedy import Greedy
from luthier.decoding.urial import Urial
from luthier.evaluation._family import Answers, items_of
from luthier.evaluation._judges import overlap
from luthier.evaluation.aspects import Aspects
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions.decoding._scales import Scales, in_style, knows, row_of
from luthier.reproductions.decoding.urial import constant
from luthier.sandbox.worlds.facts import PEOPLE
from luthier.sandbox.worlds.styles import ATTRIBUTES

BOTH = ("factuality", "engagement")


def exact(prompt: str, answer: str, row: dict[str, Any]) -> dict[str, float]:
    """A judge that knows the world: 5 for the right value, 5 for the friendly style, else 1."""
    return {"factuality": 1 + 4 * float(knows(row, answer)), "engagement": 1 + 4 * float(in_style(answer, 0))}


def rather(prompt: str, a: str, b: str, row: dict[str, Any]) -> dict[str, str]:
    """The same judge between two answers."""
    one, other = exact(prompt, a, row), exact(prompt, b, row)
    return {k: "A" if one[k] > other[k] else "B" if one[k] < other[k] else "tie" for k in one}


class FormAndContentApart(Scales):
    seeds: ClassVar[int] = 3
    scope: ClassVar[str] = "this size"
    setup = """nano-5m, asked for city, job and food of 100 people that pretraining shows a third as often as others: by itself,
    behind 3 constant examples in a friendly style, and tuned on it as in the experiment of decoding/urial. A judge that knows
    the world scores factuality by the value and engagement by the style. Then, without a model: the rows' own answers, the
    first half of their words, and the answers of other rows, by the words that they share with the row's; and a judge whose
    verdict cannot be read for three answers in ten, drawn by seed, more often where the answer is poor."""

    def rows(self) -> list[dict[str, Any]]:
        return [
            {**row_of(p, a, self.style), "id": f"{p.name}/{a}"}
            for p in PEOPLE["rare"][: self.people]
            for a in ATTRIBUTES
        ]

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.large)
        tuned = self.tuned(base, tokenizer, self.style, self.large_rate, seed)
        shown = Urial(examples=constant(self.style, seed), k=3)
        items, out = items_of(self.rows()), dict[str, float]()
        scorer = Aspects(judge_by=exact, aspects=BOTH, max_new_tokens=14, stop=("\n",))
        found: dict[str, Answers] = {}
        for name, model, decoder in (("base", base, Greedy()), ("shown", base, shown), ("tuned", tuned, Greedy())):
            found[name] = scorer.ask(Subject(model, tokenizer, decoder=decoder), items)
            out |= {f"{name}_{m}": v for m, v in _means(scorer, found[name]).items()}
        for other in ("base", "tuned"):
            pairs = Aspects(judge_by=rather, aspects=BOTH, against="base", max_new_tokens=14, stop=("\n",))
            judged = pairs.ask(Subject(base, tokenizer, decoder=shown), items, found[other])
            out |= {f"shown_over_{other}_{m}": v for m, v in _means(pairs, judged).items()}
        first = Aspects(judge_by=lambda p, a, b, row: dict.fromkeys(BOTH, "A"), aspects=BOTH, against="reference")
        out |= {f"first_{m}": v for m, v in _means(first, first.score(found["base"].outputs, items)).items()}
        return out | self._without_a_model(seed)

    def _without_a_model(self, seed: int) -> Row:
        rows, rng = self.rows(), random.Random(f"gaps {seed}")
        gold = [r["completion"].strip() for r in rows]
        texts = {"gold": gold, "half": [" ".join(g.split()[: len(g.split()) // 2]) for g in gold]}
        texts["off"] = [" ".join(r["prompt"].split()[1:5]) for r in rows[7:] + rows[:7]]
        scorer, items = Aspects(judge_by=overlap), items_of(rows)
        out = {f"{k}_helpfulness": _means(scorer, scorer.score(t, items))["helpfulness"] for k, t in texts.items()}
        order = rng.sample(range(len(rows)), len(rows))
        turned = {
            k: _means(scorer, scorer.score([t[i] for i in order], [items[i] for i in order]))["helpfulness"]
            for k, t in texts.items()
        }
        out["order_moves"] = max(abs(turned[k] - out[f"{k}_helpfulness"]) for k in texts)
        mixed = [gold[i] if i % 2 else texts["off"][i] for i in range(len(rows))]
        gone = {r["id"] for i, r in enumerate(rows) if rng.random() < (0.2 if i % 2 else 0.4)}

        def patchy(prompt: str, answer: str, row: dict[str, Any]) -> Any:
            return {"helpfulness": "N/A"} if row["id"] in gone else overlap(prompt, answer, row)

        with_gaps = Aspects(judge_by=patchy)
        answers = with_gaps.score(mixed, items)
        told, whole = _means(with_gaps, answers), _means(scorer, scorer.score(mixed, items))
        kept = [overlap("", t, r)["helpfulness"] for t, r in zip(mixed, rows, strict=True) if r["id"] not in gone]
        return out | {
            "gaps": len(gone) / len(rows), "gaps_judged": told["judged"], "gaps_mean": told["helpfulness"],
            "gaps_by_hand": float(np.mean(kept)), "whole_mean": whole["helpfulness"],
            "filled_mean": float(np.mean([*kept, *[5.0] * len(gone)])),
        }  # fmt: skip

    def claims(self, rows: list[Row]) -> list[Claim]:
        def scores(name: str) -> str:
            return f"{spread(rows, f'{name}_factuality')}, {spread(rows, f'{name}_engagement')}"

        return [
            Claim(
                "answers are ranked: the right ones above half of them above others (helpfulness), in whatever order they come",
                f"{spread(rows, 'gold_helpfulness')}, {spread(rows, 'half_helpfulness')}, {spread(rows, 'off_helpfulness')}; "
                f"another order moves them by {spread(rows, 'order_moves')}",
                all(
                    r["gold_helpfulness"] > r["half_helpfulness"] > r["off_helpfulness"] and r["order_moves"] < 1e-9
                    for r in rows
                ),
            ),
            Claim(
                "verdicts that cannot be read are counted, and get no score: the mean is that of the others",
                f"unreadable {spread(rows, 'gaps')}, told as judged {spread(rows, 'gaps_judged')}; mean "
                f"{spread(rows, 'gaps_mean')}, by hand {spread(rows, 'gaps_by_hand')}; "
                f"with fives in the gaps it would be {spread(rows, 'filled_mean')}",
                all(
                    abs(r["gaps_judged"] + r["gaps"] - 1) < 1e-9 and abs(r["gaps_mean"] - r["gaps_by_hand"]) < 1e-9
                    for r in rows
                ),
            ),
            Claim(
                "a judge that likes whatever is shown first decides nothing",
                f"preference {spread(rows, 'first_factuality')}, steady {spread(rows, 'first_steady')}",
                all(r["first_factuality"] == 0.5 and r["first_steady"] == 0 for r in rows),
            ),
            Claim(
                "constant examples raise engagement and leave factuality, up to tuning (each within 0.2 of the tuned model's)",
                f"factuality, engagement: base {scores('base')}, behind examples {scores('shown')}, tuned {scores('tuned')}; words "
                f"{spread(rows, 'base_words')}, {spread(rows, 'shown_words')}, {spread(rows, 'tuned_words')}",
                mean(rows, "shown_engagement") > mean(rows, "base_engagement") + 1
                and all(mean(rows, f"shown_{a}") >= mean(rows, f"tuned_{a}") - 0.2 for a in BOTH),
            ),
            Claim(
                "in pairs, too: more engaging than the base alone (0.9), on a par with tuning (within 0.05 of a half)",
                f"engagement over the base {spread(rows, 'shown_over_base_engagement')}, over tuning "
                f"{spread(rows, 'shown_over_tuned_engagement')}; factuality {spread(rows, 'shown_over_base_factuality')}, "
                f"{spread(rows, 'shown_over_tuned_factuality')}",
                mean(rows, "shown_over_base_engagement") >= 0.9
                and abs(mean(rows, "shown_over_tuned_engagement") - 0.5) <= 0.05,
            ),
        ]


def _means(scorer: Aspects, answers: Answers) -> dict[str, float]:
    ones = np.ones((1, len(answers)))
    return {m: float(scorer.aggregate(m, answers)(answers.stats, ones)[0]) for m in scorer.table(answers)}
