"""Card 06 on the sandbox: tuning on a style moves the first words of an answer, and not the facts."""

from __future__ import annotations

from typing import Any, ClassVar

from luthier import sandbox
from luthier.analysis.token_shift import by, compare, shares
from luthier.core.subject import Subject
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions.decoding._scales import Scales, row_of
from luthier.reproductions.decoding.urial import constant
from luthier.sandbox.worlds.facts import PEOPLE, VALUES
from luthier.sandbox.worlds.styles import ATTRIBUTES

VALUE_WORDS = {v for values in VALUES.values() for v in values}


class StyleIsWhatShifts(Scales):
    seeds: ClassVar[int] = 3
    scope: ClassVar[str] = "this size"
    setup = """nano-5m before and after tuning in full on 300 answers in one style about people that pretraining shows often,
    100 steps of 16, AdamW. Its greedy answers about city, job and food of 100 people that pretraining shows a third as often,
    up to the end of the line, which counts as a token. Classes: the value is a fact token, all other words are style tokens,
    the end of the line is neither. Then the untuned model reads 3 constant examples in the style first."""

    def rows(self) -> list[dict[str, Any]]:
        return [row_of(p, a, self.style) for p in PEOPLE["rare"][: self.people] for a in ATTRIBUTES]

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.large)
        tuned = self.tuned(base, tokenizer, self.style, self.large_rate, seed)
        prompts, text = [r["prompt"] for r in self.rows()], tokenizer.decode

        def kind(i: int, t: int, token: int) -> str | None:
            word = str(text([token])).strip()
            return "fact" if word in VALUE_WORDS else "style" if word else None

        before, after = Subject(base, tokenizer), Subject(tuned, tokenizer)
        found = compare(before, after, prompts, 14, ["\n"])
        behind = compare(before, after, prompts, 14, ["\n"], around=constant(self.style, seed), k=3)
        same = shares(compare(before, before, prompts, 14, ["\n"]))
        place = by(found, lambda i, t, token: "first" if t == 0 else "later")
        classes = by(found, kind)
        out = shares(found) | {f"{n}_unshifted": v["unshifted"] for n, v in (*place.items(), *classes.items())}
        out |= {f"{n}_kl": v["kl"] for n, v in place.items()}
        return out | {
            "behind_unshifted": shares(behind)["unshifted"], "behind_kl": shares(behind)["kl"],
            "same_unshifted": same["unshifted"], "same_kl": same["kl"],
        }  # fmt: skip

    def claims(self, rows: list[Row]) -> list[Claim]:
        gap = mean(rows, "fact_unshifted") - mean(rows, "style_unshifted")
        return [
            Claim(
                "most tokens are those that the untuned model would write (0.75 unshifted)",
                f"unshifted {spread(rows, 'unshifted')}, marginal {spread(rows, 'marginal')}, shifted {spread(rows, 'shifted')}",
                mean(rows, "unshifted") >= 0.75,
            ),
            Claim(
                "style shifts and facts do not (unshifted: fact tokens at least 10 points above style tokens)",
                f"unshifted: fact {spread(rows, 'fact_unshifted')}, style {spread(rows, 'style_unshifted')}",
                gap >= 0.10,
            ),
            Claim(
                "it happens early: the first token is unshifted clearly less often than later ones (20 points)",
                f"unshifted: first {spread(rows, 'first_unshifted')}, later {spread(rows, 'later_unshifted')}; KL "
                f"{spread(rows, 'first_kl')}, {spread(rows, 'later_kl')}",
                mean(rows, "later_unshifted") - mean(rows, "first_unshifted") >= 0.20,
            ),
            Claim(
                "constant examples in front of the untuned model raise its unshifted share",
                f"unshifted {spread(rows, 'unshifted')}, behind 3 examples {spread(rows, 'behind_unshifted')}; KL "
                f"{spread(rows, 'kl')}, {spread(rows, 'behind_kl')}",
                mean(rows, "behind_unshifted") > mean(rows, "unshifted"),
            ),
            Claim(
                "a model beside itself is unshifted everywhere, with no distance",
                f"unshifted {spread(rows, 'same_unshifted')}, KL {spread(rows, 'same_kl')}",
                all(r["same_unshifted"] == 1 and r["same_kl"] == 0 for r in rows),
            ),
        ]  # fmt: skip
