"""A bare loop over raw tensors (prompt and head in two AdamW groups, pooling by hand), and peft's own prompt tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from luthier.checks._compare import close, require
from luthier.checks._models import CLASSES, PAD, labelled, model_of
from luthier.checks.oracles._tuners import method
from luthier.core import catalog
from luthier.core.config import TrainSettings
from luthier.core.loop import Loop

EXAMPLES = list(labelled("multi_label_classification", 8))
ARCHITECTURE = "llama-classifier"
SETTINGS: dict[str, Any] = {"weight_decay": 0.1, "eps": 1e-4}
RATE = 0.02


def _model() -> nn.Module:
    return model_of(ARCHITECTURE, problem_type="multi_label_classification")


def _vectors(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Prompt and head of a wrapped model."""
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    require(len(found) == 2, f"{len(found)} trainable tensors instead of prompt and head: {sorted(found)}")
    (head,) = [p for n, p in found.items() if ".score." in n]
    (prompt,) = [p for n, p in found.items() if ".score." not in n]
    return prompt.detach().clone(), head.detach().clone()


def _by_hand(model: nn.Module, prompt: Tensor, head: Tensor, ids: list[int]) -> Tensor:
    """(K,) logits of one unpadded text."""
    rows = torch.cat([prompt, model.get_input_embeddings()(torch.tensor(ids))])  # type: ignore[operator]
    return head @ model.model(inputs_embeds=rows[None]).last_hidden_state[0, -1]  # type: ignore[operator]


def oracle_bare_loop() -> None:
    """Six steps: weights of rare labels, mean over labels and rows, and each part at a rate of its own."""
    tuner, steps = method(__name__), 6
    model, plain = tuner.wrap(_model(), "classification"), _model().eval()
    plain.requires_grad_(False)
    start, first = _vectors(model)
    objective = replace(catalog.load("objectives", "classification").example(), pos_weight="frequency")
    told = TrainSettings(
        max_steps=steps, per_device_train_batch_size=len(EXAMPLES), learning_rate=RATE, weight_decay=0.1,
        warmup_ratio=0.0, lr_scheduler_type="constant", max_grad_norm=0.0, adam_epsilon=SETTINGS["eps"],
    )  # fmt: skip
    Loop(model, tuner, objective, EXAMPLES, told, PAD).fit()

    y = torch.tensor([e.label for e in EXAMPLES])  # (B, K)
    weight = y.sum(0).max() / y.sum(0).clamp(min=1)
    prompt, head = nn.Parameter(start.clone()), nn.Parameter(first.clone())
    groups = [{"params": [prompt], "lr": RATE}, {"params": [head], "lr": RATE * tuner.head_rate}]
    optimizer = torch.optim.AdamW(groups, **SETTINGS)
    for _ in range(steps):
        with torch.enable_grad():
            z = torch.stack([_by_hand(plain, prompt, head, e.ids) for e in EXAMPLES])
            p = torch.sigmoid(z)
            losses = -(weight * y * torch.log(p) + (1 - y) * torch.log(1 - p))
            optimizer.zero_grad()
            losses.mean().backward()
        optimizer.step()
    for name, found, wanted, old in zip(("prompt", "head"), _vectors(model), (prompt, head), (start, first)):
        moved = float((wanted.detach() - old).abs().max())
        gap = float((found - wanted.detach()).abs().max())
        require(gap <= 0.005 * moved + 1e-7, f"{name} differs by {gap:.1e} after moving {moved:.1e}")


@torch.no_grad()
def oracle_peft() -> None:
    """Equal vectors in peft's own type for classifiers; one unpadded row at a time, which is what it gets right."""
    model = method(__name__).wrap(_model(), "classification").eval()
    prompt, head = _vectors(model)
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=len(prompt))
    theirs: Any = get_peft_model(_model(), config).eval()
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(prompt)
    theirs.get_base_model().score.modules_to_save["default"].weight.data.copy_(head)
    for e in EXAMPLES:
        ids = torch.tensor([e.ids])
        mask = torch.ones_like(ids)
        found = model(input_ids=ids, attention_mask=mask).logits
        close(found, theirs(input_ids=ids, attention_mask=mask).logits, "logits and peft's")
        close(found[0], F.linear(head, _by_hand(_model().eval(), prompt, torch.eye(head.shape[1]), e.ids)), "by hand")


@torch.no_grad()
def oracle_start() -> None:
    """The prompt starts as the rows of the label names, in order; as a part of them where they are more than p."""
    table = _model().get_input_embeddings().weight  # type: ignore[operator]
    ids = (40, 41, 42, 43, 44)
    for tokens in (3, 5, 8):
        tuner = method(__name__, tokens=tokens, label_ids=ids)
        prompt, head = _vectors(tuner.wrap(_model(), "classification"))
        require(head.shape[0] == CLASSES, "the head has not one row a class")
        rows = [int((table - row).abs().sum(1).argmin()) for row in prompt]
        close(prompt, table[rows], "prompt and rows of the table")
        kept = rows[: min(tokens, len(ids))]
        require(kept == sorted(set(kept)) and set(kept) <= set(ids), f"the prompt starts with rows {rows}")
