"""Card 65 on the sandbox: a new sequence task within half, or 0.7, of the operations of full fine-tuning.

GreenTrainer against full fine-tuning, LoRA and the last k layers at the largest k whose measured operations stay within
the same budget; the same number of steps for all. Operations are those that the loop counted; what the choices cost is told
apart: two batches three times over, three times a run, is a fixed price that a run of 192 steps still notices.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from luthier import sandbox
from luthier.core.anatomy import anatomy
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop
from luthier.core.method import Tuner
from luthier.objectives.sft import SFT
from luthier.reproductions._family import Claim, Experiment, Row, mean, spread
from luthier.reproductions._sequence import lessons, token_accuracy, tune, unseen
from luthier.tuners.freeze import Freeze
from luthier.tuners.full import Full
from luthier.tuners.green import Green
from luthier.tuners.lora import LoRA


class GreenTrainer(Experiment):
    scope: ClassVar[str] = "this size, rate and number of steps"
    seeds: ClassVar[int] = 3
    model: ClassVar[str] = "nano-1m"
    task: ClassVar[str] = "mirror"
    rows: ClassVar[int] = 1000
    steps: ClassVar[int] = 192
    batch: ClassVar[int] = 32
    learning_rate: ClassVar[float] = 1e-3
    test_rows: ClassVar[int] = 200
    setup = """nano-1m tuned on a sequence task that pretraining never showed: 1000 rows, 192 steps of 32 rows (six epochs), AdamW
    at 1e-3 with linear decay, LoRA (rank 8, all matrices) at 3e-3. GreenTrainer chooses at the first, third and fifth
    epoch. Shares are of full fine-tuning's counted operations over the whole run. No setting was searched."""

    def measure(self, seed: int) -> Row:
        base, tokenizer = sandbox.load(self.model)
        train, asked = lessons(tokenizer, self.task, seed, self.rows), unseen(self.task, self.test_rows)
        out: Row = {}

        def run(name: str, tuner: Tuner, learning_rate: float = self.learning_rate) -> dict[str, Any]:
            settings = TrainSettings(
                max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=learning_rate,
                cache_frozen_layers=False,  # shares are of arithmetic that is really asked for
            )  # fmt: skip
            done = tune(base, tokenizer, tuner, train, settings, seed)
            cost = done.cost
            out[f"{name}_flops"] = cost["train_flops"] - cost["choice_flops"]
            out[f"{name}_choice_flops"] = cost["choice_flops"]
            out[f"{name}_accuracy"] = token_accuracy(done.model, tokenizer, asked)
            told = [row["selection"] for row in done.loop.history if "selection" in row]
            for part in told[:1]:
                out[f"{name}_announced"] = part["share_of_full"]
                out[f"{name}_first_tensors"] = len(part["chosen"])
            return cost

        full = run("full", Full())
        run("lora", LoRA(targets=("all",)), 3e-3)
        for share in (0.5, 0.7):
            run(f"green{share:g}", Green(budget=share))
            run(f"last{share:g}", self._last_layers(base, train, tokenizer, share))
        run("green1", Green(budget=1.0))
        for name in ("lora", "green0.5", "last0.5", "green0.7", "last0.7", "green1"):
            out[f"{name}_share"] = out[f"{name}_flops"] / full["train_flops"]
            out[f"{name}_share_with_choices"] = out[f"{name}_share"] + out[f"{name}_choice_flops"] / full["train_flops"]
        return out

    def _last_layers(self, base: Any, train: Any, tokenizer: Any, share: float) -> Freeze:
        """The most upper layers, head and final norm with them, whose step costs at most `share` of a full one."""
        settings = TrainSettings(max_steps=1, per_device_train_batch_size=self.batch)

        def cost(tuner: Tuner) -> float:
            loop = Loop(
                tuner.wrap(copy.deepcopy(base), "causal_lm"), tuner, SFT(), train, settings, tokenizer.pad_token_id
            )
            loop._prepare()
            return loop.cost["forward_flops"] + loop.cost["backward_flops"]

        whole, layers = cost(Full()), len(anatomy(base).layers)
        fitting = (Freeze(lowest=k) for k in range(1, layers))
        return next((tuner for tuner in fitting if cost(tuner) <= share * whole), Freeze(lowest=layers))

    def claims(self, rows: list[Row]) -> list[Claim]:
        over = max(r[f"green{s}_announced"] - s for r in rows for s in (0.5, 0.7))
        gap = max(abs(r[f"green{s}_share"] - s) for r in rows for s in (0.5, 0.7))
        half, last = mean(rows, "green0.5_accuracy"), mean(rows, "last0.5_accuracy")
        more, most = mean(rows, "green0.7_accuracy"), mean(rows, "last0.7_accuracy")
        whole, full = mean(rows, "green1_accuracy"), mean(rows, "full_accuracy")
        return [
            Claim(
                "no choice costs more than its budget",
                f"largest announced share above the budget {over:+.4f}",
                over <= 0,
            ),
            Claim(
                "operations counted over all steps are within 3 points of the budget (the choices themselves apart)",
                f"shares: budget 0.5 {spread(rows, 'green0.5_share')}, budget 0.7 {spread(rows, 'green0.7_share')}; with "
                f"choices {spread(rows, 'green0.5_share_with_choices')}, {spread(rows, 'green0.7_share_with_choices')}",
                gap <= 0.03,
            ),
            Claim(
                "token accuracy is at least that of the last layers at the same budget",
                f"0.5: {spread(rows, 'green0.5_accuracy')} against {spread(rows, 'last0.5_accuracy')} "
                f"(share {spread(rows, 'last0.5_share')}); 0.7: {spread(rows, 'green0.7_accuracy')} against "
                f"{spread(rows, 'last0.7_accuracy')} (share {spread(rows, 'last0.7_share')})",
                half >= last and more >= most,
            ),
            Claim(
                "budget 1 matches full fine-tuning within 2 points",
                f"budget 1 {spread(rows, 'green1_accuracy')}, full {spread(rows, 'full_accuracy')}",
                abs(whole - full) <= 0.02,
            ),
            Claim(
                "LoRA on all layers saves less than half of the backward pass: it still passes every gradient through",
                f"share of full fine-tuning {spread(rows, 'lora_share')}",
                mean(rows, "lora_share") > 0.6,
                central=False,
            ),
        ]
