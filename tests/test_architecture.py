"""The shape of the package: which file may import which, one method a file, headers, configs, and a light import."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import luthier
from luthier.core import catalog

PACKAGE = Path(luthier.__file__).parent
ENTRIES = catalog.entries()
IDS = [f"{e.axis}/{e.name}" for e in ENTRIES]


def imports(file: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, `from a import b` as both a and a.b."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize("file", sorted((PACKAGE / "core").glob("*.py")), ids=lambda f: f.stem)
def test_core_imports_no_axis(file: Path) -> None:
    axes = tuple(f"luthier.{axis}" for axis in (*catalog.AXES, "verbs", "checks", "report", "cli"))
    assert not [m for m in imports(file) if m.startswith(axes)]


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_method_imports_core_and_family_only(entry: catalog.Entry) -> None:
    """Never another method, and of other axes nothing; a recipe may use any axis."""
    own = {m for m in imports(entry.path) if m.startswith("luthier.")}
    folder = f"luthier.{entry.axis}"
    inside = {m for m in own if m.startswith(folder + ".")}
    families = {m.split(".")[2] for m in inside}
    assert all(f.startswith("_") for f in families), f"imports another method: {sorted(families)}"
    if entry.axis not in ("recipes", "data"):
        assert len(families) <= 1, f"more than one family file: {sorted(families)}"
    if entry.axis != "recipes":
        others = {m for m in own - inside if not m.startswith("luthier.core") and m.split(".")[1] in catalog.AXES}
        assert not others, f"imports another axis: {sorted(others)}"


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_one_class_named_as_the_file(entry: catalog.Entry) -> None:
    assert entry.class_name.lower() == entry.name.replace("_", "")
    cls = catalog.load(entry.axis, entry.name)
    assert cls.__dataclass_params__.frozen, "a method is a frozen dataclass"
    assert cls.example().name == entry.name


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_header(entry: catalog.Entry) -> None:
    """One sentence, then what the axis asks for."""
    assert re.fullmatch(r"[^\n]+[.]", entry.title), f"the first line is not one sentence: {entry.title}"
    wanted = {"tuners": ("Start:", "Cost:", "Paper:", "Departures:"), "objectives": ("Start:", "Paper:", "Departures:"),
              "decoding": ("Paper:", "Departures:"), "edits": ("Paper:", "Departures:"),
              "evaluation": ("Paper:",)}.get(entry.axis, ())  # fmt: skip
    missing = [w for w in wanted if not re.search(rf"^{w}", entry.header, re.MULTILINE)]
    assert not missing, f"the header lacks {missing}"
    if entry.axis in ("tuners", "objectives"):
        assert entry.paper


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_config(entry: catalog.Entry) -> None:
    """One runnable file per method, in which the method is named."""
    assert entry.config is not None, f"configs/{entry.axis}/{entry.name}.yaml is missing"
    assert re.search(rf"\b{entry.name}\b", entry.config.read_text())


def _literals(file: Path) -> set[tuple[str, int]]:
    """String constants that are compared, matched or used as keys: where a name would decide what happens."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue | ast.Subscript):
            parts = [node.value if isinstance(node, ast.MatchValue) else node.slice]
        elif isinstance(node, ast.Dict):
            parts = [k for k in node.keys if k is not None]
        for part in parts:
            for leaf in ast.walk(part):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    found.add((leaf.value, leaf.lineno))
    return found


SHARED_WORDS = {"classification", "regression", "text", "labelled", "segments", "choice", "answer", "full", "merge", "skills",
                "perplexity", "masked_lm", "prefix", "reward", "prompts", "token_classification"}  # fmt: skip
"""Method names that are also tasks, columns, kinds, figures, capabilities or attributes of peft: as words they decide nothing."""


@pytest.mark.parametrize("folder", ["core", "checks"])
def test_nothing_branches_on_a_method_name(folder: str) -> None:
    names = {e.name for e in ENTRIES} - SHARED_WORDS
    files = [f for f in (PACKAGE / folder).rglob("*.py") if f.parent.name != "oracles"]
    found = [f"{f.name}:{line} '{word}'" for f in files for word, line in _literals(f) if word in names]
    assert not found, f"names of methods decide something: {found}"


def test_no_catch_all_modules() -> None:
    assert not [f for f in PACKAGE.rglob("*.py") if f.stem in ("utils", "util", "misc", "helpers", "common")]


def _python(code: str) -> tuple[str, float]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip(), time.perf_counter() - began


@pytest.mark.parametrize(
    "code", ["import luthier", "from luthier.core import catalog; catalog.listing()", "import luthier.checks"]
)
def test_light_import(code: str) -> None:
    """Neither the package nor the catalogue loads torch; under half a second more than Python itself, with room."""
    loaded, seconds = _python(
        f"import sys; {code}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    assert loaded == "[]"
    _, bare = _python("pass")
    assert seconds - bare < 3.0  # the limit is 0.5 s on a quiet machine
