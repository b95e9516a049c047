"""Parts inside attention: what the common checks do not reach."""

import pytest
import torch

from luthier.checks import tuners as battery
from luthier.checks._compare import close
from luthier.checks._models import PAD, WORLDS, World, model_of
from luthier.core import catalog
from luthier.core.adapt import folded
from luthier.core.method import LuthierError, Refusal

PREFIX, MAM, HEADWISE = (catalog.load("tuners", n) for n in ("prefix", "mam", "multihead_parallel"))
SMALL, LLAMA = PREFIX.example(), WORLDS[0]
OTHERS = ["opt", "phi3", "gpt_neox", "qwen3", "gemma2", "olmo2", "distilbert", "roberta", "t5-gated"]


def world_of(architecture: str) -> World:
    kind = {"distilbert": "encoder", "roberta": "encoder", "t5-gated": "encoder-decoder"}.get(architecture, "decoder")
    return World(architecture, {"encoder": "masked_lm", "encoder-decoder": "seq2seq_lm"}.get(kind, "causal_lm"), kind)


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(architecture: str) -> None:
    world = world_of(architecture)
    for check in ("padding", "off", "several"):
        getattr(battery, f"check_{check}")(SMALL, world)


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.architecture)
@pytest.mark.parametrize("tuner", [SMALL, HEADWISE.example()], ids=lambda t: t.name)
def test_eager_is_sdpa(world: World, tuner) -> None:
    model = battery.moved(tuner, world)
    said = world.said(model)
    model.get_base_model().set_attn_implementation("eager")
    close(world.said(model), said, "eager and sdpa")


def test_other_implementations_are_refused() -> None:
    model = battery.wrapped(SMALL, LLAMA)
    model.config._attn_implementation = "flex_attention"
    attention = model.get_base_model().model.layers[0].self_attn
    with pytest.raises(Refusal, match="need sdpa or eager, not 'flex_attention'"):
        attention(torch.zeros(1, 3, 32), position_embeddings=(torch.ones(1, 3, 8), torch.zeros(1, 3, 8)))
    assert attention.base_layer.config is model.config  # also after an error the module has its own config


def test_a_mask_alone_gives_the_positions() -> None:
    """Rows padded on the left without position ids, as other trainers give them."""
    model = battery.moved(SMALL, LLAMA)
    ids, pad = torch.tensor([LLAMA.examples[0].ids]), torch.full((1, 4), PAD)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        mask = torch.cat([torch.zeros_like(pad), torch.ones_like(ids)], 1)
        left = model(input_ids=torch.cat([pad, ids], 1), attention_mask=mask).logits
    close(left[:, 4:], plain, "left padding without position ids")


def test_nothing_enters_the_cache() -> None:
    model = battery.moved(SMALL, LLAMA)
    ids = torch.tensor([LLAMA.examples[0].ids])
    out = model(input_ids=ids, use_cache=True)
    assert out.past_key_values.get_seq_length() == ids.shape[1]
    assert out.logits.shape[1] == ids.shape[1]


def test_static_cache() -> None:
    model = battery.moved(SMALL, LLAMA)
    ids = torch.tensor([LLAMA.examples[0].ids])
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD, "min_new_tokens": 5}
    found = [
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **told, **more)
        for more in ({"use_cache": False}, {"cache_implementation": "static"})
    ]
    assert torch.equal(*found)


def test_attention_weights_are_those_of_the_text() -> None:
    model = battery.moved(SMALL, LLAMA)
    model.get_base_model().set_attn_implementation("eager")
    ids = torch.tensor([LLAMA.examples[0].ids])
    weights = model(input_ids=ids, output_attentions=True).attentions[0]
    assert weights.shape[-2:] == (ids.shape[1], ids.shape[1])
    assert bool((weights.sum(-1) < 1).all())  # the rest is on the prefix


