"""The command line. Each verb is a Python function in luthier/verbs; this file turns words into its arguments.

Exit codes: 0 done, 2 a recipe or flag that cannot be used, 1 failure, 130 stopped by Ctrl-C (saved). One line says what is
wrong; `--debug` shows the traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

app = typer.Typer(
    name="luthier",
    help="Tune language models with published methods, compared honestly on your own model and data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at rows, masks and lengths before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")

FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
RecipeFile = Annotated[
    Path, typer.Argument(help="YAML recipe; any of its keys is also a flag: --train.learning_rate 1e-4")
]


def _overrides(context: typer.Context) -> dict[str, Any]:
    from luthier.core.config import parse_flags

    return parse_flags(context.args)


def _decoding(name: str | None, words: list[str]) -> tuple[list[str], dict[str, Any] | None]:
    """What a list of words says before its first flag, and the decoding section that the flags make.

    Flags that a verb does not know stand among the words of its last argument, which takes any number of them.
    """
    from luthier.core.config import ConfigError, parse_flags

    first = next((i for i, w in enumerate(words) if w.startswith("--") and len(w) > 2), len(words))
    told = parse_flags(words[first:])
    if told and name is None:
        raise ConfigError(f"--{next(iter(told))} is an option of a decoding method: name it by --decoding")
    return words[:first], None if name is None else {"name": name, **told}


@app.command(context_settings=FLAGS)
def run(
    context: typer.Context,
    recipe: RecipeFile,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint of output_dir")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress")] = False,
) -> None:
    """Tune, measure before and after, and write a run folder with its report."""
    from luthier.verbs.run import run as verb

    done = verb(recipe, overrides=_overrides(context), resume=True if resume else None, quiet=quiet)
    print(done.folder)


@app.command(context_settings=FLAGS)
def compare(
    context: typer.Context,
    recipe: RecipeFile,
    methods: Annotated[str, typer.Option(help="tuners or objectives, by name: full,hft,lora")] = "",
    seeds: Annotated[int, typer.Option(help="seeds 0, 1, ... for every method")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="keep the cells that are done")] = False,
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Run several methods on the same model, data and seeds, and draw the comparison."""
    from luthier.verbs.compare import compare as verb

    names = [m for m in methods.split(",") if m]
    done = verb(recipe, methods=names, seeds=seeds or None, overrides=_overrides(context), resume=resume, quiet=quiet)
    print(done.table_text())
    print(done.report)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where the comparison is written")] = Path("runs/demo"),
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Compare five ways of tuning an embedded model, offline, in about two minutes."""
    from luthier.verbs.demo import demo as verb

    done = verb(folder, quiet=quiet)
    print(done.table_text())
    print(f"report: {done.report}")


@app.command(context_settings=FLAGS)
def plan(context: typer.Context, recipe: RecipeFile) -> None:
    """Parameters, memory, steps and time of a recipe, before anything runs."""
    from luthier.verbs.plan import plan as verb

    print(verb(recipe, overrides=_overrides(context)).text())


@data_app.command("preview", context_settings=FLAGS)
def data_preview(
    context: typer.Context,
    recipe: RecipeFile,
    rows: Annotated[int, typer.Option("--rows", "-n", help="rows to show")] = 3,
) -> None:
    """Show decoded rows with what is trained in colour, lengths, truncation and rejected rows."""
    from luthier.verbs.preview import preview as verb

    verb(recipe, rows, overrides=_overrides(context))


@app.command("list")
def list_methods(
    axis: Annotated[str | None, typer.Argument(help="one axis only")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    cards: Annotated[bool, typer.Option("--cards", help="the 69 papers instead of the methods")] = False,
) -> None:
    """All methods with their papers and what was checked, or all papers with their parts."""
    from luthier.core import catalog

    rows = catalog.cards() if cards else catalog.listing(axis)
    if as_json:
        keys = ("axis", "name", "cards", "paper", "status", "checks_run", "checks_expected")
        print(json.dumps(rows if cards else [{k: r[k] for k in keys} for r in rows], indent=1, ensure_ascii=False))
        return
    from luthier.verbs.listing import print_cards, print_methods

    print_cards(rows) if cards else print_methods(rows)


@app.command()
def show(method: Annotated[str, typer.Argument(help="name, or axis/name")]) -> None:
    """A method's story: equation, options, paper, evidence, and its runnable recipe."""
    from luthier.verbs.listing import story

    print(story(method))


