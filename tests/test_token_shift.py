"""Token shift: ranks, teacher forcing against steps, the untuned model behind examples, ends, and two tokenizers."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier import sandbox
from luthier.analysis.token_shift import _shift as shift
from luthier.analysis.token_shift import by, compare, kind_of, shares, shifts, table_of
from luthier.core.layout import Layout
from luthier.core.method import LuthierError
from luthier.core.subject import Subject

PROMPTS = ["Q: Where does Godi Gipo live? A:", "Q: What does Nusa Famo like? A:", "copy: a b c ->"]


@pytest.fixture(scope="module")
def pair() -> tuple[Subject, Subject]:
    """The nano model, and the same pushed a little."""
    base, tokenizer = sandbox.load("nano-1m")
    tuned, rng = copy.deepcopy(base), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.1 * p.std(unbiased=False) * torch.randn(p.shape, generator=rng))
    return Subject(base, tokenizer, name="base"), Subject(tuned, tokenizer, name="tuned")


def test_a_model_beside_itself_is_unshifted_without_distance(pair: tuple[Subject, Subject]) -> None:
    found = shares(compare(pair[0], pair[0], PROMPTS, 8))
    assert (found["unshifted"], found["shifted"], found["kl"]) == (1, 0, 0)
    moved = shares(compare(pair[0], pair[1], PROMPTS, 8))
    assert moved["unshifted"] < 1 and moved["kl"] > 0
    assert moved["unshifted"] + moved["marginal"] + moved["shifted"] == pytest.approx(1)


def test_ranks_are_those_of_sorted_probabilities_and_ties_go_by_id() -> None:
    base = torch.tensor([[0.1, 0.3, 0.1, 0.4, 0.1]] * 5).log()
    found = shift([3, 1, 0, 2, 4], False, base, base)
    assert found.rank == [1, 2, 3, 4, 5]
    assert found.p_base == pytest.approx([0.4, 0.3, 0.1, 0.1, 0.1])
    assert found.kl == [0.0] * 5
    told = shares([found])
    assert (told["unshifted"], told["marginal"], told["shifted"]) == (0.2, 0.4, 0.4)


@torch.no_grad()
def test_one_pass_is_step_by_step_also_behind_examples(pair: tuple[Subject, Subject]) -> None:
    base, tuned = pair
    around = Layout(system="Hm. ", query="{query}", answer=" {answer}\n", examples=(("Q: a A:", "b"), ("Q: c A:", "d")))
    for layout in ("", around):
        for prompt, one in zip(PROMPTS, compare(base, tuned, PROMPTS, 6, around=layout, k=2), strict=True):
            read = prompt if layout == "" else around.prompt(prompt)
            for t, token in enumerate(one.tokens):
                ids = torch.tensor([base.encode(read) + one.tokens[:t]])
                logp = base.model(ids).logits[0, -1].float().log_softmax(-1)
                assert one.p_base[t] == pytest.approx(float(logp[token].exp()), abs=1e-4)
                assert one.rank[t] == 1 + int((logp > logp[token]).sum())


def test_the_token_that_ends_an_answer_counts_and_can_be_left_out(pair: tuple[Subject, Subject]) -> None:
    base, tuned = pair
    asked = [tuned.encode(p) for p in PROMPTS]
    plain = shifts(tuned, lambda: nullcontext(base), asked, asked, 6)
    end = plain[0].tokens[2]
    first = next(t for t, token in enumerate(plain[0].tokens) if token == end)
    before = copy.copy(tuned.model.generation_config)
    try:
        tuned.model.generation_config.eos_token_id = end
        ended = shifts(tuned, lambda: nullcontext(base), asked, asked, 6)
    finally:
        tuned.model.generation_config = before
    assert ended[0].tokens == plain[0].tokens[: first + 1] and ended[0].ended
    assert ended[0].rank == plain[0].rank[: first + 1]
    table = table_of(ended, tuned.tokenizer)
    assert table["tokens"] == sum(len(s.tokens) for s in ended)
    said = [t for s in ended for t in s.tokens]
    assert table["without_special"]["tokens"] == len(
        [t for t in said if t != end and t not in tuned.tokenizer.all_special_ids]
    )
    assert "special" in table["by_class"]
    assert sum(row["tokens"] for row in table["by_position"]) == table["tokens"]
    assert json.loads(json.dumps(table)) == table


def test_classes_of_tokens(pair: tuple[Subject, Subject]) -> None:
    found = compare(*pair, PROMPTS, 5)
    places = by(found, lambda i, t, token: "first" if t == 0 else None)
    assert places["first"]["tokens"] == len(PROMPTS)
    assert [kind_of(t) for t in (" Sure", "▁However", "42", "!", " bread")] == [
        "style",
        "style",
        "number",
        "mark",
        "content",
    ]


def test_two_tokenizers_are_refused(pair: tuple[Subject, Subject]) -> None:
    base, tuned = pair
    odd = copy.deepcopy(tuned.tokenizer)
    told = json.loads(odd.backend_tokenizer.to_str())
    names = sorted(told["model"]["vocab"], key=told["model"]["vocab"].get)
    a, b = names[600], names[601]
    vocab = told["model"]["vocab"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    odd._tokenizer = type(odd.backend_tokenizer).from_str(json.dumps(told))
    with pytest.raises(LuthierError, match="'tuned' and 'base' have different tokenizers"):
        compare(base, Subject(tuned.model, odd, name="tuned"), PROMPTS, 4)


@pytest.mark.parametrize("tuner", ["full", {"name": "lora", "r": 4}])
def test_in_a_run(recipe: dict[str, Any], tuner: Any) -> None:
    """Nothing is shifted before the first step; afterwards something is, and the report shows it."""
    recipe |= {"tuner": tuner, "analysis": {"name": "token_shift", "rows": 6, "max_new_tokens": 6, "shown": 2}}
    recipe["train"]["learning_rate"] = 0.02
    done = luthier.run(recipe, quiet=True)
    told = json.loads((Path(done.folder) / "results.json").read_text())["analysis"]
    assert told[0]["token_shift"]["unshifted"] == 1 and told[0]["token_shift"]["kl"] < 1e-6
    last = told[-1]["token_shift"]
    assert last["kl"] > 0 and last["tokens"] > 0
    page = (Path(done.folder) / "report.html").read_text()
    assert 'id="analysis"' in page
    assert page.count('title="rank ') == sum(len(one["tokens"]) for one in last["coloured"])


def test_two_models_by_name(tmp_path: Path) -> None:
    """`luthier.shift`: the table, and a page with its picture and every coloured token."""
    table = luthier.shift("nano-1m", "nano-1m", "sandbox:styles?task=style0&n=4", max_new_tokens=5, output=tmp_path)
    assert table["unshifted"] == 1 and table["tokens"] == 20
    page = (tmp_path / "report.html").read_text()
    assert "100% unshifted" in page and page.count('title="rank ') == 15 and "<svg" in page
    with pytest.raises(LuthierError, match="'nano-encoder' is a"):
        luthier.shift("nano-1m", "nano-encoder", PROMPTS)
