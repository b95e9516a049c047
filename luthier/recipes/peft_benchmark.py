"""PEFT benchmark: parameter-efficient methods against full fine-tuning on your model and data, in quality, size, memory and time.

    rate(method)  = argmin over `rates` of the loss on held-out training rows, one run each
    cell          = method x seed, at its rate: the same rows in the same order for each seed, every cell in a fresh process
    front         = methods that no other one equals in score, trained scalars and peak memory and beats in one, by means

    methods    what is compared; the review's representatives, luthier's further ones, and full
    rates      of the pilot; those of soft prompts are 30 times as large
    seeds      of every cell
    val_size   rows that judge a pilot, where the recipe holds none out;  pilot_steps  its length, None: that of a run
    fresh      False: all in one process, sooner where the model is tiny; peak memory on a GPU then is not each cell's own
Start:      `procedure: peft_benchmark`. Sizes of a method: {compare.methods: {lora: {tuner.r: 16}}}; one that names its
            rate there has no pilot. What moved of the model's own tensors is stored as a difference (delta/). A method that
            the model cannot take is shown as refused, with its reason.
Cost:       methods * (rates + seeds) runs of the recipe. Resumes cell by cell.
Paper:      Xu et al., 2023, "Parameter-Efficient Fine-Tuning Methods for Pretrained Language Models: A Critical Review and
            Assessment", arXiv:2312.12148, section 4.
Departures: `qlora` is lora on a base in 4 bits (model.load_in_4bit). No method is named the winner: there is a front. A
            pilot whose best rate is the last of the grid is warned of. The context of cpt is the user's to name, so it is
            left out unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core import catalog, config
from luthier.core.config import Recipe as RunRecipe
from luthier.core.method import Recipe
from luthier.recipes._stages import small_artefact

REVIEW = (
    "houlsby", "prompt_tuning", "prefix", "ia3", "bitfit", "child_tuning", "lora", "adalora", "qlora", "mam", "propetl",
)  # fmt: skip
FURTHER = ("parallel", "compacter", "iaa", "dept", "ept", "dora", "ln_tuning", "apet", "hft", "green")
PROMPTS, PROMPT_RATE = ("prompt_tuning", "p_tuning", "dept", "ept"), 30.0
VARIANTS: dict[str, dict[str, Any]] = {
    "child_tuning": {"tuner.variant": "task_driven"}, "qlora": {"tuner": "lora", "model.load_in_4bit": True},
}  # fmt: skip


@dataclass(frozen=True)
class PeftBenchmark(Recipe):
    paper: ClassVar[str] = "arXiv:2312.12148"
    cards: ClassVar[tuple[int, ...]] = (60,)
    compares: ClassVar[bool] = True

    methods: tuple[str, ...] = ("full", *REVIEW, *FURTHER)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    seeds: int = 3
    val_size: float | int = 0.2
    pilot_steps: int | None = None
    fresh: bool = True

    @classmethod
    def small(cls) -> dict[str, Any]:
        return {
            "procedure.methods": ["full", "bitfit", "lora"], "procedure.rates": [1e-3, 1e-2], "procedure.seeds": 1,
            "procedure.fresh": False, "data.limit": 24, "train.max_steps": 2, "evaluate.limit": 8,
        }  # fmt: skip

    def run(self, folder: str, *, recipe: RunRecipe, say: Callable[[str], None], **given: Any) -> Any:
        """A `Comparison`: compare.json and report.html in `folder`, and a run folder a cell."""
        from luthier.verbs.compare import compare

        told = config.recipe(
            recipe,
            {
                "procedure": None, "output_dir": folder, "compare.seeds": self.seeds, "compare.fresh": self.fresh,
                "compare.passes": True, "compare.methods": {m: self.settings(m, recipe) for m in self.methods},
                "compare.pilot": {"rates": list(self.rates), "val_size": self.val_size, "max_steps": self.pilot_steps},
            },
        )  # fmt: skip
        done = compare(told, resume=bool(given.get("resume")), quiet=given.get("quiet", False),
                       callbacks=given.get("callbacks") or ())  # fmt: skip
        for method, pilot in done.told["pilots"].items():
            if pilot.get("edge"):
                say(f"{method}: the best rate, {pilot['rate']:g}, is {pilot['edge']}: another one may do better")
        say("on the front of score, trained parameters and peak memory: " + ", ".join(done.told["front"]["methods"]))
        return done

    def settings(self, method: str, recipe: RunRecipe) -> dict[str, Any]:
        """What a method changes in the recipe; what the recipe says of it comes last."""
        rates = {"compare.pilot.rates": [PROMPT_RATE * r for r in self.rates]} if method in PROMPTS else {}
        small = small_artefact(method) if method in {e.name for e in catalog.entries("tuners")} else {}
        return {**rates, **small, **VARIANTS.get(method, {}), **recipe.compare.methods.get(method, {})}
