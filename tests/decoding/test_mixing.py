"""Sums of models: identities to the last bit, prompts of their own, nuclei, vocabularies, and scores as generated."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from tiny_models import VOCABULARY, gpt2, llama, t5, tokenizer

import luthier
from luthier import sandbox
from luthier.core.method import Limits, LuthierError
from luthier.core.mixture import Member, Mixture, Other, Wrap, in_nucleus, shared_tokens
from luthier.core.subject import Subject
from luthier.decoding._family import stream
from luthier.decoding.beam import Beam
from luthier.decoding.contrast import Contrast
from luthier.decoding.eft_downscale import EFTDownscale
from luthier.decoding.eft_mix import EFTMix
from luthier.decoding.eft_upscale import EFTUpscale
from luthier.decoding.greedy import Greedy
from luthier.decoding.nucleus import Nucleus
from luthier.decoding.proxy_tuning import ProxyTuning
from luthier.verbs.load import decoder_of, load

PROMPTS = ["the cat", "in an on abcd er", "x", "1212 12 th", "hello there, how are you?"]
LIMITS = Limits(12, (2, 30), 0, seed=3)


def ids() -> list[list[int]]:
    return [tokenizer()(p)["input_ids"] for p in PROMPTS]


def near(model: Any, seed: int) -> Any:
    """A model not far from another one, as tuning leaves it."""
    out, rng = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in out.parameters():
            p.add_(0.2 * p.std() * torch.randn(p.shape, generator=rng))
    return out


@torch.no_grad()
def scores(decoder: Any, model: Any, tokens: int = 4) -> torch.Tensor:
    """Raw scores at several steps, through caches, for the ragged batch."""
    source, out = stream(decoder.over(model)), []
    out.append(source.start(ids()))
    for t in range(tokens):
        out.append(source.feed(torch.full((len(PROMPTS),), 40 + t)))
    return torch.stack(out)


def test_expert_and_anti_expert_alike_give_the_base_to_the_last_bit() -> None:
    base, small = llama(0), llama(1)
    plain = scores(Greedy(), base)
    for alpha in (0.3, 1.0, -2.0):
        assert torch.equal(scores(ProxyTuning(expert=small, anti_expert=small, alpha=alpha), base), plain)
    assert torch.equal(scores(ProxyTuning(expert=near(small, 0), anti_expert=small, alpha=0.0), base), plain)
    same = ProxyTuning(expert=small, anti_expert=small, choose=Nucleus(top_p=0.8)).generate(base, ids(), LIMITS)
    assert same == Nucleus(top_p=0.8).generate(base, ids(), LIMITS)


def test_base_and_anti_expert_alike_give_the_expert() -> None:
    small = llama(1)
    tuned = near(small, 0)
    wanted = scores(Greedy(), tuned).log_softmax(-1)
    for decoder in (
        ProxyTuning(expert=tuned, anti_expert=small), EFTUpscale(tuned=tuned, reference=small),
        EFTDownscale(tuned=tuned, reference=small), EFTMix(tuned=(tuned,), reference=small, weights=(1.0,)),
        EFTUpscale(tuned=tuned, reference=small, beta=1.7),
    ):  # fmt: skip
        found = scores(decoder, small).log_softmax(-1)
        assert float((found - wanted).abs().max()) < 1e-4
        assert [g.ids for g in decoder.generate(small, ids(), LIMITS)] == [
            g.ids for g in Greedy().generate(tuned, ids(), LIMITS)
        ]


def test_up_scaling_is_proxy_tuning_to_the_last_bit_and_one_reward_of_several() -> None:
    base, small = llama(0), llama(1)
    one, other = near(small, 0), near(small, 1)
    proxy = scores(ProxyTuning(expert=one, anti_expert=small), base)
    assert torch.equal(proxy, scores(EFTUpscale(tuned=one, reference=small), base))
    assert torch.equal(proxy, scores(EFTDownscale(tuned=one, reference=small), base))
    assert torch.equal(proxy, scores(EFTMix(tuned=(one, other), weights=(1.0, 0.0), reference=small), base))
    assert torch.equal(proxy, scores(ProxyTuning(base=base, expert=one), small)), "the small model is asked instead"
    assert torch.equal(proxy, scores(ProxyTuning(base=base, anti_expert=small), one))


def test_weights_are_not_renormalised() -> None:
    base, small = (copy.deepcopy(llama(seed)).double() for seed in (0, 1))
    one, other = near(small, 0), near(small, 1)
    parts = {n: scores(Greedy(), m).double().log_softmax(-1) for n, m in
             (("base", base), ("small", small), ("one", one), ("other", other))}  # fmt: skip
    found = scores(EFTMix(tuned=(one, other), weights=(0.7, 0.9), reference=small), base).double().log_softmax(-1)
    floor = {n: p.clamp(min=-30) for n, p in parts.items()}
    wanted = parts["base"] + 0.7 * floor["one"] + 0.9 * floor["other"] - 1.6 * floor["small"]
    assert float((found - wanted.log_softmax(-1)).abs().max()) < 1e-4


def test_logits_and_log_probabilities_and_constants_do_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    z = [torch.randn(5, 40, generator=rng) * 4 for _ in range(3)]
    mixture = Mixture([Member(llama(0)), Member(llama(1), 1.5), Member(gpt2(), -1.5)], size=40)
    plain = mixture.combine(z).log_softmax(-1)
    for changed in (
        [s.log_softmax(-1) for s in z], [s + 7 for s in z], [z[0], z[1] - 3, z[2] + torch.arange(5.0)[:, None]]
    ):  # fmt: skip
        assert float((mixture.combine(changed).log_softmax(-1) - plain).abs().max()) < 1e-5


def test_impossible_tokens_stay_impossible_and_never_become_nan() -> None:
    z = torch.zeros(1, 6)
    masked = z.clone()
    masked[0, 3:] = float("-inf")
    mixture = Mixture([Member(llama(0)), Member(llama(1)), Member(gpt2(), -1.0)], size=6)
    p = mixture.combine([masked, z, masked]).softmax(-1)
    assert torch.isfinite(p).all()
    assert float(p[0, 3:].sum()) == 0.0
    p = mixture.combine([z, masked, masked]).softmax(-1)
    assert float((p - 1 / 6).abs().max()) < 1e-6, "two models that rule a token out say nothing about it"
    assert float(mixture.combine([z, z, masked]).softmax(-1)[0, :3].sum()) < 1e-9, "at the floor, not beyond"


@pytest.mark.parametrize("decoder", [Greedy(), Nucleus(top_p=0.9), Beam(num_beams=3)], ids=lambda d: d.name)
@pytest.mark.parametrize("make", [llama, gpt2, t5], ids=lambda m: m.__name__)
def test_rows_alone_are_rows_in_a_batch(make: Any, decoder: Any) -> None:
    base, tuned = make(0), near(make(1), 0)
    mixed = EFTUpscale(tuned=tuned, reference=make(1), choose=decoder)
    together = mixed.generate(base, ids(), LIMITS)
    for row, g in zip(ids(), together, strict=True):
        alone = mixed.generate(base, [row], LIMITS)[0]
        assert (alone.ids, alone.stopped) == (g.ids, g.stopped)
        assert alone.logp == pytest.approx(g.logp, abs=1e-3)


@torch.no_grad()
def test_prompts_of_their_own_equal_stepping_by_hand() -> None:
    tok, base, small = tokenizer("bos"), llama(0), llama(1)
    tuned = near(small, 0)
    decoder = ProxyTuning(
        expert=tuned, anti_expert=small, expert_prompt="[user] {prompt} [assistant]", anti_expert_prompt="ab {prompt}"
    ).for_tokenizer(tok)
    prompts = [tok(p)["input_ids"] for p in PROMPTS]
    found = decoder.generate(base, prompts, Limits(6, (), 0))
    for row, g in zip(prompts, found, strict=True):
        assert row[0] == tok.bos_token_id
        middle = tok("[user] ", add_special_tokens=False)["input_ids"]
        end = tok(" [assistant]", add_special_tokens=False)["input_ids"]
        expert = [row[0], *middle, *row[1:], *end]
        anti = [row[0], *tok("ab ", add_special_tokens=False)["input_ids"], *row[1:]]
        said: list[int] = []
        for _ in range(6):
            a, b, c = (
                m(torch.tensor([[*p, *said]])).logits[0, -1].double().log_softmax(-1)
                for m, p in ((base, row), (tuned, expert), (small, anti))
            )
            said.append(int((a + b.clamp(min=-30) - c.clamp(min=-30)).argmax()))
        assert g.ids == said


def test_what_is_scored_is_what_is_generated() -> None:
    """pair_logp, logp and next_token_logp are the sum's: a greedy text is best at every token, with the logp it was given."""
    tok, base, small = tokenizer("bos"), llama(0), llama(1)
    for decoder in (
        ProxyTuning(expert=near(small, 0), anti_expert=small, alpha=0.8, expert_prompt="[user] {prompt} [assistant]"),
        EFTMix(tuned=(near(small, 0), near(small, 1)), weights=(0.6, 0.7), reference=small),
        Contrast(amateur=small),
    ):
        subject = Subject(base, tok, decoder=decoder)
        prompts = [subject.encode(p) for p in PROMPTS]
        made = subject.generations(prompts, 8)
        pairs = [(p, g.ids + ([tok.eos_token_id] if g.stopped else [])) for p, g in zip(prompts, made, strict=True)]
        for (logp, best), g in zip(subject.pair_logp(pairs), made, strict=True):
            assert best.all()
            assert logp.sum() == pytest.approx(g.logp, abs=1e-3)
        first = subject.next_token_logp(PROMPTS)
        assert first.argmax(-1).tolist() == [(g.ids or [tok.eos_token_id])[0] for g in made]
        assert first.shape == (len(PROMPTS), VOCABULARY)
    plain = Subject(base, tok).pair_logp(pairs)
    for mine in (
        ProxyTuning(expert=small, anti_expert=small),
        ProxyTuning(expert=near(small, 0), anti_expert=small, alpha=0.0),
    ):
        for (a, _), (b, _) in zip(Subject(base, tok, decoder=mine).pair_logp(pairs), plain, strict=True):
            assert (a == b).all()


