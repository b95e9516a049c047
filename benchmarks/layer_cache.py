"""What a step costs when activations below the lowest layer that moves are kept: the same tuning with and without.

    python -m benchmarks.layer_cache --folder DIR [--threads 1] [--small]

A Llama of twelve layers with untied head, rows with the lengths of GSM8K; the last block (with final norm and head) or
the head alone moves. The same loop runs twice in one process, `cache_frozen_layers: false` and `true`, over four epochs
of the same batches; steps are timed from the second epoch on, so that filling the cache is told apart
(`first_epoch_ratio`). `ratio` is seconds without over seconds with: above 1 it pays. `--small` is a model of a
million parameters.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks import _contender as contender
from benchmarks import _shapes as shapes

EPOCHS, VOCABULARY = 4, 2_000


def model(small: bool) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 64 if small else 256
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=12,
            num_attention_heads=4, max_position_embeddings=1024, pad_token_id=shapes.PAD, bos_token_id=None,
        )
    )  # fmt: skip


def timed(told: contender.Asked, what: dict[str, Any], keep: bool) -> dict[str, Any]:
    """Seconds a step in the first and in later epochs, and the losses."""
    from luthier.core.loop import Loop, LoopCallback
    from luthier.objectives.sft import SFT
    from luthier.tuners.freeze import Freeze

    examples = shapes.text_examples(shapes.rows(told.steps * told.batch, small=True))
    for example in examples:
        example.ids = [min(i, i % VOCABULARY + shapes.FIRST) % VOCABULARY for i in example.ids]
    settings = contender.train_settings(told)
    settings.num_train_epochs, settings.max_steps, settings.cache_frozen_layers = EPOCHS, -1, keep
    clock = time.process_time if told.threads == 1 else time.perf_counter
    seconds: list[float] = []

    class Clock(LoopCallback):
        def start(self, loop: Loop) -> None:
            self.left = clock()

        def step(self, loop: Loop) -> None:
            seconds.append(clock() - self.left)
            self.left = clock()

    tuner = Freeze(**what)
    loop = Loop(tuner.wrap(model(told.small), "causal_lm"), tuner, SFT(), examples, settings, shapes.PAD)
    loop.callbacks.append(Clock())
    fitted = loop.fit()
    n = loop.plan.steps_per_epoch
    return {
        "first": statistics.fmean(seconds[:n]),
        "later": statistics.median(seconds[n:]),
        "losses": [row["loss"] for row in fitted.log if "loss" in row],
        "flops": fitted.cost["train_flops"],
    }


def main() -> None:
    told = contender.asked()
    rows = []
    for name, what in (("last block", {"lowest": 11}), ("head", {"train": ("lm_head",)})):
        without, kept = (timed(told, what, keep) for keep in (False, True))
        gaps = [abs(a - b) / abs(a) for a, b in zip(without["losses"], kept["losses"], strict=True)]
        rows.append(
            {
                "moves": name,
                "ratio": without["later"] / kept["later"],
                "first_epoch_ratio": without["first"] / kept["first"],
                "without_ms": 1000 * without["later"],
                "with_ms": 1000 * kept["later"],
                "flops_ratio": without["flops"] / kept["flops"],
                "loss_difference": max(gaps),
            }
        )
    contender.say({"contender": "layer_cache", "rows": rows})


if __name__ == "__main__":
    main()
