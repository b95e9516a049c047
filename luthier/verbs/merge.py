"""`luthier merge`: adapters and deltas into weights, or checkpoints into one; then the check that nothing changed on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.core import runs
from luthier.core.anatomy import base_transformer
from luthier.core.method import LuthierError, Refusal
from luthier.edits.merge import Merge
from luthier.verbs.load import Loaded, load

PROBES = (
    "The morning train was late",
    "Question: What is the capital of the country? Answer:",
    "copy: a b c d ->",
    "1 + 2 =",
    "Once upon a time",
    "def first(items):\n    return",
)
"""Texts on which a model is compared before and after."""


@dataclass
class MergeCheck:
    """What the merged model says against what it was made from, on the same probes.

    max_logit_difference   largest |difference| of logits;  same_text  greedy continuations are equal
    """

    folder: str
    probes: int
    max_logit_difference: float
    same_text: bool
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_logit_difference <= self.tolerance and self.same_text

    def text(self) -> str:
        verdict = "the merged model says the same" if self.passed else "THE MERGED MODEL DIFFERS"
        return (
            f"{self.folder}: {verdict} (largest logit difference {self.max_logit_difference:.1e} over {self.probes} "
            f"probes, greedy text {'equal' if self.same_text else 'not equal'})"
        )


def merge(
    source: str | Path | Loaded | Sequence[str | Path], output: str | Path, *, weights: Sequence[float] | None = None
) -> MergeCheck:
    """Merge an adapter, a delta or a run into its base, or several checkpoints into one, and write an ordinary model folder.

    Raises Refusal where the adapter is not linear in the weights, LuthierError where the merged model says something else
    (the folder is then not written).
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        return _average([load(s) for s in source], Path(output), weights)
    loaded = source if isinstance(source, Loaded) else load(source)
    if loaded.delta is None and not hasattr(loaded.model, "merge_and_unload"):
        raise LuthierError(f"'{loaded.name}' is an ordinary model: there is no adapter to merge")
    probes = _probe(loaded)
    before = _say(loaded, probes)
    try:  # a delta is in the weights already
        merged = loaded.model if loaded.delta else loaded.model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError) as error:
        raise Refusal(
            f"{loaded.name}: this adapter type cannot be merged: ship the base and the adapter folder"
        ) from error
    after = Loaded(merged, loaded.tokenizer, loaded.task, str(output), str(output))
    tolerance = 1e-4 if merged.dtype == torch.float32 else 0.1
    difference, same = _compare(before, _say(after, probes))
    check = MergeCheck(str(output), len(probes), difference, same, tolerance)
    return _write(after, Path(output), check)


def _average(parts: list[Loaded], output: Path, weights: Sequence[float] | None) -> MergeCheck:
    states = [p.model.state_dict() for p in parts]
    state = Merge(tuple(weights) if weights else None).apply(states)
    first = parts[0]
    first.model.load_state_dict(state)
    out = Loaded(first.model, first.tokenizer, first.task, str(output), str(output))
    return _write(out, output, MergeCheck(str(output), 0, 0.0, True, 0.0))


def _write(out: Loaded, output: Path, check: MergeCheck) -> MergeCheck:
    if not check.passed:
        raise LuthierError(check.text())

    def fill(part: Path) -> None:
        base_transformer(out.model).save_pretrained(part)
        out.tokenizer.save_pretrained(part)
        (part / "merge_check.json").write_text(json.dumps(asdict(check), indent=1))

    output.parent.mkdir(parents=True, exist_ok=True)
    runs.write_folder(output, fill)
    return check


def _probe(loaded: Loaded) -> list[torch.Tensor]:
    device = next(loaded.model.parameters()).device
    ids = [loaded.tokenizer(p, return_tensors="pt")["input_ids"].to(device) for p in PROBES]
    return [i for i in ids if i.shape[1] > 0]


@torch.no_grad()
def _say(loaded: Loaded, probes: list[torch.Tensor]) -> list[tuple[torch.Tensor, Any]]:
    """Logits and, for models that write, the greedy continuation of each probe."""
    loaded.model.eval()
    out = []
    for ids in probes:
        extra = {"decoder_input_ids": ids} if loaded.task == "seq2seq_lm" else {}
        said = loaded.model(input_ids=ids, **extra)
        logits = said.last_hidden_state if loaded.task == "embedding" else said.logits
        text = None
        if loaded.task in ("causal_lm", "seq2seq_lm"):
            mask = torch.ones_like(ids)
            pad = loaded.tokenizer.pad_token_id
            text = loaded.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=pad
            ).tolist()
        out.append((logits.float(), text))
    return out


def _compare(before: list[Any], after: list[Any]) -> tuple[float, bool]:
    difference = max(float((a[0] - b[0]).abs().max()) for a, b in zip(before, after, strict=True))
    return difference, all(a[1] == b[1] for a, b in zip(before, after, strict=True))