@pytest.mark.parametrize(("architecture", "sites"), [("llama", 2), ("bert", 2), ("t5", 6)])
def test_count_when_served(architecture: str, sites: int, tmp_path) -> None:
    """2 l G d scalars an attention module, whatever made them; for MAM 2 R D + R + D a feed-forward besides."""
    world = next(w for w in WORLDS if w.architecture == architecture)
    base = world.base()
    features = {"llama": 16, "bert": 32, "t5": 32}[architecture]
    assert PREFIX(length=5, mlp=0).parameter_count(base) == sites * 2 * 5 * features
    for tuner in (SMALL, MAM.example()):
        model = folded(tuner, battery.moved(tuner, world))
        model.save_pretrained(tmp_path)
        from safetensors.torch import load_file

        stored = load_file(tmp_path / "adapter_model.safetensors")
        wanted = sites * 2 * 3 * features
        if tuner.name == "mam":
            wanted += len({k for k in stored if k.endswith("down.bias")}) * (2 * 4 * 32 + 4 + 32)
        assert sum(t.numel() for t in stored.values()) == wanted


def test_networks_are_stored_once(tmp_path) -> None:
    from safetensors.torch import load_file

    model = battery.wrapped(SMALL, LLAMA)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == SMALL.parameter_count(LLAMA.base())


def test_mistakes_are_errors() -> None:
    with pytest.raises(LuthierError, match=r"tuner\.length is 0"):
        PREFIX(length=0)
    with pytest.raises(LuthierError, match=r"tuner\.size is 0"):
        MAM(size=0).wrap(model_of("llama"), "causal_lm")


def test_opt_has_no_feed_forward_block() -> None:
    with pytest.raises(Refusal, match="nothing can be put beside it"):
        MAM.example().wrap(model_of("opt"), "causal_lm")


def several(world: World, names: tuple[str, ...]):
    """A model with adapters of these names, each moved away from its start in its own way."""
    model = battery.wrapped(SMALL, world)
    for name in names:
        model.add_adapter(name, model.peft_config["default"])
    with torch.no_grad():
        for i, name in enumerate(names):
            torch.manual_seed(i)
            for n, p in model.named_parameters():
                if f".{name}." in n:
                    p.add_(torch.randn_like(p) * 0.5)
    return model.eval()


@pytest.mark.parametrize("world", [w for w in WORLDS if w.task != "classification"], ids=lambda w: w.architecture)
def test_rows_with_prefixes_of_their_own(world: World) -> None:
    """A batch of mixed projects says what each project says alone, in one pass and in cached generation."""
    model, names = several(world, ("one", "two")), ["two", "__base__", "one", "two"]
    ids = torch.tensor([[11, 25, 7, 30], [9, 41, 8, 52], [11, 25, 7, 30], [64, 12, 13, 5]])
    more = {"decoder_input_ids": ids} if world.kind == "encoder-decoder" else {}
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=names, **more).logits
        for i, name in enumerate(names):
            row = {"input_ids": ids[i : i + 1], **{k: v[i : i + 1] for k, v in more.items()}}
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(**row).logits
            else:
                model.set_adapter(name)
                alone = model(**row).logits
            close(mixed[i : i + 1], alone, f"row {i}, {name}")
    assert not torch.allclose(mixed[0], mixed[2])
    if world.kind == "decoder":
        told = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
        mask = torch.ones_like(ids)
        together = model.generate(input_ids=ids, attention_mask=mask, adapter_names=names, **told)
        model.set_adapter("two")
        alone = model.generate(input_ids=ids[3:], attention_mask=mask[3:], **told)
        assert torch.equal(together[3:], alone)


def test_names_of_rows_are_checked() -> None:
    model, ids = several(LLAMA, ("one",)), torch.tensor([[11, 25, 7]])
    with pytest.raises(Refusal, match="no adapter 'three'; there are __base__, default, one"):
        model(input_ids=ids, adapter_names=["three"])
    with pytest.raises(Refusal, match="2 names for a batch of 1 rows"):
        model(input_ids=ids, adapter_names=["one", "one"])
    assert model(input_ids=ids).logits.shape[1] == 3  # nothing is left behind
    bottleneck, head = (
        catalog.load("tuners", "pfeiffer").example(),
        next(w for w in WORLDS if w.task == "classification"),
    )
    for tuner, world in ((MAM.example(), LLAMA), (bottleneck, LLAMA), (SMALL, head)):
        with pytest.raises(Refusal, match="not in this adapter or in a task head"):
            battery.wrapped(tuner, world)(input_ids=ids, adapter_names=["default"])
