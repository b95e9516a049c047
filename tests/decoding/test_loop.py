"""The step loop: transformers' greedy search, caches, padding, stops, adapters that put a prompt in front."""

from __future__ import annotations

import peft
import pytest
import torch
from tiny_models import gpt2, llama, t5, tokenizer

from luthier.core.method import Limits, Refusal
from luthier.core.subject import Subject, TextLimits
from luthier.decoding._family import Stream, decode, stream
from luthier.decoding.beam import Beam
from luthier.decoding.greedy import Greedy
from luthier.decoding.nucleus import Nucleus

PROMPTS = ["the cat", "in an on abcd er", "x", "1212 12 th", "hello there, how are you?"]
MODELS = {"llama": llama, "gpt2": gpt2, "t5": t5}
DECODERS = {"greedy": Greedy(), "nucleus": Nucleus(top_p=0.9), "beam": Beam(num_beams=3)}


def ids() -> list[list[int]]:
    return [tokenizer()(p)["input_ids"] for p in PROMPTS]


def reference(model: torch.nn.Module, row: list[int], limits: Limits, **options: object) -> list[int]:
    """transformers' generate on one row, without prompt and stop token."""
    out = model.generate(
        input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), do_sample=False,
        max_new_tokens=limits.max_new_tokens, eos_token_id=list(limits.stop_ids), pad_token_id=0, **options,
    )[0].tolist()  # fmt: skip
    out = out[1:] if model.config.is_encoder_decoder else out[len(row) :]
    return out[: next((i for i, t in enumerate(out) if t in limits.stop_ids), len(out))]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_transformers_greedy(name: str) -> None:
    model, limits = MODELS[name](), Limits(24, (2, 30, 48), 0)
    for row, g in zip(ids(), Greedy().generate(model, ids(), limits), strict=True):
        assert g.ids == reference(model, row, limits)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (4, 0.0), (3, 2.0), (1, 1.0)])
