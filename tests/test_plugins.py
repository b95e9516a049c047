"""Adding a method touches no existing file: a toy tuner and a toy objective in a plug-in folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

TUNER = '''"""Gain and shift: the output of each adapted matrix is rescaled and moved, feature by feature.

    y' = (1 + g) * y + b                                   g, b (outputs,) a matrix

Start:      g = b = 0: exactly the base model.
Cost:       2 scalars an output feature.
Paper:      made up for a test.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.core.adapt import ModulePart, ModuleTuner, linear_size


class Gain(ModulePart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return (1 + self.gain) * y + self.shift


@dataclass(frozen=True)
class ToyGain(ModuleTuner):
    paper: ClassVar[str] = "none"
    learning_rate: ClassVar[float] = 1e-1
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})

    targets: tuple[str, ...] = ("v", "o", "up", "down")

    def build(self, width: int) -> Gain:
        return Gain(width)

    def parameter_count(self, model: nn.Module) -> int:
        return sum(2 * linear_size(model.get_submodule(n))[1] for n in self.target_modules(model))
'''

OBJECTIVE = '''"""Cautious SFT: maximum likelihood that cares less for tokens that are nearly certain.

    loss = - sum_n (1 - p_n) log p_n / N                   the factor carries no gradient

Start:      (1 - 1/V) log V for a model that knows nothing.
Paper:      made up for a test.
Departures: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.objectives._family import TokenLogp, TokenObjective


@dataclass(frozen=True)
class ToyCautious(TokenObjective):
    paper: ClassVar[str] = "none"
    rows: ClassVar[tuple[str, ...]] = ("chat", "text")

    def loss(self, tokens: TokenLogp) -> Tensor:
        return -(1 - tokens.logp.exp()).detach() * tokens.logp
'''


ORACLE = '''"""Cautious SFT in float64, from its equation."""

import torch


def equation(objective, examples, policy, reference, batch):
    total, n = torch.zeros((), dtype=torch.float64), 0
    for e in examples:
        logp = policy.logp(e.ids)
        for t in range(1, len(e.ids)):
            if e.counts[t]:
                one = logp[t - 1, e.ids[t]]
                total, n = total - (1 - one.exp()).detach() * one, n + 1
    return total, float(n)


def start(examples, outputs):
    import math

    return (1 - 1 / outputs) * math.log(outputs)
'''


@pytest.fixture
def plugins(tmp_path: Path) -> dict[str, str]:
    for axis, name, text in (("tuners", "toy_gain", TUNER), ("objectives", "toy_cautious", OBJECTIVE)):
        (tmp_path / "plugins" / axis).mkdir(parents=True)
        (tmp_path / "plugins" / axis / f"{name}.py").write_text(text)
    (tmp_path / "plugins" / "checks" / "oracles").mkdir(parents=True)
    (tmp_path / "plugins" / "checks" / "oracles" / "objectives_toy_cautious.py").write_text(ORACLE)
    return {**os.environ, "LUTHIER_PLUGINS": str(tmp_path / "plugins"), "OMP_NUM_THREADS": "1"}


def _cli(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.cli", *words], capture_output=True, text=True, env=env, check=False
    )


def test_toy_methods_run_and_are_listed(plugins: dict[str, str], recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"tuner": "toy_gain", "objective": "toy_cautious"}
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(recipe))
    done = _cli(plugins, "run", str(file), "--quiet")
    assert done.returncode == 0, done.stderr
    folder = Path(recipe["output_dir"])
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LUTHIER_TOY_GAIN"
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
    assert losses[-1] < losses[0]
    listed = json.loads(_cli(plugins, "list", "--json").stdout)
    assert {"toy_gain", "toy_cautious"} <= {r["name"] for r in listed}
    assert "made up for a test" in _cli(plugins, "show", "toy_gain").stdout
    text = _cli(plugins, "generate", str(folder), "copy: a b ->", "--max-new-tokens", "4")
    assert json.loads(text.stdout)["prompt"] == "copy: a b ->"


@pytest.mark.parametrize("method", ["tuners/toy_gain", "objectives/toy_cautious"])
def test_toy_methods_pass_the_battery(plugins: dict[str, str], method: str) -> None:
    done = _cli(plugins, "check", method)
    assert done.returncode == 0, done.stdout + done.stderr
