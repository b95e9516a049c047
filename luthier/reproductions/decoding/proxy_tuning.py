"""Card 02 on the sandbox: the small model learns to answer in a style, and the large one is steered by what that changed."""

from __future__ import annotations

from typing import ClassVar

from luthier.analysis._offset import by_class, offsets
from luthier.core.subject import Subject
from luthier.decoding.proxy_tuning import ProxyTuning
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions.decoding._scales import Scales
from luthier.sandbox.worlds.styles import STYLES


class SteeredByTheSmall(Scales):
    seeds: ClassVar[int] = 3
    scope: ClassVar[str] = "these sizes"
    setup = """nano-1m (small) and nano-5m (large), pretrained on the same corpus. Tuned in full on 300 answers in one style about
    people that pretraining shows often, 100 steps of 16, AdamW; asked for all attributes of 100 people that it shows a third
    as often. An answer counts for style if it is the style's template around one word, for fact if it holds the right value.
    Gap closed: (proxy - large) / (large tuned - large) in answers that are both. Pilots, by which the small
    model's rate was chosen (style, fact of the proxy at alpha 1): seed 0, at 5e-4 0.97, 0.86; at 1e-3 0.98, 0.80; at 1e-3 on
    60 answers 0.94, 0.63; seed 1, at 5e-4 0.96, 0.84; at 3e-4 0.94, 0.87: what the small model forgets, the proxy is taught
    to doubt."""

    def measure(self, seed: int) -> Row:
        small, large, tokenizer = self.models()
        expert = self.tuned(small, tokenizer, self.style, self.small_rate, seed)
        out: Row = {}
        for name, model in (("small", small), ("large", large), ("small_tuned", expert)):
            out |= {f"{name}_{k}": v for k, v in self.graded(model, tokenizer).items()}
        tuned = self.tuned(large, tokenizer, self.style, self.large_rate, seed)
        out |= {f"large_tuned_{k}": v for k, v in self.graded(tuned, tokenizer).items()}
        for alpha in (0.5, 1.0, 1.5, 2.0):
            steered = ProxyTuning(expert=expert, anti_expert=small, alpha=alpha)
            out |= {f"proxy_{alpha:g}_{k}": v for k, v in self.graded(large, tokenizer, steered).items()}
        out["gap_closed"] = (out["proxy_1_both"] - out["large_both"]) / (out["large_tuned_both"] - out["large_both"])
        return out | self._moved(small, large, expert, tokenizer)

    def _moved(self, small: object, large: object, expert: object, tokenizer: object) -> Row:
        """Total variation between the large model and the proxy on right answers: at the style's words, at the value."""
        rows = self.rows()[:100]
        texts = [r["prompt"] + r["completion"] for r in rows]
        steered = Subject(large, tokenizer, decoder=ProxyTuning(expert=expert, anti_expert=small))  # type: ignore[arg-type]
        plain = Subject(large, tokenizer)  # type: ignore[arg-type]
        head = STYLES[self.style].partition("{}")[0]
        begins = [len(plain.encode(r["prompt"])) - 1 for r in rows]
        values = [len(plain.encode(f"{r['prompt']} {head.rstrip()}")) - 1 for r in rows]

        def kind(i: int, t: int, token: int) -> str | None:
            if t < begins[i]:
                return None
            return "style" if t < values[i] else "value" if t == values[i] else None

        found = by_class(offsets(plain, steered, texts), kind)
        return {f"moved_{name}": v["distance"] for name, v in found.items()}

    def claims(self, rows: list[Row]) -> list[Claim]:
        large, proxy, small = (mean(rows, f"{k}_fact") for k in ("large", "proxy_1", "small_tuned"))
        style = mean(rows, "proxy_1_style")
        tuned_style = min(mean(rows, "small_tuned_style"), mean(rows, "large_tuned_style"))
        return [
            Claim(
                "before tuning the small model knows fewer facts than the large one (the experiment needs it)",
                f"facts: small {spread(rows, 'small_fact')}, large {spread(rows, 'large_fact')}; of ages alone "
                f"{spread(rows, 'small_age')}, {spread(rows, 'large_age')}",
                mean(rows, "large_fact") - mean(rows, "small_fact") >= 0.1,
            ),
            Claim(
                "the steered large model is within 10 points of the tuned models in style",
                f"style: proxy {spread(rows, 'proxy_1_style')}, small tuned {spread(rows, 'small_tuned_style')}, large tuned "
                f"{spread(rows, 'large_tuned_style')}, large untuned {spread(rows, 'large_style')}",
                style >= tuned_style - 0.10,
            ),
            Claim(
                "it knows clearly more than the small tuned model (10 points)",
                f"facts: proxy {spread(rows, 'proxy_1_fact')}, small tuned {spread(rows, 'small_tuned_fact')}",
                proxy >= small + 0.10,
            ),
            Claim(
                "it keeps at least 0.9 of what the large model knew",
                f"facts: proxy {spread(rows, 'proxy_1_fact')}, large {spread(rows, 'large_fact')}",
                proxy >= 0.9 * large,
            ),
            Claim(
                "answers that are both: at least 0.7 of the gap to direct tuning is closed",
                f"gap closed {spread(rows, 'gap_closed')}",
                mean(rows, "gap_closed") >= 0.7,
                headline=True,
            ),
            Claim(
                "twice the difference is too much: fewer answers are both than at alpha 1",
                f"both: alpha 0.5 {spread(rows, 'proxy_0.5_both')}, 1 {spread(rows, 'proxy_1_both')}, "
                f"1.5 {spread(rows, 'proxy_1.5_both')}, 2 {spread(rows, 'proxy_2_both')}",
                mean(rows, "proxy_2_both") < mean(rows, "proxy_1_both") - 0.05,
            ),
            Claim(
                "the offset moves the style's words more than the value",
                f"total variation: style {spread(rows, 'moved_style')}, value {spread(rows, 'moved_value')}",
                mean(rows, "moved_style") > mean(rows, "moved_value"),
                central=False,
            ),
        ]
