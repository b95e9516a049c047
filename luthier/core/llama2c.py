"""llama2.c checkpoints as ordinary transformers Llamas: `load_checkpoint(path)` gives model and tokenizer.

    v1      uint32 0x616b3432, int32 version 1, 7 int32 sizes, uint8 shared classifier, zeros up to byte 256; float32
    legacy  7 int32 sizes (vocabulary negative: own classifier); float32, with the tables of the rotation in between
    sizes   dim D, hidden F, layers L, heads H, key-value heads K, vocabulary V, context; d = D / H per head
    tensors (L, out, in) one role after the other, each for all layers

Rotation: llama2.c turns the pairs (2j, 2j + 1) of a head, transformers the pairs (j, j + d/2). Both are the same
network when the rows of W_q and W_k change places within each head:  W'[s d/2 + j] = W[2j + s],  s in {0, 1}.

tokenizer.bin (beside the checkpoint): int32 longest piece, then per piece float32 score, int32 bytes, the bytes. It is
sentencepiece's BPE: of all neighbours that form a piece, the pair of the best score is joined, the leftmost of equal
ones first. Here it is a list of merges in the order of the scores.
Departures: "<unk>" in a text is text, not token 0 (every byte has a piece, so nothing is ever unknown); the character
U+2581 comes back as a blank, as in sentencepiece. Quantised checkpoints (version 2) are refused.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.core.method import LuthierError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAGIC, HEADER_BYTES = 0x616B3432, 256
NORM_EPS, ROPE_THETA = 1e-5, 10000.0
BOS, EOS, FIRST_BYTE, FIRST_PIECE = 1, 2, 3, 259
BLANK = "▁"

Tensors = dict[str, NDArray[np.float32]]

_ORDER = {
    "v1": ("attention_norm", "ffn_norm", "norm", "tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "output"),
    "legacy": ("tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm",
               "freqs_cos", "freqs_sin", "output"),
}  # fmt: skip

_NAMES = {
    "attention_norm": "input_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "w1": "mlp.gate_proj", "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}  # fmt: skip
"""Role in llama2.c to module of a transformers layer."""


@dataclass(frozen=True)
class Sizes:
    """The header of a checkpoint."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    shared: bool = True

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a checkpoint may hold."""
        D, F, L, V = self.dim, self.hidden, self.layers, self.vocabulary
        K = self.kv_heads * self.head_dim
        turns = (self.context, self.head_dim // 2)
        return {
            "tok_embeddings": (V, D), "attention_norm": (L, D), "ffn_norm": (L, D), "norm": (D,), "wq": (L, D, D),
            "wk": (L, K, D), "wv": (L, K, D), "wo": (L, D, D), "w1": (L, F, D), "w2": (L, D, F), "w3": (L, F, D),
            "freqs_cos": turns, "freqs_sin": turns, "output": (V, D),
        }  # fmt: skip


def load_checkpoint(
    path: str | Path, tokenizer: str | Path | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model (float32, eval mode) and tokenizer of a checkpoint. `tokenizer`: default is tokenizer.bin beside it.

    `save_pretrained` of the two makes an ordinary transformers folder. Raises LuthierError for a file that is none.
    """
    path = Path(path)
    sizes, tensors = read_checkpoint(path)
    fast = load_tokenizer(tokenizer or path.with_name("tokenizer.bin"), sizes.context)
    if len(fast) != sizes.vocabulary:
        raise LuthierError(f"{path}: {sizes.vocabulary} tokens, but its tokenizer has {len(fast)}: name the right one")
    return to_llama(sizes, tensors), fast


# --------------------------------------------------------------------------------------------------- checkpoint


