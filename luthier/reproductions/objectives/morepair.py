"""Card 50 on the sandbox: small programs with one bug; a repair counts if the program passes all its tests.

Two objectives (the repair, and the repair with its reason) against fine-tuning on repairs alone at equal steps and at equal
answers seen, and against one sequence with the reason before the repair. Test programs are compositions that no training
row has; two pairs of bug and line are left out of training altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.config import TrainSettings
from luthier.core.subject import Subject
from luthier.data.chat import Chat
from luthier.data.repairs import Repairs as RepairRows
from luthier.decoding.nucleus import Nucleus
from luthier.evaluation.code_tests import pass_at_k
from luthier.objectives.morepair import MorePair
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import tune
from luthier.tuners.full import Full

HELD_OUT = (("operator", "line 2"), ("constant", "line 3"))
"""Bugs, and where they are, that training never shows."""


class Repairs(Experiment):
    scope: ClassVar[str] = "this size"
    model: ClassVar[str] = "nano-1m"
    train_rows: ClassVar[int] = 1500
    steps: ClassVar[int] = 200
    batch: ClassVar[int] = 16
    learning_rate: ClassVar[float] = 1e-3
    test_rows: ClassVar[int] = 150
    samples: ClassVar[int] = 5
    setup = """nano-1m, which writes such programs from their description and never saw a buggy one, tuned with every weight
    moving on up to 1,500 repairs less those of two pairs of bug and line, 200 steps of 16 rows, AdamW at 1e-3 with linear
    decay; then 5 samples at temperature 1 for each of 150 buggy programs, run on 12 arguments. The prompt holds description,
    buggy program and signature."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        rows = sandbox.rows("programs", task="repair", n=self.train_rows, seed=seed)
        rows = [r for r in rows if not held_out(r)]
        test = sandbox.rows("programs", task="repair", split="test", n=self.test_rows, seed=12)
        plain = [{"prompt": r["prompt"], "completion": r["completion"]} for r in rows]
        reasons = [f"\n # because {r['reason']}{r['completion']}" for r in rows]
        pairs = [
            {
                "prompt": r["prompt"],
                "repair": r["completion"],
                "guided_repair": f"{r['completion']}\n# because {r['reason']}",
            }
            for r in rows
        ]
        arms: dict[str, tuple[Any, list[dict[str, Any]], Any, int]] = {
            "repairs": (Chat(), plain, SFT(), self.steps),
            "repairs_twice": (Chat(), plain, SFT(), 2 * self.steps),
            "reason_first": (
                Chat(),
                [{**p, "completion": c} for p, c in zip(plain, reasons, strict=True)],
                SFT(),
                self.steps,
            ),
            "both": (RepairRows(), pairs, MorePair(), self.steps),
        }
        out: Row = self.score("base", base, tokenizer, test)
        for name, (kind, told, objective, steps) in arms.items():
            train = [kind.encode(r, i, tokenizer) for i, r in enumerate(told)]
            settings = TrainSettings(
                max_steps=steps, per_device_train_batch_size=self.batch, learning_rate=self.learning_rate
            )
            model = tune(base, tokenizer, Full(), train, settings, seed, objective=objective).model
            out |= self.score(name, model, tokenizer, test)
        return out

    def score(self, name: str, model: Any, tokenizer: Any, test: Sequence[dict[str, Any]]) -> Row:
        subject = Subject(model, tokenizer, decoder=Nucleus(top_p=1.0))
        prompts = [r["prompt"] for r in test for _ in range(self.samples)]
        said = subject.generate(prompts, max_new_tokens=80, stop=["\n\n"])
        judge, n = sandbox.world("programs").score, self.samples
        right = [int(sum(judge(r, s) for s in said[i * n : (i + 1) * n])) for i, r in enumerate(test)]
        unseen = [c for r, c in zip(test, right, strict=True) if held_out(r)]
        return {
            f"{name}_top1": sum(pass_at_k(n, c, 1) for c in right) / len(right),
            f"{name}_top5": sum(pass_at_k(n, c, 5) for c in right) / len(right),
            f"{name}_unseen_bugs_top5": sum(pass_at_k(n, c, 5) for c in unseen) / len(unseen),
        }

    def claims(self, rows: list[Row]) -> list[Claim]:
        def top(name: str, k: int = 5) -> float:
            return mean(rows, f"{name}_top{k}")

        def told(key: str, *names: str) -> str:
            return ", ".join(f"{n.replace('_', ' ')} {spread(rows, f'{n}_{key}')}" for n in names)

        return [
            Claim(
                "with reasons, top-5 is at most 2 points below that of repairs alone at equal steps",
                f"top-5: {told('top5', 'both', 'repairs')}; top-1: {told('top1', 'both', 'repairs')}",
                top("both") >= top("repairs") - 0.02,
            ),
            Claim(
                "both are at least 20 points above the untuned model (top-5)",
                f"top-5: {told('top5', 'both', 'repairs', 'base')}",
                min(top("both"), top("repairs")) >= top("base") + 0.20,
            ),
            Claim(
                "with reasons, more is repaired than without (top-5, as the paper finds)",
                f"top-5: {told('top5', 'both', 'repairs')}",
                top("both") > top("repairs"),
                central=False,
            ),
            Claim(
                "the gain stays where repairs alone are seen as often as both answers together",
                f"top-5: {told('top5', 'both', 'repairs_twice')}; top-1: {told('top1', 'both', 'repairs_twice')}",
                top("both") > top("repairs_twice"),
                central=False,
            ),
            Claim(
                "two objectives are better than one sequence with the reason first",
                f"top-5: {told('top5', 'both', 'reason_first')}; top-1: {told('top1', 'both', 'reason_first')}",
                top("both") > top("reason_first"),
                central=False,
            ),
            Claim(
                "the gain is larger for bugs that training never shows",
                f"top-5 on those: {told('unseen_bugs_top5', 'both', 'repairs')}",
                mean(rows, "both_unseen_bugs_top5") - mean(rows, "repairs_unseen_bugs_top5")
                > top("both") - top("repairs"),
                central=False,
            ),
        ]


def held_out(row: dict[str, Any]) -> bool:
    return any(row["bug"] == bug and row["reason"].startswith(line) for bug, line in HELD_OUT)
