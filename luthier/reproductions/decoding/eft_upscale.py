"""Card 13 on the sandbox: style comes from the size that was tuned, facts from the size that was pretrained."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from luthier.analysis._offset import by_class, offsets
from luthier.core.subject import Subject
from luthier.decoding.eft_downscale import EFTDownscale
from luthier.decoding.eft_mix import EFTMix
from luthier.decoding.eft_upscale import EFTUpscale
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions.decoding._scales import Scales
from luthier.sandbox.worlds.styles import STYLES

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
CELLS = ("small_tuned", "large_tuned", "up", "down")


class FactsFromPretraining(Scales):
    seeds: ClassVar[int] = 3
    scope: ClassVar[str] = "these sizes"
    other_style: ClassVar[int] = 4
    setup = """nano-1m (small) and nano-5m (large), pretrained on the same corpus. Tuned in full on 300 answers in one style about
    people that pretraining shows often, 100 steps of 16, AdamW; asked for all attributes of 100 people that it shows a third
    as often. Four cells: both sizes tuned; tuning of the small on the pretraining of the large (up), and the reverse (down).
    A second small model is tuned on another style for the interpolation. Drafts: 4 tokens of the small tuned model, greedy.
    The small model's rate was chosen among 3e-4, 5e-4 and 1e-3 with seeds 0 and 1, by the facts that up-scaling kept."""

    def measure(self, seed: int) -> Row:
        small, large, tokenizer = self.models()
        tuned = self.tuned(small, tokenizer, self.style, self.small_rate, seed)
        wide = self.tuned(large, tokenizer, self.style, self.large_rate, seed)
        up = EFTUpscale(tuned=tuned, reference=small)
        out: Row = {}
        for name, model, decoder in (
            ("small", small, None), ("large", large, None), ("small_tuned", tuned, None), ("large_tuned", wide, None),
            ("up", large, up), ("down", small, EFTDownscale(tuned=wide, reference=large)),
            ("amplified", large, EFTUpscale(tuned=tuned, reference=small, beta=1.5)),
            ("trusted", large, EFTUpscale(tuned=tuned, reference=small, trusted_top_p=0.9)),
        ):  # fmt: skip
            out |= {f"{name}_{k}": v for k, v in self.graded(model, tokenizer, decoder).items()}
        out |= self._interpolation(small, large, tuned, tokenizer, seed)
        out |= self._drafts(small, large, tuned, tokenizer)
        return out | self._moved(large, tuned, up, tokenizer)

    def _interpolation(self, small: Any, large: Any, tuned: Any, tokenizer: Any, seed: int) -> Row:
        """Probability that an answer begins as the first style does, on the way from the other style to it."""
        other = self.tuned(small, tokenizer, self.other_style, self.small_rate, seed)
        prompts = [r["prompt"] for r in self.rows()[:100]]
        pair = Subject(large, tokenizer).encode_pair(prompts[0], f" {STYLES[self.style].partition(' ')[0]}")
        out, ends = {}, {}
        for share in SHARES:
            mixed = EFTMix(tuned=(tuned, other), weights=(share, 1 - share), reference=small)
            logp = Subject(large, tokenizer, decoder=mixed).next_token_logp(prompts)
            out[f"begins_{share:g}"] = float(np.exp(logp[:, pair[1][0]]).mean())
            ends[share] = logp
        for share, one in ((1.0, tuned), (0.0, other)):
            alone = Subject(large, tokenizer, decoder=EFTUpscale(tuned=one, reference=small)).next_token_logp(prompts)
            out[f"end_{share:g}_equal"] = float(np.array_equal(alone, ends[share]))
        return out

    def _drafts(self, small: Any, large: Any, tuned: Any, tokenizer: Any) -> Row:
        """Greedy answers with and without drafts, and what became of the drafts."""
        ids = [tokenizer(r["prompt"])["input_ids"] for r in self.rows()[:100]]
        plain, drafted = (
            Subject(large, tokenizer, decoder=EFTUpscale(tuned=tuned, reference=small, draft_tokens=k)).generations(
                ids, 14, stop=["\n"]
            )
            for k in (0, 4)
        )
        count = {k: sum(g.figures[k] for g in drafted) for k in ("drafted", "accepted", "reads")}
        said = sum(len(g.ids) - 1 for g in drafted)  # the first token comes from the prompt
        return {
            "same_tokens": float(np.mean([a.ids == b.ids for a, b in zip(plain, drafted, strict=True)])),
            "accepted": count["accepted"] / count["drafted"],
            "tokens_per_read": said / count["reads"],
        }

    def _moved(self, large: Any, tuned: Any, up: EFTUpscale, tokenizer: Any) -> Row:
        """Total variation between the small tuned model and its up-scaled form, at the style's words and at the value."""
        rows = self.rows()[:100]
        subject = Subject(tuned, tokenizer)
        head = STYLES[self.style].partition("{}")[0].rstrip()
        begins = [len(subject.encode(r["prompt"])) - 1 for r in rows]
        values = [len(subject.encode(f"{r['prompt']} {head}")) - 1 for r in rows]

        def kind(i: int, t: int, token: int) -> str | None:
            return "style" if begins[i] <= t < values[i] else "value" if t == values[i] else None

        texts = [r["prompt"] + r["completion"] for r in rows]
        found = by_class(offsets(subject, Subject(large, tokenizer, decoder=up), texts), kind)
        return {f"moved_{name}": v["distance"] for name, v in found.items()}

    def claims(self, rows: list[Row]) -> list[Claim]:
        style = {c: mean(rows, f"{c}_style") for c in CELLS}
        fact = {c: mean(rows, f"{c}_fact") for c in CELLS}
        gap = mean(rows, "large_fact") - mean(rows, "small_fact")
        begins = [mean(rows, f"begins_{s:g}") for s in SHARES]

        def cells(key: str) -> str:
            return ", ".join(f"{c.replace('_', ' ')} {spread(rows, f'{c}_{key}')}" for c in CELLS)

        return [
            Claim("all four cells answer in the style (0.9)", f"style: {cells('style')}", min(style.values()) >= 0.9),
            Claim(
                "facts follow the size that was pretrained: whichever size was tuned, the larger pretraining gives at least "
                "half of the difference that it makes before tuning",
                f"facts: {cells('fact')}; before tuning small {spread(rows, 'small_fact')}, large {spread(rows, 'large_fact')}",
                min(fact["up"] - fact["small_tuned"], fact["large_tuned"] - fact["down"]) >= 0.5 * gap,
                headline=True,
            ),
            Claim(
                "the same for ages, which the small model hardly knows",
                f"ages: {cells('age')}; before tuning small {spread(rows, 'small_age')}, large {spread(rows, 'large_age')}",
                min(
                    mean(rows, "up_age") - mean(rows, "small_tuned_age"),
                    mean(rows, "large_tuned_age") - mean(rows, "down_age"),
                )
                >= 0.5 * (mean(rows, "large_age") - mean(rows, "small_age")),
            ),
            Claim(
                "between two tuned behaviours the way is monotone, and its ends are the two alone to the last bit",
                "probability of the first style's first word: "
                + ", ".join(f"{s:g} {spread(rows, f'begins_{s:g}')}" for s in SHARES),
                begins == sorted(begins) and all(r[f"end_{s}_equal"] == 1 for r in rows for s in (0, 1)),
            ),
            Claim(
                "drafts change no token, and more than 1.5 tokens come of a forward of the large model",
                f"same tokens {spread(rows, 'same_tokens')}, drafts accepted {spread(rows, 'accepted')}, tokens a forward "
                f"{spread(rows, 'tokens_per_read')}",
                all(r["same_tokens"] == 1 for r in rows) and mean(rows, "tokens_per_read") > 1.5,
            ),
            Claim(
                "up-scaling changes the small tuned model's value more than its style",
                f"total variation: value {spread(rows, 'moved_value')}, style {spread(rows, 'moved_style')}",
                mean(rows, "moved_value") > mean(rows, "moved_style"),
                central=False,
            ),
            Claim(
                "counting the change only in the tuned model's nucleus of 0.9 helps",
                f"both: everywhere {spread(rows, 'up_both')}, in the nucleus {spread(rows, 'trusted_both')}; facts "
                f"{spread(rows, 'up_fact')}, {spread(rows, 'trusted_fact')}",
                mean(rows, "trusted_both") > mean(rows, "up_both"),
                central=False,
            ),
            Claim(
                "a beta above 1 helps (the paper finds so at large scale)",
                f"both: beta 1 {spread(rows, 'up_both')}, beta 1.5 {spread(rows, 'amplified_both')}",
                mean(rows, "amplified_both") > mean(rows, "up_both"),
                central=False,
            ),
        ]
