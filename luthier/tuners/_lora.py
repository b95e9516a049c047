"""What LoRA and its peft relatives share: where they go, how they count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from peft import LoraConfig, PeftConfig
from torch import nn

from luthier.core.adapt import PEFT_TASKS, PeftTuner, head_modules, linear_size
from luthier.core.anatomy import anatomy
from luthier.core.method import Refusal


def targets_of(model: nn.Module, targets: tuple[str, ...], name: str) -> list[str]:
    """Module names for roles, or all matrices of the body for "all"."""
    roles = ("q", "k", "v", "o", "up", "gate", "down") if targets == ("all",) else targets
    found = anatomy(model).modules(roles)
    if not found:
        raise Refusal(f"{name} found no module with roles {', '.join(roles)}")
    return found


@dataclass(frozen=True)
class LoRAFamily(PeftTuner):
    """W' = W + scale * B A on weight matrices, by peft."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "merge", "off", "several", "generate"})

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")

    @classmethod
    def example(cls) -> Self:
        return cls(r=4, alpha=8.0)

    def peft_config(self, model: nn.Module, task: str) -> PeftConfig:
        return LoraConfig(
            task_type=PEFT_TASKS[task],
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides it by r: it need not be whole
            lora_dropout=self.dropout,
            target_modules=targets_of(model, self.targets, self.name),
            modules_to_save=head_modules(model, task),
            fan_in_fan_out=anatomy(model).model_type == "gpt2",
            **self.variant(),
        )

    def variant(self) -> dict[str, Any]:
        """Switches of peft's LoraConfig that make the relative."""
        return {}

    def parameter_count(self, model: nn.Module) -> int:
        shapes = [linear_size(model.get_submodule(n)) for n in targets_of(model, self.targets, self.name)]
        return sum(self.r * (i + o) for i, o in shapes)
