"""Both stages in a bare float64 loop that joins prompt and embeddings by hand, row by row: the same prompt and weights."""

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

MODEL, ROWS, STEPS = "nano-1m", 5, 4
IDS = [40, 41, 42]
RATES = (0.02, 0.001)
# eps above the noise: Adam turns the rounding of gradients that are zero into whole steps otherwise
SETTINGS: dict[str, Any] = {"eps": 1e-4, "weight_decay": 0.1}


def oracle_bare_loop() -> None:
    from luthier.verbs.run import run

    recipe = {
        "model": MODEL,
        "procedure": {
            "name": __name__.rsplit("recipes_", 1)[-1],
            "tuner": {"name": "prompt_tuning", "tokens": len(IDS), "ids": IDS},
            "train": {"learning_rate": RATES[0]},
        },
        "data": {"train": f"sandbox:sequence?task=member&n={ROWS}"},
        "train": {
            "max_steps": STEPS, "per_device_train_batch_size": ROWS, "learning_rate": RATES[1], "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant", "adam_epsilon": SETTINGS["eps"], "weight_decay": SETTINGS["weight_decay"],
        },
        "evaluate": {"drift": False},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run({**recipe, "output_dir": f"{folder}/run"}, quiet=True)
        found = load_file(Path(folder) / "run" / "model" / "model.safetensors")
        (prompt,) = load_file(Path(folder) / "run" / "prompt" / "adapter_model.safetensors").values()

    model: Any = sandbox.load(MODEL)[0].double()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = model.get_input_embeddings().weight[IDS].detach().clone()
    P = first.clone().requires_grad_()
    _steps(model, P, [P], RATES[0])
    for name, tensor in model.named_parameters():
        require(torch.equal(tensor, start[name]), f"{name} moved in the first stage")
    _near(prompt, P.detach(), first, "prompt after the first stage")
    _steps(model, P.detach(), list(model.parameters()), RATES[1])
    for name, tensor in model.named_parameters():
        _near(found[name], tensor.detach(), start[name], name)


def _steps(model: Any, prompt: Tensor, moving: list[Tensor], rate: float) -> None:
    """AdamW on `moving` alone, all rows in every step."""
    optimizer = torch.optim.AdamW(moving, lr=rate, **SETTINGS)
    for _ in range(STEPS):
        loss, count = torch.zeros((), dtype=torch.float64), 0
        for ids, begin in _rows():
            joined = torch.cat([prompt, model.get_input_embeddings()(ids)])[None]  # (1, m + T, D)
            logits = model(inputs_embeds=joined).logits[0, len(prompt) :]  # (T, V)
            loss = loss + F.cross_entropy(logits[begin - 1 : -1], ids[begin:], reduction="sum")
            count += len(ids) - begin
        for tensor in [*model.parameters(), prompt]:
            tensor.grad = None
        (loss / count).backward()
        optimizer.step()


def _rows() -> list[tuple[Tensor, int]]:
    """Token ids of each row with its end, and where the answer begins."""
    tokenizer = sandbox.load(MODEL)[1]
    out = []
    for row in sandbox.rows("sequence", task="member", n=ROWS):
        before = tokenizer(row["prompt"])["input_ids"]
        whole = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
        require(whole[: len(before)] == before, "the answer changes the tokens of the prompt")
        out.append((torch.tensor(whole), len(before)))
    return out


def _near(found: Tensor, wanted: Tensor, start: Tensor, what: str) -> None:
    """Within half a per cent of how far it went."""
    moved, gap = (wanted - start).abs().max().item(), (found.double() - wanted).abs().max().item()
    require(moved > 1e-4, f"{what}: did not move")
    require(gap <= 0.005 * moved + 1e-6, f"{what}: differs by {gap:.1e} after moving {moved:.1e}")
