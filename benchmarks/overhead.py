"""What the training loop costs beside a bare PyTorch loop over the same mathematics.

    python -m benchmarks.overhead --folder DIR [--steps 24] [--threads 1] [--small]

The bare loop has its batches ready before it starts and does nothing but forward, backward, clipping, AdamW (fused)
and zeroing gradients. luthier's loop plans and collates its batches, draws random states, checks that loss and
gradients are finite, counts tokens and writes a log line at every step. Both take each step in one process, so that
whatever else the machine does falls on both. Whoever is first to take a batch longer than all before pays for the memory
that the process then asks for, up to 60 ms of a step: so the longest batch is run once before the clock starts, and
the two take turns at being first. `--small` is a model of a million parameters: the hard case.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes


class Bare:
    """The plain loop, one step at a time."""

    def __init__(self, model: Any, batches: list[Any]):
        import torch

        from luthier.core.logprobs import Scorer

        self.model, self.batches, self.losses = model.train(), batches, []
        self.scorer = Scorer(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=contender.LEARNING_RATE, weight_decay=0.0, fused=True)
        self.norm = torch.nn.utils.clip_grad_norm_

    def warm(self) -> None:
        """Forward and backward of the longest batch, without a step."""
        self._backward(max(self.batches, key=lambda b: b.ids.numel()))
        self.optimizer.zero_grad()

    def _backward(self, batch: Any) -> Any:
        logp = self.scorer.token_logp(batch)
        loss = -logp.sum() / len(logp)
        loss.backward()
        return loss.detach()

    def step(self, index: int) -> None:
        loss = self._backward(self.batches[index])
        self.norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())


def main() -> None:
    told = contender.asked()
    from luthier.core.loop import Loop, LoopCallback
    from luthier.objectives.sft import SFT
    from luthier.tuners.full import Full

    examples, tuner = shapes.text_examples(shapes.rows(told.steps * told.batch, small=told.small)), Full()
    settings = contender.train_settings(told)
    settings.lr_scheduler_type = "constant"
    loop = Loop(tuner.wrap(shapes.model(told.small), "causal_lm"), tuner, SFT(), examples, settings, shapes.PAD)
    batches = [loop.collate([examples[i] for i in loop.plan.step(s)]) for s in range(told.steps)]
    bare = Bare(shapes.model(told.small), batches)
    bare.scorer._ends_at_head(bare.scorer.head)
    clock = time.process_time if told.threads == 1 else time.perf_counter
    ours: list[float] = []
    plain: list[float] = []

    class Turns(LoopCallback):
        """The bare loop takes the same steps: after the loop's at even ones, before it at odd ones."""

        def start(self, loop: Loop) -> None:
            bare.warm()
            self.left = clock()

        def step(self, loop: Loop) -> None:
            ours.append(clock() - self.left)
            at = loop.step_index - 1
            for index in (at, at + 1) if at % 2 == 0 else ():
                if index < told.steps:
                    entered = clock()
                    bare.step(index)
                    plain.append(clock() - entered)
            self.left = clock()

    loop.callbacks.append(Turns())
    fitted = loop.fit()
    losses = [row["loss"] for row in fitted.log if "loss" in row]
    contender.say(
        {
            "contender": "overhead",
            "bare_seconds": sum(plain[1:]),
            "loop_seconds": sum(ours[1:]),
            "overhead": sum(ours[1:]) / sum(plain[1:]) - 1,
            "bare_ms": 1000 * sum(plain[1:]) / len(plain[1:]),
            "loss_difference": max(abs(a - b) for a, b in zip(losses, bare.losses, strict=True)),
        }
    )


if __name__ == "__main__":
    main()