def test_seq2seq_sums_are_scored_too() -> None:
    tok, base, small = tokenizer("seq2seq"), t5(0), t5(1)
    subject = Subject(base, tok, task="seq2seq_lm", decoder=EFTUpscale(tuned=near(small, 0), reference=small))
    prompts = [subject.encode(p) for p in PROMPTS]
    made = subject.generations(prompts, 6)
    pairs = [(p, g.ids + ([2] if g.stopped else [])) for p, g in zip(prompts, made, strict=True)]
    for (logp, best), g in zip(subject.pair_logp(pairs), made, strict=True):
        assert best.all()
        assert logp.sum() == pytest.approx(g.logp, abs=1e-3)


def test_adapter_is_the_merged_model() -> None:
    base, small = llama(0), llama(1)
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    expert = peft.get_peft_model(copy.deepcopy(small), config).eval()
    merged = copy.deepcopy(expert).merge_and_unload()
    a, b = (ProxyTuning(expert=m, anti_expert=small).generate(base, ids(), LIMITS) for m in (expert, merged))
    assert [g.ids for g in a] == [g.ids for g in b]


def test_trusted_nucleus() -> None:
    """Both readings: the nucleus of the sum is a sampler's; that of the tuned model says where the sum counts."""
    base, small = llama(0), llama(1)
    tuned = near(small, 0)
    assert torch.equal(
        scores(EFTUpscale(tuned=tuned, reference=small, trusted_top_p=1.0), base),
        scores(EFTUpscale(tuned=tuned, reference=small), base),
    )
    found = scores(EFTUpscale(tuned=tuned, reference=small, trusted_top_p=0.5), base)
    plain, p = scores(Greedy(), base), scores(Greedy(), tuned).softmax(-1)
    inside = in_nucleus(p, 0.5)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(found[~inside], plain[~inside])
    assert torch.equal(found[inside], scores(EFTUpscale(tuned=tuned, reference=small), base)[inside])


