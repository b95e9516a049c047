"""The bridge to peft: registration, the capabilities that are asked of it, and parts on many architectures."""

import subprocess
import sys

import peft
import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._models import World, model_of
from luthier.core import catalog
from luthier.core.adapt import PromptTuner, ReparamTuner, demand, linear_size, merged
from luthier.core.method import TUNER_CAPABILITIES, Refusal

BRIDGED = [e.name for e in catalog.entries("tuners") if hasattr(catalog.load("tuners", e.name), "bridge")]
DECODERS = ["opt", "phi3", "gpt_neox", "qwen2", "olmo2"]


@pytest.mark.parametrize("name", BRIDGED)
def test_peft_knows_the_type(name: str) -> None:
    member = peft.PeftType[f"LUTHIER_{name.upper()}"]
    assert member.value == f"LUTHIER_{name.upper()}"
    assert peft.PeftType(member.value) is member
    assert peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[member] is catalog.load("tuners", name).bridge[0]


@pytest.mark.parametrize("order", ["import luthier, peft", "import peft, luthier"])
def test_registered_whichever_is_imported_first(order: str) -> None:
    code = f"{order}; print(sum('LUTHIER_' in m for m in peft.PeftType.__members__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(BRIDGED)


@pytest.mark.parametrize("name", BRIDGED)
@pytest.mark.parametrize("architecture", DECODERS)
def test_off_and_batch_on_more_architectures(name: str, architecture: str) -> None:
    tuner, world = catalog.load("tuners", name).example(), World(architecture, "causal_lm", "decoder")
    try:
        battery.wrapped(tuner, world)
    except Refusal as error:
        if "architecture" not in str(error):
            raise
        pytest.skip(str(error))  # it lacks a part
    for check in (battery.check_count, battery.check_off, battery.check_batch, battery.check_padding):
        check(tuner, world)


@pytest.mark.parametrize("capability", TUNER_CAPABILITIES)
def test_refusals_name_method_and_capability(capability: str) -> None:
    class Nothing(ReparamTuner):
        capabilities = frozenset()

    Nothing.__module__ = "luthier.tuners.nothing"
    with pytest.raises(Refusal, match=f"nothing.*'{capability}'"):
        demand(Nothing(), capability)


def test_merging_twice_or_an_unmergeable() -> None:
    world = World("llama", "causal_lm", "decoder")
    tuner = catalog.load("tuners", "bottleneck").example()
    with pytest.raises(Refusal, match="merge"):
        merged(tuner, battery.wrapped(tuner, world))


def test_status_and_counts_of_peft_work() -> None:
    for name in BRIDGED:
        tuner, world = catalog.load("tuners", name).example(), World("llama", "causal_lm", "decoder")
        model = battery.wrapped(tuner, world)
        trainable, total = model.get_nb_trainable_parameters()
        assert trainable == tuner.parameter_count(world.base()) < total
        assert model.get_model_status().peft_types == {"default": f"LUTHIER_{name.upper()}"}


def test_prompt_needs_a_head_around_a_backbone() -> None:
    tuner = next(catalog.load("tuners", n) for n in BRIDGED if issubclass(catalog.load("tuners", n), PromptTuner))
    with pytest.raises(Refusal, match="bare"):
        tuner.example().wrap(model_of("llama").model, "causal_lm")


def test_only_weight_matrices_have_a_size() -> None:
    with pytest.raises(Refusal, match="LayerNorm is not a weight matrix"):
        linear_size(torch.nn.LayerNorm(3))


def test_asking_whether_peft_is_installed_does_not_disarm_the_registration() -> None:
    """transformers looks for peft before anybody imports it."""
    import subprocess
    import sys

    code = (
        "import luthier, importlib.util as u; assert u.find_spec('peft'); from peft import PeftType; "
        "print(sum(m.startswith('LUTHIER_') for m in PeftType.__members__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
