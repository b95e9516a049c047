"""Whole prompts, read anew at every token in float64 and without a cache, with and without the penalty on what was said."""

from __future__ import annotations

from dataclasses import replace

import torch

from luthier.checks._compare import require
from luthier.checks._models import PAD
from luthier.checks.decoding import PROMPTS, worlds
from luthier.checks.oracles._decoding import method
from luthier.core.method import Limits

CONSTANT = (5, 40, 11, 62, 9, 30)


@torch.no_grad()
def oracle_loop() -> None:
    for world in worlds(method(__name__)):
        model = world.model()
        prompts = [[*CONSTANT, *p] for p in PROMPTS]
        for penalty in (1.0, 1.5):
            decoder = replace(method(__name__), constant=CONSTANT, repetition_penalty=penalty)
            found = decoder.generate(model, prompts, Limits(max_new_tokens=6, pad_id=PAD))
            for prompt, generation in zip(prompts, found):
                said: list[int] = []
                for _ in range(6):
                    z = world.scores(model, prompt, said)
                    for token in set(said):
                        z[token] = z[token] / penalty if z[token] > 0 else z[token] * penalty
                    said.append(int(z.argmax()))
                require(
                    generation.ids == said, f"{world.label}, penalty {penalty}: {generation.ids}, by the loop {said}"
                )
