"""Every method that has an independent implementation x each of them, one id each: `tuners/lora-dense_formula`."""

import importlib.util

import pytest
import torch

from luthier.checks import _battery

torch.set_num_threads(1)
CASES = [(axis, name, source) for axis, name in _battery.pairs() for source in _battery.oracles(axis, name)]


@pytest.mark.parametrize(("axis", "name", "source"), CASES, ids=[f"{a}/{n}-{s}" for a, n, s in CASES])
def test_oracle(axis: str, name: str, source: str) -> None:
    if importlib.util.find_spec(source) is None and source in ("trl", "sklearn", "scipy"):
        pytest.skip(f"{source} is not installed")
    _battery.run_oracle(axis, name, source)


def test_every_oracle_file_has_its_method() -> None:
    from pathlib import Path

    import luthier.checks.oracles as package
    from luthier.core import catalog

    for file in Path(package.__file__).parent.glob("[!_]*.py"):
        axis, name = file.stem.split("_", 1)
        assert catalog.entry(axis, name).name == name
