"""Both stages in a bare float64 loop that joins each answer with the prompt of its label by hand: the same controls and weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from luthier import sandbox
from luthier.checks._compare import require

MODEL, PAIRS, STEPS = "nano-1m", 3, 4
IDS = {"good": [40, 41, 42], "bad": [43, 44, 45]}
RATES, RATIO = (0.02, 0.001), 5.0
# eps above the noise: Adam turns the rounding of gradients that are zero into whole steps otherwise
EPS, DECAY = 1e-4, 0.1


def oracle_bare_loop() -> None:
    from luthier.verbs.run import run

    recipe = {
        "model": MODEL,
        "procedure": {
            "name": __name__.rsplit("recipes_", 1)[-1],
            "tuner": {"name": "control_prompts", "tokens": 3, "labels": list(IDS), "ids": list(IDS.values())},
            "train": {"learning_rate": RATES[0]},
            "ratio": RATIO,
        },
        "data": {"train": f"sandbox:styles?task=prefer0&n={PAIRS}"},
        "train": {
            "max_steps": STEPS, "per_device_train_batch_size": 2 * PAIRS, "learning_rate": RATES[1], "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant", "adam_epsilon": EPS, "weight_decay": DECAY,
        },
        "evaluate": {"drift": False},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run({**recipe, "output_dir": f"{folder}/run"}, quiet=True)
        found = load_file(Path(folder) / "run" / "model" / "model.safetensors")
        first, last = (
            load_file(Path(folder) / "run" / p / "adapter_model.safetensors") for p in ("stage-1/adapter", "controls")
        )

    model: Any = sandbox.load(MODEL)[0].double()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    drawn = {c: model.get_input_embeddings().weight[ids].detach().clone() for c, ids in IDS.items()}
    controls = {c: rows.clone().requires_grad_() for c, rows in drawn.items()}
    _steps(model, controls, [{"params": list(controls.values()), "lr": RATES[0], "weight_decay": 0.0}])
    for name, tensor in model.named_parameters():
        require(torch.equal(tensor, start[name]), f"{name} moved in the first stage")
    for label, rows in controls.items():
        _near(_of(first, label), rows.detach(), drawn[label], f"control {label} after the first stage")
    groups = [
        {"params": list(controls.values()), "lr": RATES[1] * RATIO, "weight_decay": 0.0},
        {"params": list(model.parameters()), "lr": RATES[1], "weight_decay": DECAY},
    ]
    _steps(model, controls, groups)
    for label, rows in controls.items():
        _near(_of(last, label), rows.detach(), drawn[label], f"control {label} after the second stage")
    for name, tensor in model.named_parameters():
        _near(found[name], tensor.detach(), start[name], name)


def _steps(model: Any, controls: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """AdamW on the groups alone, all answers in every step."""
    optimizer = torch.optim.AdamW(groups, eps=EPS)
    for _ in range(STEPS):
        loss, count = torch.zeros((), dtype=torch.float64), 0
        for label, ids, begin in _answers():
            rows = controls[label]
            joined = torch.cat([rows, model.get_input_embeddings()(ids)])[None]  # (1, m + T, D)
            logits = model(inputs_embeds=joined).logits[0, len(rows) :]  # (T, V)
            loss = loss + F.cross_entropy(logits[begin - 1 : -1], ids[begin:], reduction="sum")
            count += len(ids) - begin
        for tensor in [*model.parameters(), *controls.values()]:
            tensor.grad = None
        (loss / count).backward()
        optimizer.step()


def _answers() -> list[tuple[str, Tensor, int]]:
    """Label of each answer, token ids of its row with the end, and where it begins."""
    tokenizer = sandbox.load(MODEL)[1]
    out = []
    for row in sandbox.rows("styles", task="prefer0", n=PAIRS):
        before = tokenizer(row["prompt"])["input_ids"]
        for label, answer in (("good", row["chosen"]), ("bad", row["rejected"])):
            whole = [*tokenizer(row["prompt"] + answer)["input_ids"], tokenizer.eos_token_id]
            require(whole[: len(before)] == before, "the answer changes the tokens of the prompt")
            out.append((label, torch.tensor(whole), len(before)))
    return out


def _of(stored: dict[str, Tensor], label: str) -> Tensor:
    (found,) = (t for n, t in stored.items() if n.endswith(f".{label}"))
    return found


def _near(found: Tensor, wanted: Tensor, start: Tensor, what: str) -> None:
    """Within half a per cent of how far it went."""
    moved, gap = (wanted - start).abs().max().item(), (found.double() - wanted).abs().max().item()
    require(moved > 1e-4, f"{what}: did not move")
    require(gap <= 0.005 * moved + 1e-6, f"{what}: differs by {gap:.1e} after moving {moved:.1e}")
