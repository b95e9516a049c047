"""What a token adds to a text: four kinds of tokenizers, special tokens, and one that cannot be told."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from luthier.core.method import LuthierError
from luthier.core.spelling import _alphabet, spelling
from luthier.sandbox import tokenizer

TEXT = 'a 12, {"b": [0.5, true]}\n- a: yes; no. Größe 🙂'


def fast(model: object, decoder: object = None, before: object = None, **names: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.decoder, backend.pre_tokenizer = decoder, before
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def pieces() -> PreTrainedTokenizerFast:
    """As sentencepiece writes them: blanks as a mark, bytes beside, the blank at the start of a text dropped."""
    words = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *'abeinorsty12,.;:-{}[]"0', "▁a", "es", "▁1"]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(words))}
    joined = models.BPE(vocab, [("▁", "a"), ("e", "s"), ("▁", "1")], unk_token="<unk>", byte_fallback=True)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    before = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    return fast(joined, decoders.Sequence(steps), before, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("make", [tokenizer, pieces])
def test_the_bytes_of_its_tokens_are_the_text(make) -> None:
    found = make()
    ids = found(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(spelling(found)[i] for i in ids).decode().lstrip() == TEXT


def test_bytes_and_blanks_of_pieces() -> None:
    found = pieces()
    bytes_ = dict(zip(found.convert_ids_to_tokens(range(len(found))), spelling(found)))
    assert bytes_["<0xC3>"] == b"\xc3" and bytes_["▁a"] == b" a" and bytes_["es"] == b"es" and bytes_["</s>"] == b""


def test_special_tokens_add_nothing_and_added_words_themselves() -> None:
    found = tokenizer().__class__.from_pretrained(tokenizer().name_or_path) if tokenizer().name_or_path else tokenizer()
    found.add_tokens(["<call>"])
    found.add_special_tokens({"additional_special_tokens": ["<quiet>"]})
    bytes_ = spelling(found)
    assert bytes_[found.convert_tokens_to_ids("<call>")] == b"<call>"
    assert bytes_[found.convert_tokens_to_ids("<quiet>")] == b"" == bytes_[found.eos_token_id]


def test_whole_words_come_with_their_blank() -> None:
    words = fast(models.WordLevel({"<unk>": 0, "a": 1, "yes": 2}, unk_token="<unk>"), None, pre_tokenizers.Whitespace(),
                 unk_token="<unk>")  # fmt: skip
    assert spelling(words) == (b"", b" a", b" yes")


def test_the_byte_alphabet_is_the_one_of_the_library() -> None:
    assert set(_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for byte in range(128):
        assert _alphabet()[level.pre_tokenize_str(chr(byte))[0][0]] == byte


def test_tokens_that_are_joined_in_another_way_are_refused() -> None:
    odd = fast(
        models.WordLevel({"<unk>": 0, "a": 1, "12": 2}, unk_token="<unk>"), decoders.CTC(), pre_tokenizers.Digits()
    )
    with pytest.raises(LuthierError, match="in a way of its own"):
        spelling(odd)
