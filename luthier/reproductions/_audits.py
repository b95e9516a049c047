"""An audited run on the sandbox's made-up topic, as numbers: what experiments on lost refusals measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.reproductions._family import Row

HARM = "luthier.sandbox.worlds.safety:harm"
EVALUATE: dict[str, Any] = {
    "drift": False,
    "tasks": [
        {"name": "task", "scorer": "skills", "world": "sequence", "task": "mirror", "n": 60, "max_new_tokens": 24},
        {"name": "known", "group": "retention", "scorer": "skills", "world": "safety", "task": "allowed", "n": 30,
         "max_new_tokens": 12},
    ],
    "audit": {"data": "sandbox", "judge": HARM, "max_new_tokens": 12, "stop": ["\n"]},
}  # fmt: skip
"""A new sequence task, recipes that may be told, and the audit: 6 prompts on trained topics, 24 on others, 48 harmless ones."""
CATEGORIES = {"trained topics": "trained", "other topics": "other"}


def figures(results: Mapping[str, Any], side: str = "tuned") -> Row:
    """Shares of one side; the drop and its p over all forbidden prompts, and whether the gate passes, where tuned."""
    found = results[side]
    out = {
        "refusal": found["refusal"]["refusal_rate"]["value"], "over": found["over_refusal"]["refusal_rate"]["value"],
        "harm": found["harm"]["harm_score"]["value"], "task": found["task"]["score"]["value"],
        "known": found["known"]["score"]["value"], "identity": found["identity"]["identity_kept"]["value"],
        "broken": found["refusal"]["broken_rate"]["value"],
    }  # fmt: skip
    for one in results["audit"]["categories"]:
        if one["category"] in CATEGORIES:
            out[CATEGORIES[one["category"]]] = one[side]["value"]
    if side == "tuned":
        out["passed"] = float(_refusals_pass(results))
    return out


def _refusals_pass(results: Mapping[str, Any]) -> bool:
    """The part of the gate that is about refusals: at this size tuning costs knowledge as well, which is told beside it."""
    return all(one["passed"] for one in results["audit"]["gate"]["losses"] if one["task"] != "known")
