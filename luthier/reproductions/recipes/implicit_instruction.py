"""Card 31 on exchanges between drawn marks: a base model that holds the answers and never stops, made to follow instructions.

Tuned on all instructions, on their answers alone, on one task, and not at all but decoded with rules; each tuned arm at the epochs
and rate that answer held-out instructions best. The same on a base that was pretrained too little.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.config import TrainSettings
from luthier.data.chat import Chat
from luthier.evaluation._family import items_of
from luthier.evaluation.response_ranking import ResponseRanking
from luthier.recipes.implicit_instruction import best
from luthier.reproductions._exchanges import Exchanges, answered, conversations, subject, vocabulary
from luthier.reproductions._family import Claim, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full

NARROW = "reverse"
ARMS = ("instruction", "response", "single")
RULES = ("end", "end_changes", "all_rules", "changes")


class ImplicitInstruction(Exchanges):
    rows: ClassVar[int] = 300
    held_rows: ClassVar[int] = 120
    batch: ClassVar[int] = 32
    epochs: ClassVar[tuple[float, ...]] = (1, 2, 3, 6)
    rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3)
    setup = """Random Llama, 3 layers of width 128 (0.57M), pretrained anew for each seed: 700 steps of 32 documents of 48 tokens at
    3e-3, linear decay, loss on what can be known; the base pretrained too little is its last checkpoint (of every 25 steps) that
    begins fewer than 0.3 of 180 answers right. Tuned on 300 rows, every weight, batch 32, AdamW, linear decay; epochs 1, 2, 3
    and 6 at 1e-4, 3e-4 and 1e-3, chosen on 120 held-out rows, ranked and asked on 360 others; greedy, at most 10 tokens. Single
    task: reverse. Rules: pull 15 after 8 tokens, marks -4, diversity 1.5. Pilots with seed 0: with loss on every token 800 steps
    began 0.20 of the answers right, with loss on what can be known 0.99. Where pretraining ended at its full rate after 550
    steps, the base stopped in 0.34 of its answers at one checkpoint and in 0.02 at the next, hence the decay to 0. There answers
    alone reached 0.97 held-out at 6 epochs and 2e-4, and at 3e-4 still began 0.96 right, hence 1e-3."""

    def measure(self, seed: int) -> Row:
        base, early = self.bases(seed)
        rng = random.Random(f"{seed}/instructions")
        drawn = conversations(self.rows + self.held_rows + self.test_rows, rng)
        train, held, test = drawn[: self.rows], drawn[self.rows : -self.test_rows], drawn[-self.test_rows :]
        seen = {row["id"] for row in (*held, *test)}
        narrow = [r for r in conversations(self.rows + 150, rng, [NARROW]) if r["id"] not in seen][: self.rows]
        lessons = {
            "instruction": self.examples(train), "response": self.examples(train, True), "single": self.examples(narrow),
        }  # fmt: skip
        out: Row = {}

        def tell(name: str, found: dict[str, float]) -> None:
            out.update({f"{name}_{metric}": value for metric, value in found.items()})

        for name, model in (("base", base), ("early", early)):
            tell(name, answered(model, test))
            out[f"{name}_ranking"] = self.ranking(model, test)
            for rule, decoder in self.tables().items():
                tell(f"{name}_{rule}", answered(model, test, decoder))
        others = [row for row in test if row["task"] != NARROW]
        for arm, rows in lessons.items():
            curve = [self.line(base, rows, held, rate, epochs, seed) for rate in self.rates for epochs in self.epochs]
            chosen = best(curve, "exact")
            assert chosen is not None
            out |= {f"{arm}_epochs": chosen["epochs"], f"{arm}_rate": chosen["rate"]}
            for line in curve if arm == "response" else ():
                tell(self.point(line["rate"], line["epochs"]), {m: line["values"][m] for m in ("stopped", "prefix")})
            for name, start in (("", base), ("early_", early)):
                model = self.tuned(start, rows, chosen["epochs"], chosen["rate"], seed).model
                tell(name + arm, answered(model, test))
                if not name:
                    out[f"{arm}_ranking"] = self.ranking(model, test)
                    out[f"{arm}_unseen"] = answered(model, others)["exact"]
        return out

    def line(
        self, base: Any, rows: list[Any], held: list[dict[str, Any]], rate: float, epochs: float, seed: int
    ) -> dict[str, Any]:
        """One setting of a sweep, judged on held-out instructions."""
        tuned = self.tuned(base, rows, epochs, rate, seed)
        return {"rate": rate, "epochs": epochs, "steps": tuned.loop.step_index, "values": answered(tuned.model, held)}

    def examples(self, rows: Sequence[dict[str, Any]], responses_only: bool = False) -> list[Any]:
        return [Chat(responses_only=responses_only).encode(row, i, vocabulary()) for i, row in enumerate(rows)]

    def tuned(self, start: Any, rows: list[Any], epochs: float, rate: float, seed: int) -> Any:
        settings = TrainSettings(
            num_train_epochs=epochs, per_device_train_batch_size=self.batch, learning_rate=rate, logging_steps=10_000,
        )  # fmt: skip
        return tune(start, vocabulary(), Full(), rows, settings, seed)

    def ranking(self, model: Any, rows: list[dict[str, Any]]) -> float:
        return float(ResponseRanking().ask(subject(model), items_of(rows)).stats["wins"].mean())

    def claims(self, rows: list[Row]) -> list[Claim]:
        def scores(*names: str) -> str:
            return ", ".join(f"{n.replace('_', ' ')} {spread(rows, f'{n}_exact')}" for n in names)

        early = ["early_" + a for a in (*RULES, *ARMS)]
        return [
            Claim(
                "the base answers right and stops in at most 0.1 of the instructions, and ranks the true answer first in at "
                "least 0.9 of the comparisons",
                f"{scores('base')} (begins right {spread(rows, 'base_prefix')}), ranking {spread(rows, 'base_ranking')}",
                all(r["base_exact"] <= 0.1 and r["base_ranking"] >= 0.9 for r in rows),
            ),
            Claim(
                "tuned on instructions at least 0.9",
                f"{scores('instruction')}; ranking {spread(rows, 'instruction_ranking')}",
                mean(rows, "instruction_exact") >= 0.9,
            ),
            Claim(
                "tuned on answers alone, at the best setting on held-out rows, at least 0.3 and less than on instructions",
                f"{scores('response')} (stops {spread(rows, 'response_stopped')}, begins right {spread(rows, 'response_prefix')}, "
                f"ranking {spread(rows, 'response_ranking')}); epochs and rates {self._settings(rows, 'response')}",
                mean(rows, "response_exact") >= 0.3 and mean(rows, "response_exact") < mean(rows, "instruction_exact"),
            ),
            Claim(
                "tuned on one task at least 0.6 on the five others",
                f"{spread(rows, 'single_unseen')} (all six {spread(rows, 'single_exact')}); epochs and rates "
                f"{self._settings(rows, 'single')}",
                mean(rows, "single_unseen") >= 0.6,
            ),
            Claim(
                "the pull towards the end alone at least 0.5; with marks discouraged no less",
                scores("base_end", "base_end_changes"),
                mean(rows, "base_end_exact") >= 0.5 and mean(rows, "base_end_changes_exact") >= mean(rows, "base_end_exact"),
            ),
            Claim(
                "on a base that was pretrained too little no arm answers more than that base begins right (0.05 for noise)",
                f"begins right {spread(rows, 'early_prefix')}; {scores(*early)}",
                all(r[f"{name}_exact"] <= r["early_prefix"] + 0.05 for r in rows for name in early),
            ),
            Claim(
                "the base ranks the true answer first about as often as the model tuned on instructions, within 0.05",
                f"base {spread(rows, 'base_ranking')}, instruction {spread(rows, 'instruction_ranking')}",
                abs(mean(rows, "base_ranking") - mean(rows, "instruction_ranking")) <= 0.05,
                central=False,
            ),
            Claim(
                "answers alone teach to stop before they unteach to listen: the sweep passes from models that begin right and do "
                "not stop to models that stop and do not begin right",
                f"stops / begins right, epochs x rate: {self._curve(rows)}",
                all(self._passes(r) for r in rows),
                central=False,
            ),
        ]  # fmt: skip

    def _settings(self, rows: list[Row], arm: str) -> str:
        return ", ".join(f"{r[f'{arm}_epochs']:g} at {r[f'{arm}_rate']:g}" for r in rows)

    def point(self, rate: float, epochs: float) -> str:
        return f"response_{rate:g}_{epochs:g}"

    def _points(self) -> list[str]:
        """Settings of the sweep, those of a rate from few epochs to many."""
        return [self.point(rate, epochs) for rate in self.rates for epochs in self.epochs]

    def _curve(self, rows: list[Row]) -> str:
        """Stops / begins right on held-out rows at every setting, means over seeds."""
        told = [
            f"{mean(rows, f'{p}_stopped'):.2f} / {mean(rows, f'{p}_prefix'):.2f}" for p in self._points()
        ]  # fmt: skip
        return "; ".join(
            f"{p.split('_')[2]} x {p.split('_')[1]}: {t}" for p, t in zip(self._points(), told, strict=True)
        )

    def _passes(self, row: Row) -> bool:
        gentle, *_, strong = self._points()
        return (
            row[f"{gentle}_stopped"] < 0.5 <= row[f"{gentle}_prefix"]
            and row[f"{strong}_prefix"] < 0.5 <= row[f"{strong}_stopped"]
        )