def test_nucleus_is_the_smallest_set() -> None:
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    for share, size in ((0.3, 1), (0.5, 1), (0.51, 2), (0.76, 3), (0.95, 4), (1.0, 4)):
        kept = in_nucleus(p, share)
        assert int(kept.sum()) == size
        assert set(p[kept].tolist()) == set(sorted(p.tolist(), reverse=True)[:size])


def test_black_box_and_plausible_tokens() -> None:
    base, small = llama(0), llama(1)
    plain = scores(Greedy(), base)
    few = scores(ProxyTuning(expert=near(small, 0), anti_expert=small, top=5), base)
    assert (torch.isfinite(few).sum(-1) == 5).all()
    assert torch.equal(torch.isfinite(few), plain >= plain.topk(5).values[..., -1:])
    apart = scores(Contrast(amateur=small, alpha=0.2), base)
    p = plain.softmax(-1)
    assert torch.equal(torch.isfinite(apart), p >= 0.2 * p.amax(-1, keepdim=True))
    own = Contrast(amateur=base, beta=3.0).generate(base, ids(), LIMITS)
    assert [g.ids for g in own] == [g.ids for g in Greedy().generate(base, ids(), LIMITS)]


def test_interpolation_moves_from_one_behaviour_to_the_other() -> None:
    base, small = llama(0), llama(1)
    one, other = near(small, 0), near(small, 1)
    apart = scores(Greedy(), one).log_softmax(-1) - scores(Greedy(), other).log_softmax(-1)
    token = apart[0].argmax(-1)  # what the first behaviour likes better, by row
    previous = None
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = scores(EFTMix(tuned=(one, other), weights=(share, 1 - share), reference=small), base)[0].log_softmax(-1)
        now = found.gather(1, token[:, None])
        assert previous is None or (now > previous).all()
        previous = now


