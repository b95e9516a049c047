"""(IA)3: rescale keys, values and feed-forward activations by trained vectors.

    k' = l_k * k,   v' = l_v * v,   h' = l_ff * h          l_k, l_v (key/value width,), l_ff (feed-forward width,)

Start:      all vectors one: exactly the base model.
Cost:       one scalar a key, value and feed-forward feature; merged, nothing.
Paper:      Liu et al., 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
            Learning", arXiv:2205.05638, section 3.3.
Departures: none; peft's implementation. With fused projections the whole fused output is rescaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peft import IA3Config, PeftConfig
from torch import nn

from luthier.core.adapt import PEFT_TASKS, PeftTuner, head_modules, linear_size
from luthier.core.anatomy import anatomy


@dataclass(frozen=True)
class IA3(PeftTuner):
    paper: ClassVar[str] = "arXiv:2205.05638"
    cards: ClassVar[tuple[int, ...]] = (60,)
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "merge", "off", "several", "generate"})

    def _targets(self, model: nn.Module) -> tuple[list[str], list[str]]:
        body = anatomy(model)
        return body.modules(("k", "v")), body.modules(("down",))

    def peft_config(self, model: nn.Module, task: str) -> PeftConfig:
        attention, feed_forward = self._targets(model)
        return IA3Config(
            task_type=PEFT_TASKS[task],
            target_modules=attention + feed_forward,
            feedforward_modules=feed_forward,
            modules_to_save=head_modules(model, task),
            fan_in_fan_out=anatomy(model).model_type == "gpt2",
        )

    def parameter_count(self, model: nn.Module) -> int:
        attention, feed_forward = self._targets(model)
        outputs = sum(linear_size(model.get_submodule(n))[1] for n in attention)
        return outputs + sum(linear_size(model.get_submodule(n))[0] for n in feed_forward)
