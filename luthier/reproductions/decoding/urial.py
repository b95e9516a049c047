"""Card 06 on the sandbox: three constant examples give an untuned model the style that tuning would, and its facts stay."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.layout import Layout
from luthier.core.subject import Subject
from luthier.decoding.urial import Urial
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions.decoding._scales import Scales, row_of
from luthier.sandbox.worlds.facts import PEOPLE
from luthier.sandbox.worlds.styles import ATTRIBUTES

NUMBERS = (0, 1, 3, 8)


def constant(style: int, seed: int, n: int = 8) -> Layout:
    """`n` questions of the styles world about people that pretraining shows often, answered in one style."""
    rng = random.Random(f"examples {seed}")
    asked = rng.sample([(p, a) for p in PEOPLE["known"] for a in ATTRIBUTES], n)
    told = [row_of(*one, style) for one in asked]
    return Layout(answer=" {answer}\n", stop=("\n",), examples=tuple((r["prompt"], r["completion"]) for r in told))


class StyleFromThePrompt(Scales):
    seeds: ClassVar[int] = 3
    scope: ClassVar[str] = "this size"
    other_style: ClassVar[int] = 4
    setup = """nano-5m, pretrained on documents that keep one of six styles. Asked for city, job and food of 100 people that
    pretraining shows a third as often as others, in the wording of its documents; none of them is in an example or a lesson.
    The base alone; behind 3 constant examples in one style, drawn anew for each seed; behind 3 of another style; and tuned in
    full on 300 answers in the style, 100 steps of 16, AdamW. An answer counts for style if it is the style's template
    around one word, for fact if it holds the right value and no other. Also 0, 1 and 8 examples."""

    def rows(self) -> list[dict[str, Any]]:
        return [row_of(p, a, self.style) for p in PEOPLE["rare"][: self.people] for a in ATTRIBUTES]

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.large)
        tuned = self.tuned(base, tokenizer, self.style, self.large_rate, seed)
        shown = constant(self.style, seed)
        out: Row = {}
        for name, model, decoder in (
            ("base", base, None), ("tuned", tuned, None),
            *((f"k{k}", base, Urial(examples=shown, k=k)) for k in NUMBERS),
            ("other", base, Urial(examples=constant(self.other_style, seed), k=3)),
        ):  # fmt: skip
            out |= {f"{name}_{key}": v for key, v in self.graded(model, tokenizer, decoder).items()}
        prompts = [r["prompt"] for r in self.rows()]
        once, whole = (
            Subject(base, tokenizer, decoder=Urial(examples=shown, read_once=r)).generate(prompts, 14)
            for r in (True, False)
        )
        told = {q for q, _ in (*shown.examples, *constant(self.other_style, seed).examples)}
        return out | {"once_is_whole": float(once == whole), "seen_before": float(len(told & set(prompts)))}

    def claims(self, rows: list[Row]) -> list[Claim]:
        def both(name: str) -> str:
            return f"{spread(rows, f'{name}_style')}, {spread(rows, f'{name}_fact')}"

        shown = f"style, facts: with 3 examples {both('k3')}"
        return [
            Claim(
                "without examples the base seldom answers in the style, and knows the facts (the experiment needs both)",
                f"style, facts: base {both('base')}",
                mean(rows, "base_style") <= 0.5 and mean(rows, "base_fact") >= 0.8,
            ),
            Claim(
                "three constant examples give the style (0.9)", shown, mean(rows, "k3_style") >= 0.9,
                headline=True,
            ),
            Claim(
                "the facts stay (within 5 points of the base alone)", f"{shown}; base {both('base')}",
                mean(rows, "k3_fact") >= mean(rows, "base_fact") - 0.05,
            ),
            Claim(
                "they match tuning: at least as many answers in the style with the right fact, within 5 points",
                f"both: with 3 examples {spread(rows, 'k3_both')}, tuned {spread(rows, 'tuned_both')}",
                mean(rows, "k3_both") >= mean(rows, "tuned_both") - 0.05,
            ),
            Claim(
                "examples in another style give that one (at most 0.05 in the first), and the facts stay: a control",
                f"style, facts: {both('other')}",
                mean(rows, "other_style") <= 0.05 and mean(rows, "other_fact") >= mean(rows, "base_fact") - 0.05,
            ),
            Claim(
                "reading the constant part once changes no answer, and no question is one of the examples",
                f"same answers {spread(rows, 'once_is_whole')}, questions among the examples {spread(rows, 'seen_before')}",
                all(r["once_is_whole"] == 1 and r["seen_before"] == 0 for r in rows),
            ),
            Claim(
                "it is the examples: without any the base stays as it is, whatever number of them is best",
                ", ".join(f"{k}: {both(f'k{k}')}" for k in NUMBERS),
                mean(rows, "k0_style") <= mean(rows, "base_style") + 0.05,
                central=False,
            ),
        ]  # fmt: skip