def test_beam_is_transformers_beam(name: str, beams: int, penalty: float) -> None:
    model, limits = MODELS[name](), Limits(12, (2, 30, 48, 60), 0)
    found = Beam(num_beams=beams, length_penalty=penalty).generate(model, ids(), limits)
    for row, g in zip(ids(), found, strict=True):
        assert g.ids == reference(model, row, limits, num_beams=beams, length_penalty=penalty)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_row_alone_is_row_in_batch(name: str, decoder: str) -> None:
    model, limits = MODELS[name](), Limits(14, (2, 30), 0, seed=3)
    together = DECODERS[decoder].generate(model, ids(), limits)
    for row, g in zip(ids(), together, strict=True):
        alone = DECODERS[decoder].generate(model, [row], limits)[0]
        assert (alone.ids, alone.stopped) == (g.ids, g.stopped)
        assert alone.logp == pytest.approx(g.logp, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_cached_is_uncached(name: str) -> None:
    model, limits = MODELS[name](), Limits(14, (2, 30), 0)
    fast, slow = (
        [g.ids for g in decode(stream(model, 0, cached), ids(), limits, Greedy().rule)] for cached in (True, False)
    )
    assert fast == slow


def test_logp_is_the_models_own() -> None:
    model, limits = llama(), Limits(10, (), 0)
    for decoder in DECODERS.values():
        for row, g in zip(ids(), decoder.generate(model, ids(), limits), strict=True):
            with torch.no_grad():
                logp = model(torch.tensor([row + g.ids])).logits[0].log_softmax(-1)
            at = range(len(row) - 1, len(row) + len(g.ids) - 1)
            assert g.logp == pytest.approx(sum(float(logp[t, i]) for t, i in zip(at, g.ids, strict=True)), abs=1e-3)


def test_every_row_stops_by_itself() -> None:
    model = llama()
    free = Greedy().generate(model, ids(), Limits(20, (), 0))
    stop = free[1].ids[4]
    for before, g in zip(free, Greedy().generate(model, ids(), Limits(20, (stop,), 0)), strict=True):
        end = before.ids.index(stop) if stop in before.ids else 20
        assert g.ids == before.ids[:end]
        assert g.stopped == (stop in before.ids)


def test_stop_string_split_over_tokens() -> None:
    tok, model = tokenizer(), llama()
    free = Subject(model, tok, decoder=Greedy()).generate(PROMPTS, 20)
    chosen = next(t for t in free if len(t) > 8 and t.isprintable())
    stop = chosen[3:6]
    assert stop not in [tok.decode([i]) for i in range(len(tok))], "the stop string must need several tokens"
    for decoder in (Greedy(), None):
        for before, text in zip(free, Subject(model, tok, decoder=decoder).generate(PROMPTS, 20, [stop]), strict=True):
            assert text == before.split(stop)[0]
    limits = TextLimits(20, (), 0, finished=lambda ids: stop in tok.decode(ids))
    found = Greedy().generate(model, ids(), limits)
    assert any(g.stopped and len(g.ids) < 20 for g in found), "the row must end there, not only be cut"


def test_no_tokens_asked_for() -> None:
    for decoder in DECODERS.values():
        assert [g.ids for g in decoder.generate(llama(), ids(), Limits(0))] == [[]] * len(PROMPTS)
        assert decoder.generate(llama(), [], Limits(4)) == []


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(Refusal, match="empty prompt"):
        Greedy().generate(llama(), [[]], Limits(4))


def test_modes_and_gradients_are_left_alone() -> None:
    model = llama()
    model.train()
    model.model.layers[0].eval()
    Greedy().generate(model, ids(), Limits(3))
    assert model.training
    assert not model.model.layers[0].training
    model.eval()


class Mixture(Stream):
    """Two models at one step, each with its own prompts and cache: what later methods build on."""

    def __init__(self, streams: list[Stream], prompts: list[list[list[int]]], weights: list[float]):
        self.streams, self.prompts, self.weights = streams, prompts, weights

    def mix(self, scores: list[torch.Tensor]) -> torch.Tensor:
        return sum(w * s.log_softmax(-1) for w, s in zip(self.weights, scores, strict=True))

    def start(self, ids: object) -> torch.Tensor:
        return self.mix([s.start(p) for s, p in zip(self.streams, self.prompts, strict=True)])

    def feed(self, token: torch.Tensor) -> torch.Tensor:
        return self.mix([s.feed(token) for s in self.streams])

    def keep(self, rows: torch.Tensor) -> None:
        for s in self.streams:
            s.keep(rows)


@torch.no_grad()
def test_loop_drives_several_models_and_constraints() -> None:
    one, other, limits = llama(0), llama(1), Limits(8, (2,), 0)
    prompts = [ids(), [[5, *row] for row in ids()]]
    mixed = decode(Mixture([stream(one), stream(other)], prompts, [1.0, 0.0]), ids(), limits, Greedy().rule)
    assert [g.ids for g in mixed] == [g.ids for g in Greedy().generate(one, ids(), limits)]
    mixed = decode(Mixture([stream(one), stream(other)], prompts, [0.0, 1.0]), ids(), limits, Greedy().rule)
    assert [g.ids for g in mixed] == [g.ids for g in Greedy().generate(other, prompts[1], limits)]
    allowed = torch.full((128,), -torch.inf)
    allowed[40:44] = 0.0
    found = decode(stream(one), ids(), limits, Greedy().rule, shape=lambda z, rows: z + allowed)
    assert all(40 <= t < 44 for g in found for t in g.ids)


def adapted(kind: str, model: torch.nn.Module) -> torch.nn.Module:
    """A fresh copy of the model with a random adapter of one of peft's kinds."""
    import copy

    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    configs = {
        "lora": lambda: peft.LoraConfig(
            task_type=task, r=4, target_modules=["q", "v"] if "SEQ" in task else ["q_proj", "v_proj"],
            init_lora_weights=False,
        ),
        "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5),
        "ptuning": lambda: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=5, encoder_hidden_size=16),
        "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5),
    }  # fmt: skip
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(copy.deepcopy(model), configs[kind]()).eval()
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "prompt_encoder" in name:
                p.copy_(torch.randn_like(p))
    return wrapped


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("kind", ["lora", "prompt", "ptuning", "prefix"])
def test_adapters(kind: str, name: str) -> None:
    """A row in a left-padded batch is the plain wrapper's own argmax, step by step, without cache or padding."""
    model, limits = adapted(kind, MODELS[name]()), Limits(8, (), 0)
    found = Greedy().generate(model, ids(), limits)
    assert [g.ids for g in found] != [g.ids for g in Greedy().generate(MODELS[name](), ids(), limits)]
    for row, g in zip(ids(), found, strict=True):
        assert g.ids == by_hand(model, row, 8)
    beam = Beam(num_beams=1).generate(model, ids(), limits)
    assert [g.ids for g in beam] == [g.ids for g in found]


@torch.no_grad()
def by_hand(model: torch.nn.Module, row: list[int], n: int) -> list[int]:
    said: list[int] = []
    for _ in range(n):
        seq2seq = model.config.is_encoder_decoder
        grid = torch.tensor([row if seq2seq else row + said])
        inputs = {"input_ids": grid, "attention_mask": torch.ones_like(grid)}
        if seq2seq:
            inputs["decoder_input_ids"] = torch.tensor([[0, *said]])
        said.append(int(model(**inputs).logits[0, -1].argmax()))
    return said
