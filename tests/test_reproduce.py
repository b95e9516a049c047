"""`luthier reproduce`: verdicts follow from rows, and seeds that were measured are not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from luthier.core import catalog
from luthier.core.method import LuthierError
from luthier.reproductions._family import Claim, Experiment, Row, mean
from luthier.verbs import reproduce as verb


class Coins(Experiment):
    """Heads by seed; it can be made to stop at one."""

    setup = "coins"
    side: ClassVar[float] = 1.0
    measured: ClassVar[list[int]] = []
    _stops_at: ClassVar[int | None] = None

    def measure(self, seed: int) -> Row:
        if seed == self._stops_at:
            raise KeyboardInterrupt
        self.measured.append(seed)
        return {"heads": float(seed) + self.side}

    def claims(self, rows: list[Row]) -> list[Claim]:
        return [
            Claim("mostly heads", f"{mean(rows, 'heads'):g}", mean(rows, "heads") > 1, headline=True),
            Claim("never tails", "once", False, central=False),
        ]


@pytest.fixture
def coins(monkeypatch: pytest.MonkeyPatch) -> type[Coins]:
    monkeypatch.setattr(verb, "experiment", lambda name: (catalog.find("hft"), Coins()))
    monkeypatch.setattr(Coins, "measured", [])
    monkeypatch.setattr(Coins, "_stops_at", None)
    return Coins


def test_only_central_claims_decide(coins: type[Coins], tmp_path: Path) -> None:
    file = tmp_path / "coins.json"
    done = verb.reproduce("coins", output=file)
    assert done.verdict == "reproduced"
    assert json.loads(file.read_text())["rows"] == [{"heads": 1.0}, {"heads": 2.0}, {"heads": 3.0}]
    assert verb.reproduce("coins", seeds=1, output=file).verdict == "contradicted"
    assert "mostly heads" in json.loads(file.read_text())["summary"]


def test_an_interrupted_experiment_goes_on_with_the_seeds_that_are_left(
    coins: type[Coins], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole = tmp_path / "coins.json", tmp_path / "whole.json"
    coins._stops_at = 1
    with pytest.raises(KeyboardInterrupt):
        verb.reproduce("coins", output=file)
    coins._stops_at = 2
    with pytest.raises(KeyboardInterrupt):  # and once more
        verb.reproduce("coins", output=file, resume=True)
    assert not file.exists()
    coins._stops_at = None
    verb.reproduce("coins", output=file, resume=True)
    assert coins.measured == [0, 1, 2]
    assert [f.name for f in tmp_path.iterdir()] == ["coins.json"]
    verb.reproduce("coins", output=whole)
    assert json.loads(file.read_text())["rows"] == json.loads(whole.read_text())["rows"]


def test_seeds_of_other_settings_are_not_taken_over(
    coins: type[Coins], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "coins.json"
    with pytest.raises(LuthierError, match="nothing to resume"):
        verb.reproduce("coins", output=file, resume=True)
    coins._stops_at = 1
    with pytest.raises(KeyboardInterrupt):
        verb.reproduce("coins", output=file)
    monkeypatch.setattr(Coins, "side", 2.0)
    with pytest.raises(LuthierError, match="another settings"):
        verb.reproduce("coins", output=file, resume=True)
