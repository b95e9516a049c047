"""What a training step costs with each module, against peft's LoRA of as many parameters, and with parts against the whole.

    python -m benchmarks.modules --folder DIR [--steps 24] [--batch 4] [--threads 1] [--small]

modules   each tuner's size is the one whose number of trained scalars is nearest to LoRA's (rank 8 on queries and values)
parts     half fine-tuning and GreenTrainer (half of the operations of full) against full fine-tuning

All take the same batches in turns, in one process and with luthier's own loop; who is first changes from step to step. A
ratio is that of one step; told are the median over steps, after the first few, and the quartiles. `choice_steps` is what
choosing what moves costs once, in steps of full fine-tuning; it is no part of the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes

WARM = 4
PROMPT = {"tokens": 10, "max_length": 400}
SIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "dylora": ("r", {}),
    "bottleneck": ("size", {}),
    "pfeiffer": ("size", {}),
    "houlsby": ("size", {}),
    "parallel": ("size", {}),
    "compacter": ("rank", {"size": 32}),
    "iaa": ("aside_size", {"inside_size": 2}),
    "prefix": ("length", {"mlp": 0}),
    "mam": ("size", {"length": 8, "mlp": 0}),
    "dept": ("r", PROMPT),
    "ept": ("r", PROMPT),
}
"""Tuner -> the field that sets its size, and the fields that are given."""
PARTS: dict[str, dict[str, Any]] = {"hft": {}, "green": {"budget": 0.5}}


class Stepped:
    """A loop that is stepped from outside, and its clock."""

    def __init__(self, tuner: Any, told: contender.Asked, clock: Callable[[], float]):
        from luthier.core.loop import Loop
        from luthier.objectives.sft import SFT

        examples = shapes.text_examples(shapes.rows(told.steps * told.batch, small=told.small))
        model, self.clock = tuner.wrap(shapes.model(told.small), "causal_lm"), clock
        self.loop = Loop(model, tuner, SFT(), examples, contender.train_settings(told), shapes.PAD)
        self.seconds: list[float] = []
        begun = clock()
        self.loop._prepare()
        self.prepared = clock() - begun
        self.loop.wrapped.train()

    def step(self) -> None:
        begun = self.clock()
        self.loop._epoch_begins()
        self.loop._step()
        self.loop.step_index += 1
        self.seconds.append(self.clock() - begun)


def of_size(name: str, field: str, given: dict[str, Any], scalars: int, model: Any) -> Any:
    """The tuner whose number of trained scalars is nearest to `scalars`."""
    from luthier.core import catalog

    made = [catalog.load("tuners", name)(**given, **{field: n}) for n in range(1, 129)]
    return min(made, key=lambda tuner: abs(tuner.parameter_count(model) - scalars))


def in_turns(tuners: dict[str, Any], told: contender.Asked) -> dict[str, Stepped]:
    """Every tuner takes every step, each step beginning with another one."""
    clock = time.process_time if told.threads == 1 else time.perf_counter
    runs = {name: Stepped(tuner, told, clock) for name, tuner in tuners.items()}
    order = list(runs)
    for at in range(told.steps):
        for name in order[at % len(order) :] + order[: at % len(order)]:
            runs[name].step()
    return runs


def against(runs: dict[str, Stepped], base: str) -> list[dict[str, Any]]:
    """Each run's step time over the base's, step by step."""
    rows = []
    for name, run in runs.items():
        each = [a / b for a, b in zip(run.seconds[WARM:], runs[base].seconds[WARM:], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        cost, base_cost = run.loop.cost, runs[base].loop.cost
        flops = [c["forward_flops"] + c["backward_flops"] for c in (cost, base_cost)]
        rows.append(
            {
                "tuner": name,
                "trained": cost["trainable_parameters"],
                "ratio": [middle, low, high],
                "step_ms": 1000 * statistics.median(run.seconds[WARM:]),
                "flops_ratio": flops[0] / flops[1],
            }
        )
    return rows


def main() -> None:
    told = contender.asked()
    from luthier.core import catalog

    def tuner(name: str, **options: Any) -> Any:
        return catalog.load("tuners", name)(**options)

    model = shapes.model(told.small)
    lora = tuner("lora", r=8)
    scalars = lora.parameter_count(model)
    sized = {name: of_size(name, field, given, scalars, model) for name, (field, given) in SIZED.items()}
    modules = against(in_turns({"lora": lora, **sized}, told), "lora")
    runs = in_turns({"full": tuner("full"), **{name: tuner(name, **given) for name, given in PARTS.items()}}, told)
    parts = against(runs, "full")
    for row in parts:
        extra = runs[row["tuner"]].prepared - runs["full"].prepared
        row["choice_steps"] = 1000 * extra / parts[0]["step_ms"] if runs[row["tuner"]].loop.tuner.chooses else 0.0
    contender.say({"contender": "modules", "steps": told.steps - WARM, "modules": modules, "parts": parts})


if __name__ == "__main__":
    main()