@app.command(context_settings=FLAGS)
def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="model, run, adapter or delta folder")],
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    max_new_tokens: int = 256,
    decoding: Annotated[str, typer.Option(help="method; its options are flags: --top_p 0.9")] = "greedy",
    control: Annotated[str | None, typer.Option(help="control that acts, or weights: good=0.7,bad=0.3")] = None,
) -> None:
    """Talk to a model in the terminal."""
    from luthier.verbs.generate import chat as verb

    verb(model, system, max_new_tokens, _decoding(decoding, context.args)[1] or decoding, control)


@app.command(context_settings=FLAGS)
def generate(
    model: Annotated[str, typer.Argument(help="model, run, adapter or delta folder")],
    prompt: Annotated[list[str], typer.Argument(help="one or more prompts; '-' reads lines from standard input")],
    max_new_tokens: int = 64,
    decoding: Annotated[str, typer.Option(help="method; its options are flags: --top_p 0.9")] = "greedy",
    control: Annotated[str | None, typer.Option(help="control that acts, or weights: good=0.7,bad=0.3")] = None,
) -> None:
    """Texts that follow the prompts, one line of JSON each."""
    from luthier.verbs.generate import generate as verb

    prompt, told = _decoding(decoding, prompt)
    prompts = [line.rstrip("\n") for line in sys.stdin] if prompt == ["-"] else prompt
    texts = verb(model, prompts, max_new_tokens=max_new_tokens, decoding=told, control=control)
    for p, text in zip(prompts, texts, strict=True):
        print(json.dumps({"prompt": p, "text": text}, ensure_ascii=False))


@app.command(context_settings=FLAGS)
def evaluate(
    model: Annotated[str, typer.Argument(help="model, run, adapter or delta folder")],
    tasks: Annotated[
        list[str] | None, typer.Argument(help="task files or names, or names of lm-evaluation-harness with --harness")
    ] = None,
    base: Annotated[str | None, typer.Option(help="another model, compared on the same items")] = None,
    audit: Annotated[
        str | None,
        typer.Option(help="what it refuses, against --base: sandbox, rows, or a YAML file of evaluate.audit"),
    ] = None,
    ceiling: Annotated[str | None, typer.Option(help="a model tuned directly: how much of the gap is closed")] = None,
    harness: Annotated[bool, typer.Option("--harness", help="tasks of lm-evaluation-harness")] = False,
    limit: int | None = None,
    decoding: Annotated[str | None, typer.Option(help="method; its options are flags: --top_p 0.9")] = None,
    control: Annotated[str | None, typer.Option(help="control that acts, or weights: good=0.7,bad=0.3")] = None,
    output: Annotated[Path | None, typer.Option(help="write results.json here")] = None,
) -> None:
    """Measure a model on tasks, alone or against another one."""
    from luthier.verbs.evaluate import evaluate as verb

    tasks, told = _decoding(decoding, tasks or [])
    found = verb(
        model, tasks, audit=audit, base=base, ceiling=ceiling, harness=harness, limit=limit, output=output, decoding=told,
        control=control,
    )  # fmt: skip
    print(json.dumps(found, indent=1, ensure_ascii=False))


@app.command()
def shift(
    base: Annotated[str, typer.Argument(help="model, run, adapter or delta folder")],
    tuned: Annotated[str, typer.Argument(help="the same after tuning")],
    prompts: Annotated[str, typer.Option(help="rows with prompts: a file, a sandbox task, a data set")],
    max_new_tokens: int = 64,
    stop: Annotated[list[str] | None, typer.Option(help="an answer ends here")] = None,
    around: Annotated[str, typer.Option(help="a layout that the base reads its prompts in: assistant, or a file")] = "",
    k: Annotated[int, typer.Option(help="how many of the layout's examples")] = 3,
    limit: Annotated[int, typer.Option(help="prompts")] = 64,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for shift.json and report.html")] = None,
) -> None:
    """Which tokens of a tuned model's answers its base would not have written."""
    from luthier.verbs.shift import shift as verb

    found = verb(
        base, tuned, prompts, max_new_tokens=max_new_tokens, stop=stop or (), around=around, k=k, limit=limit, output=output
    )  # fmt: skip
    print(json.dumps({k: v for k, v in found.items() if k != "coloured"}, indent=1, ensure_ascii=False))
    if output is not None:
        print(f"report: {output / 'report.html'}")