def read_checkpoint(path: str | Path) -> tuple[Sizes, Tensors]:
    """Sizes and tensors by llama2.c's names, as the file holds them. Raises LuthierError unless every byte fits."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LuthierError(f"{path}: cannot be read ({error.strerror})") from error
    kind, sizes, at = _header(data, path)
    shapes = sizes.shapes()
    names = [n for n in _ORDER[kind] if n != "output" or not sizes.shared]
    needed = at + 4 * sum(int(np.prod(shapes[n])) for n in names)
    if needed != len(data):
        raise LuthierError(
            f"{path}: not a whole llama2.c checkpoint: its header ({kind}: {sizes}) asks for {needed:,} bytes, "
            f"the file has {len(data):,}"
        )
    tensors: Tensors = {}
    for name in names:
        count = int(np.prod(shapes[name]))
        tensors[name] = np.frombuffer(data, "<f4", count, at).reshape(shapes[name])
        at += 4 * count
    return sizes, tensors


def _header(data: bytes, path: Path) -> tuple[str, Sizes, int]:
    """(format, sizes, where the tensors start)."""
    if len(data) < 28:
        raise LuthierError(f"{path}: {len(data)} bytes: not a llama2.c checkpoint")
    if struct.unpack_from("<I", data)[0] == MAGIC and len(data) >= HEADER_BYTES:
        version, D, F, L, H, K, V, context = struct.unpack_from("<8i", data, 4)
        if version != 1:
            raise LuthierError(f"{path}: llama2.c format {version} is not read here: export it as version 1 (float32)")
        return "v1", _sensible(Sizes(D, F, L, H, K, V, context, bool(data[36])), path), HEADER_BYTES
    D, F, L, H, K, V, context = struct.unpack_from("<7i", data)
    return "legacy", _sensible(Sizes(D, F, L, H, K, abs(V), context, V > 0), path), 28


def _sensible(sizes: Sizes, path: Path) -> Sizes:
    if min(astuple(sizes)[:7]) < 1 or max(astuple(sizes)[:7]) > 2**24:
        raise LuthierError(f"{path}: not a llama2.c checkpoint: neither its magic number nor plausible sizes")
    if sizes.dim % sizes.heads or sizes.head_dim % 2 or sizes.heads % sizes.kv_heads:
        raise LuthierError(f"{path}: sizes that do not fit each other: {sizes}")
    return sizes


def to_llama(sizes: Sizes, tensors: Tensors) -> LlamaForCausalLM:
    """The transformers model that computes what llama2.c computes. The random state is left as it was."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.dim, intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.context, rms_norm_eps=NORM_EPS, tie_word_embeddings=sizes.shared,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA}, hidden_act="silu", attention_bias=False,
        mlp_bias=False, bos_token_id=BOS, eos_token_id=EOS, dtype=torch.float32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in _state(sizes, tensors)})
    # llama2.c ends a story at the begin token of the next one; tuned models end with the end token
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, BOS], pad_token_id=EOS)
    return model.eval()


def _state(sizes: Sizes, tensors: Tensors) -> list[tuple[str, NDArray[np.float32]]]:
    """Tensors by transformers' names."""
    embedding = tensors["tok_embeddings"]
    state = [
        ("model.embed_tokens.weight", embedding),
        ("model.norm.weight", tensors["norm"]),
        ("lm_head.weight", tensors.get("output", embedding)),
    ]
    heads = {"wq": sizes.heads, "wk": sizes.kv_heads}
    for role, module in _NAMES.items():
        for layer, weight in enumerate(tensors[role]):
            halves = half_split(weight, heads[role]) if role in heads else weight
            state.append((f"model.layers.{layer}.{module}.weight", halves))
    return state


def half_split(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows (heads * d, D) for rotation of adjacent pairs, put in order for rotation of halves."""
    rows, D = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, D)  # (h, j, s, D)
    return pairs.swapaxes(1, 2).reshape(rows, D)


# ---------------------------------------------------------------------------------------------------- tokenizer


def load_tokenizer(path: str | Path, context: int | None = None) -> PreTrainedTokenizerFast:
    """tokenizer.bin as a fast tokenizer: begin token in front, bytes for what has no piece; `context` is the window."""
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces, scores = read_pieces(path)
    backend = Tokenizer(
        BPE(
            {piece: i for i, piece in enumerate(pieces)}, merges(pieces, scores), unk_token="<unk>",
            fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", BOS)]
    )
    more: dict[str, Any] = {} if context is None else {"model_max_length": context}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False, **more,
    )  # fmt: skip


def read_pieces(path: str | Path) -> tuple[list[str], list[float]]:
    """Pieces (blanks as U+2581, special tokens by their usual names) and their scores."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LuthierError(f"{path}: the checkpoint's tokenizer cannot be read ({error.strerror})") from error
    raw, scores, at = [], [], 4
    try:
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8 + length
            if length < 0 or at > len(data):
                raise ValueError("a piece reaches beyond the end of the file")
            raw.append(data[at - length : at].decode("utf-8"))
            scores.append(score)
    except (struct.error, ValueError) as error:
        raise LuthierError(f"{path}: not a llama2.c tokenizer: piece {len(raw)}: {error}") from error
    if raw[FIRST_BYTE:FIRST_PIECE] != [f"<0x{b:02X}>" for b in range(256)]:
        raise LuthierError(f"{path}: not a llama2.c tokenizer: pieces 3 to 258 are not the 256 bytes")
    pieces = ["<unk>", "<s>", "</s>", *raw[FIRST_BYTE:FIRST_PIECE], *(p.replace(" ", BLANK) for p in raw[FIRST_PIECE:])]
    if len(set(pieces)) < len(pieces):
        raise LuthierError(f"{path}: a piece stands twice in this tokenizer")
    return pieces, scores


def merges(pieces: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score of the result first; byte and special tokens take no part."""
    ids = {piece: i for i, piece in enumerate(pieces) if i >= FIRST_PIECE}
    found = [
        (-scores[i], i, len(piece) - cut, (piece[:cut], piece[cut:]))
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [pair for *_, pair in sorted(found)]
