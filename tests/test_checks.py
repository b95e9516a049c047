"""Every method of the catalogue x every check of its axis, one id each: `tuners/lora-merge`."""

import json
import textwrap

import pytest
import torch

from luthier.checks import CheckFailed, _battery, expected, run_check
from luthier.core import catalog
from luthier.core.method import TUNER_CAPABILITIES

torch.set_num_threads(1)
METHODS = {f"{axis}/{name}": _battery.example(axis, name) for axis, name in _battery.pairs()}
CASES = [(key, check) for key, method in METHODS.items() for check in expected(method)]


@pytest.mark.parametrize(("key", "check"), CASES, ids=[f"{key}-{check}" for key, check in CASES])
def test_check(key: str, check: str) -> None:
    reason = _battery.known_failure(METHODS[key], check)
    if reason is None:
        run_check(METHODS[key], check)
        return
    with pytest.raises(CheckFailed):  # strict: a listed failure that passes must be taken off the list
        run_check(METHODS[key], check)


@pytest.mark.parametrize("key", METHODS)
def test_no_check_is_missing(key: str) -> None:
    """As many checks as axis and capabilities imply: each one without conditions, and one answer to each capability."""
    axis, ran = key.split("/")[0], set(expected(METHODS[key]))
    always = {n for n, c in _battery.checks(axis).items() if not hasattr(c, "applies") and not hasattr(c, "fits")}
    assert always <= ran
    assert len(ran) >= {
        "tuners": 20, "objectives": 9, "data": 6, "decoding": 5, "edits": 7, "evaluation": 4, "recipes": 7,
        "analysis": 5,
    }[axis]  # fmt: skip
    assert _battery.stale_known_failures(METHODS[key]) == []


def test_every_capability_is_claimed_or_asked_for_and_refused() -> None:
    checks = _battery.checks("tuners")
    for capability in TUNER_CAPABILITIES:
        has, lacks = ({*TUNER_CAPABILITIES}, {*TUNER_CAPABILITIES} - {capability})
        claimed, refused = (_names_by_capabilities(checks, of) for of in (has, lacks))
        assert claimed - refused, f"no check for a tuner that claims {capability}"
        assert refused - claimed, f"no check for a tuner that lacks {capability}"


def _names_by_capabilities(checks: dict, capabilities: set) -> set:
    from luthier.core.method import PartialTuner

    class Some(PartialTuner):
        pass

    some = Some()
    Some.capabilities = frozenset(capabilities)
    return {n for n, c in checks.items() if all(a(some) for a in getattr(c, "applies", []))}


BROKEN = '''
"""Broken: an adapter whose output is pulled towards the mean of the batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from luthier.core.adapt import ModulePart, ModuleTuner


class Leak(ModulePart):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(0.3 * torch.randn(width))

    def forward(self, y, x):
        return y + self.gain * y.mean((0, 1), keepdim=True)


@dataclass(frozen=True)
class Broken(ModuleTuner):
    paper: ClassVar[str] = "none"
    capabilities: ClassVar[frozenset[str]] = frozenset({"identity", "off", "several", "generate"})
    known_failures: ClassVar[dict[str, str]] = {"off": "listed by mistake", "batch": "sees its neighbours"}

    def build(self, width):
        return Leak(width)

    def parameter_count(self, model):
        return 7
'''


def test_battery_finds_what_is_broken_in_a_plug_in(tmp_path, monkeypatch) -> None:
    """A tuner that mixes tokens and rows, miscounts and lies about its start is told apart by the checks."""
    (tmp_path / "tuners").mkdir()
    (tmp_path / "tuners" / "broken.py").write_text(textwrap.dedent(BROKEN).lstrip())
    monkeypatch.setenv("LUTHIER_PLUGINS", str(tmp_path))
    method = _battery.example("tuners", "broken")
    skipped = {"reload", "overfits", "frozen", "head_moves"}  # slow, or run once for all tuners
    found = set()
    for check in sorted(set(expected(method)) - skipped):
        try:
            run_check(method, check)
        except CheckFailed:
            found.add(check)
    wanted = {"identity", "count", "causal", "batch", "padding", "packing", "shared_prompt", "generate"}
    assert found == wanted
    assert _battery.known_failure(method, "off") == "listed by mistake"  # it passes: `run_battery` calls that a failure


def test_record_is_sorted_and_gives_the_status(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(catalog, "results_folder", lambda: tmp_path)
    entry = catalog.entry("edits", "merge")
    record = _battery.run_battery("edits", "merge")
    assert not record.failed
    _battery.write_record({"edits/merge": record}, tmp_path / "checks.json")
    _battery.write_record({"edits/gone": record}, tmp_path / "checks.json")  # a method without a file is dropped
    told = json.loads((tmp_path / "checks.json").read_text())
    assert list(told) == ["edits/merge"]
    assert told["edits/merge"]["passed"] == sorted(record.passed)
    assert catalog.status(entry)["status"] == ("agreed" if record.oracles else "checked")
    assert catalog.status(entry)["checks_run"] == catalog.status(entry)["checks_expected"] == record.expected