@app.command()
def merge(
    sources: Annotated[
        list[str], typer.Argument(help="an adapter or delta folder or run; or several model folders to average")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder of the merged model")] = None,
    weights: Annotated[str, typer.Option(help="for several models: 0.7,0.3")] = "",
    builds: Annotated[
        str,
        typer.Option(help="nf4 or int8: compare five ways to ship an adapter of such a base; writes nothing itself"),
    ] = "",
) -> None:
    """Put an adapter or a delta into the weights, and check that the merged model says the same."""
    from luthier.core.config import ConfigError
    from luthier.verbs.builds import builds as compare_builds
    from luthier.verbs.merge import merge as verb

    if builds:
        print(compare_builds(sources[0], builds).text())
    elif output is None:
        raise ConfigError("merge: --output is missing: name the folder of the merged model")
    told = [float(w) for w in weights.split(",") if w] or None
    if output is not None:
        print(verb(sources[0] if len(sources) == 1 else sources, output, weights=told).text())


@app.command(context_settings=FLAGS)
def edit(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML with edit, models and output_dir")],
) -> None:
    """Change weights without training, by a method of the edits axis."""
    from luthier.verbs.edit import edit as verb
    from luthier.verbs.edit import report

    done = verb(recipe, _overrides(context), say=lambda text: print(text, file=sys.stderr))
    print(report(done))


@app.command()
def reproduce(
    method: Annotated[str, typer.Argument(help="name, or axis/name")],
    seeds: Annotated[int, typer.Option(help="0: as many as the experiment says")] = 0,
    output: Annotated[Path | None, typer.Option(help="result file; default: results/<axis>/<name>.json")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the seeds that an interrupted run has left")
    ] = False,
) -> None:
    """Run the experiment of a method's paper card and write its result file."""
    from luthier.verbs.reproduce import reproduce as verb

    print(verb(method, seeds=seeds or None, output=output, resume=resume).text())


@app.command()
def rescore(
    file: Annotated[Path, typer.Argument(help="generated_predictions.jsonl of a run")],
    scorer: Annotated[str, typer.Argument(help="name of a scorer of generated text")],
) -> None:
    """Score kept predictions by another scorer, without generating again."""
    from luthier.evaluation import rescore as verb

    print(json.dumps(verb(file, scorer), indent=1))


@app.command()
def check(
    method: Annotated[str | None, typer.Argument(help="axis, or axis/name; default: everything")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="write results/checks.json, from which status is derived")
    ] = False,
) -> None:
    """Run the common checks of a method's axis on tiny models."""
    import torch

    from luthier import checks
    from luthier.core import catalog

    axis, _, name = (method or "").partition("/")
    if axis and not name and axis not in catalog.AXES:
        axis, name = "", axis
    torch.set_num_threads(1)  # fastest for tiny models
    found = checks.run(axis or None, name or None, record=record, told=_print_record)
    raise typer.Exit(1 if any(r.failed for r in found.values()) else 0)


def _print_record(key: str, record: Any) -> None:
    from luthier.checks import summary

    for line in summary({key: record}):
        print(line, flush=True)


@app.command()
def doctor() -> None:
    """What this machine and installation can do."""
    from luthier.verbs.doctor import doctor as verb

    print(verb())


@app.command()
def schema() -> None:
    """JSON schema of a recipe."""
    from luthier.core.config import schema as verb

    print(json.dumps(verb(), indent=1))


@app.command()
def version() -> None:
    """Version of luthier."""
    import luthier

    print(luthier.__version__)


def main(words: list[str] | None = None) -> None:
    """Entry point: errors that a user can mend are one line on standard error."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        code = app(words, standalone_mode=False)
    except Exception as error:
        if debug:
            raise
        code = _explain(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code or 0)


def _explain(error: Exception) -> int:
    """Print one line and give the exit code. Errors that are ours to mend keep their traceback."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, TyperException):
        if str(error):
            print(f"luthier: {error.format_message()}", file=sys.stderr)
        return 2
    kind = type(error).__name__
    if kind in ("ConfigError", "UnknownMethod"):
        print(f"luthier: {error}", file=sys.stderr)
        return 2
    if kind == "Interrupted":
        print(f"luthier: {error}", file=sys.stderr)
        return 130
    if kind == "OutOfMemoryError" or "out of memory" in str(error).lower():
        print(
            "luthier: out of memory: halve per_device_train_batch_size and double gradient_accumulation_steps, "
            "set gradient_checkpointing: true, or lower data.max_length",
            file=sys.stderr,
        )
        return 1
    from luthier.core.method import LuthierError

    if isinstance(error, LuthierError):
        red = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
        print(f"{red[0]}luthier: {error}{red[1]}", file=sys.stderr)
        return 1
    import traceback

    traceback.print_exception(error)
    print(
        "luthier: this is a defect of luthier, not of your recipe: please report it with the lines above",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    main()