def test_other_vocabularies_are_refused_in_one_line() -> None:
    small = copy.deepcopy(llama(1))
    small.resize_token_embeddings(96)
    with pytest.raises(LuthierError, match="128 and 96 token scores do not share a vocabulary"):
        EFTUpscale(tuned=small, reference=small).generate(llama(0), ids(), LIMITS)
    tok = tokenizer()
    for change, words in (
        (lambda v: {t: (i ^ 1 if i in (40, 41) else i) for t, i in v.items()}, r"different tokenizers \(token 40 is"),
        (lambda v: {t: i for t, i in v.items() if i < 80}, "has 80 tokens"),
    ):

        class Changed:
            def get_vocab(self, change: Any = change) -> dict[str, int]:
                return change(tok.get_vocab())

            def get_added_vocab(self) -> dict[str, int]:
                return {}

        with pytest.raises(LuthierError, match=words) as told:
            Contrast(amateur="other").for_models(lambda _: Other(llama(1), Changed(), "other"), tok)
        assert "'other'" in str(told.value)
        assert "\n" not in str(told.value)
    longer = copy.deepcopy(tok)
    longer.add_special_tokens({"additional_special_tokens": ["<|pad|>"]})
    assert shared_tokens([("a", tok), ("b", longer)]) == len(tok)
    assert shared_tokens([("a", longer), ("b", tok)]) == len(tok)


