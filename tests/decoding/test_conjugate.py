"""Conjugation: the identity changes nothing, answers come back whole, refusals stay, and what cannot be done is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import llama, tokenizer

from luthier.core.method import Decoder, Generation, Limits, LuthierError, Refusal
from luthier.core.subject import Subject
from luthier.decoding.conjugate import Conjugate
from luthier.decoding.greedy import Greedy

SWAP = {"name": "alphabet_map", "pairs": {"a": "q", "b": "z", "1": "7"}}
PROMPTS = ["a big bat 1", "cab", "hello there"]


@dataclass(frozen=True)
class Says(Decoder):
    """Prompts to prepared texts."""

    paper: ClassVar[str] = ""
    said: Any = None
    heard: Any = None

    def generate(self, model: Any, ids: Sequence[Sequence[int]], limits: Limits) -> list[Generation]:
        texts = [tokenizer().decode(row) for row in ids]
        self.heard.extend(texts)
        return [Generation(tokenizer()(self.said(t))["input_ids"], False, 0.0) for t in texts]


def said(decoder: Decoder, prompts: Sequence[str], n: int = 12, stop: Sequence[str] = ()) -> list[str]:
    return Subject(llama(), tokenizer(), decoder=decoder).generate(prompts, n, stop)


def test_identity_says_what_the_inner_decoder_says() -> None:
    ids = [tokenizer()(p)["input_ids"] for p in PROMPTS]
    limits = Limits(max_new_tokens=9, stop_ids=(2,))
    one, other = (d.generate(llama(), ids, limits) for d in (Conjugate().for_tokenizer(tokenizer()), Greedy()))
    assert [(g.ids, g.stopped, g.logp) for g in one] == [(g.ids, g.stopped, g.logp) for g in other]


def test_identity_gives_the_same_scores() -> None:
    """A transform that leaves a text alone leaves its ids alone, so that logits are the same numbers."""
    decoder = Conjugate(transform={"name": "alphabet_map", "pairs": {"\u4e2d": "\u4e3d"}}).for_tokenizer(tokenizer())
    for prompt in PROMPTS:
        ids = tokenizer()(prompt)["input_ids"]
        there = decoder._rewritten(ids, decoder.by.forward)
        assert there == ids
        with torch.no_grad():
            a, b = (llama()(torch.tensor([x])).logits for x in (ids, there))
        assert torch.equal(a, b)


def test_the_prompt_goes_out_and_the_whole_answer_comes_back() -> None:
    heard: list[str] = []
    inner = Says(lambda t: f"{t} qz7 abab qq", heard)
    assert said(Conjugate(transform=SWAP, choose=inner), ["a bad 1"]) == ["a bad 1 ab1 qzqz aa"]
    assert heard == ["a bad 1", "q zqd 7"]


def test_it_is_the_model_in_other_signs() -> None:
    by = Conjugate(transform=SWAP).by
    wanted = [by.inverse(t) for t in said(Greedy(), [by.forward(p) for p in PROMPTS])]
    assert said(Conjugate(transform=SWAP), PROMPTS) == wanted != said(Greedy(), PROMPTS)


def test_stop_strings_are_those_of_the_answer() -> None:
    by = Conjugate(transform=SWAP).by
    whole = said(Conjugate(transform=SWAP), PROMPTS)
    stop = next(c for text in whole for c in text if by.forward(c) != c)
    assert said(Conjugate(transform=SWAP), PROMPTS, stop=[stop]) == [t.split(stop)[0] for t in whole]


def test_where_the_model_refuses_the_refusal_stays() -> None:
    heard: list[str] = []
    inner = Says(lambda t: "I cannot help with that." if "bad" in t else "zqd: " + t, heard)
    assert said(Conjugate(transform=SWAP, choose=inner), ["a bad 1", "a cat"]) == [
        "I cannot help with that.",
        "bad: a cat",
    ]
    assert heard == ["a bad 1", "a cat", "q cqt"], "the refused prompt went to the model in other signs"


def test_special_tokens_stay() -> None:
    words = tokenizer("bos")
    decoder = Conjugate(transform=SWAP).for_tokenizer(words)
    ids = [*words("ab")["input_ids"], words.eos_token_id, *words("ba", add_special_tokens=False)["input_ids"]]
    assert words.decode(decoder._rewritten(ids, decoder.by.forward)) == "<bos>qz<eos>zq"


def test_other_decoders_inside() -> None:
    drawn = Conjugate(transform=SWAP, choose={"name": "nucleus", "temperature": 0.0})
    assert said(drawn, PROMPTS) == said(Conjugate(transform=SWAP), PROMPTS)


def test_what_cannot_be_done_is_said() -> None:
    subject = Subject(llama(), tokenizer(), decoder=Conjugate(transform=SWAP))
    with pytest.raises(Refusal, match="log-probabilities of given texts are not its own"):
        subject.logp(["a"], ["b"])
    with pytest.raises(Refusal, match="do not fit the window"):
        said(Conjugate(transform={"name": "template_swap", "pairs": {"a": "a very long phrase " * 9}}), ["a"])
    with pytest.raises(LuthierError, match="needs the tokenizer"):
        Conjugate(transform=SWAP).generate(llama(), [[11, 12]], Limits())
    with pytest.raises(LuthierError, match="did you mean 'leetspeak'"):
        Conjugate(transform="leetspeek")