def test_a_longer_head_is_cut() -> None:
    """Rows that pad a table beyond the tokens that all models know take no part."""
    base, small = llama(0), llama(1)
    tuned = near(small, 0)
    wide = copy.deepcopy(tuned)
    wide.resize_token_embeddings(136)
    with torch.no_grad():
        wide.get_output_embeddings().weight[VOCABULARY:] = 0.0
        found, plain = (
            stream(Mixture([Member(base), Member(m), Member(small, -1.0)], size=VOCABULARY)).start(ids())
            for m in (wide, tuned)
        )
    assert found.shape == plain.shape == (len(PROMPTS), VOCABULARY)
    assert float((found.log_softmax(-1) - plain.log_softmax(-1)).abs().max()) < 1e-4
    few = stream(Mixture([Member(base), Member(tuned)], size=100))
    with torch.no_grad():
        assert few.start(ids()).shape[1] == 100


def test_options_that_make_no_sense() -> None:
    model = llama(0)
    for make, words in (
        (lambda: ProxyTuning(expert=model), "give all but one"),
        (lambda: ProxyTuning(base=model, expert=model, anti_expert=model), "the one left out"),
        (lambda: EFTMix(tuned=(model, model), reference=model, weights=(1.0,)), "2 tuned models and 1 weights"),
        (lambda: EFTUpscale(tuned=model, reference=model, beta=0.0), "beta"),
        (lambda: EFTUpscale(tuned=model, reference=model, trusted_top_p=0.0), "trusted_top_p"),
        (lambda: EFTDownscale(tuned=model, reference=model, draft_tokens=2), "draft_tokens"),
        (lambda: ProxyTuning(expert="a", anti_expert="b").over(model), "not loaded"),
        (lambda: ProxyTuning(expert="a", anti_expert="b", choose="greddy"), "did you mean 'greedy'"),
        (lambda: ProxyTuning(expert=model, anti_expert=model, expert_prompt="no place").for_tokenizer(tokenizer()), "{prompt}"),
        (lambda: Contrast(amateur=model, alpha=2.0), "alpha"),
        (lambda: Mixture([Member(model, -1.0), Member(model)]), "positive weight"),
    ):  # fmt: skip
        with pytest.raises((LuthierError, ValueError), match=words):
            make()


def test_none_of_the_models_changes() -> None:
    base, small = llama(0), llama(1)
    tuned = near(small, 0)
    before = [p.clone() for m in (base, tuned, small) for p in m.parameters()]
    EFTUpscale(tuned=tuned, reference=small, draft_tokens=2).generate(base, ids(), LIMITS)
    after = [p for m in (base, tuned, small) for p in m.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


def test_by_name_from_a_recipe_section() -> None:
    """Models are loaded beside the asked one, one load for each name; flags of a method inside a method are dotted."""
    decoder = decoder_of({"name": "proxy_tuning", "expert": "nano-1m", "anti_expert": "nano-1m", "choose.name": "nucleus",
                          "choose.top_p": 0.5})  # fmt: skip
    assert decoder.chooser == Nucleus(top_p=0.5)
    subject = load("nano-1m").subject(decoder)
    assert subject.decoder.expert.model is subject.decoder.anti_expert.model
    assert subject.decoder.expert.size == len(sandbox.tokenizer())
    assert subject.decoder.alone() == Nucleus(top_p=0.5)
    row = sandbox.rows("facts", task="verbatim", part="known", n=1)[0]
    told = {"name": "proxy_tuning", "expert": "nano-1m", "anti_expert": "nano-1m"}
    assert luthier.generate("nano-1m", [row["prompt"]], max_new_tokens=4, decoding=told) == luthier.generate(
        "nano-1m", [row["prompt"]], max_new_tokens=4
    )
    with pytest.raises(LuthierError, match="did you mean 'nano-"):
        load("nano-1m").subject(decoder_of({"name": "contrast", "amateur": "nano-2m"}))


def test_wrap_keeps_the_bos_in_front() -> None:
    wrap = Wrap((7, 8), (9,), bos=1)
    assert wrap([1, 4, 5]) == [1, 7, 8, 4, 5, 9]
    assert wrap([4, 5]) == [7, 8, 4, 5, 9]
    assert Wrap()([1, 4]) == [1, 4]
    assert len(wrap) == 3
