"""Data and imports flow one way: a module imports only from floors below its own, up to its ceiling."""
import ast
from pathlib import Path

import pytest

PKG = Path(__file__).resolve().parents[1] / "daedalus_etl"

# floor: (highest floor below it that it may import, its modules). A name stands for all that lies below it.
FLOORS = [
    (0, ["core.__init__", "core.enums", "core.errors", "core.redact", "core.render", "core.travel"]),
    (0, ["core.budget", "core.lazy", "core.levels", "core.state", "core.model", "core.yaml", "core.config",
         "core.filters", "core.feature_config", "core.steps", "config"]),
    (1, ["core.base", "core.registry", "core.catalog", "core.report"]),
    (2, ["storage", "utils", "run"]),                              # run schedules steps that it cannot look into
    (2, ["features"]),                                             # never storage: features know no paths
    (4, ["labels"]),                                               # as features, which never import them
    (5, ["transforms"]),
    (3, ["core.coming", "core.executor", "core.fit", "core.outputs", "core.pipeline", "core.plan", "core.progress",
         "core.recount", "core.rest", "core.retry", "core.step", "core.unit"]),  # knows no formula
    (7, ["sources", "explore", "research", "run.news", "run.wakes", "run.append", "run.watch"]),
    (8, ["runners", "cli", "frames", "lake"]),
]
CEILING = {"sources": 3}                                           # where one module's is lower than its floor's
SIDEWAYS = {("config", "core"), ("utils", "storage"), ("cli", "runners")}   # to another package on the same floor
RANK = {m: i for i, (_, names) in enumerate(FLOORS) for m in names}


def entry(module: str) -> str | None:
    "The longest name of FLOORS that `module` is or lies below."
    parts = module.split(".")
    return next((n for i in range(len(parts), 0, -1) if (n := ".".join(parts[:i])) in RANK), None)


def modules(pkg: Path) -> dict[str, Path]:
    "Dotted name inside `pkg` -> file, but for the package's own `__init__` and nbdev's index."
    names = {".".join(p.relative_to(pkg).with_suffix("").parts): p for p in sorted(pkg.rglob("*.py"))}
    return {n: p for n, p in names.items() if n not in ("__init__", "_modidx")}


def resolve(full: str, known) -> str | None:
    "The module that the dotted name `full` names or lies in; None for the package itself."
    if full in known: return full
    if full + ".__init__" in known: return full + ".__init__"
    return resolve(full.rpartition(".")[0], known) if "." in full else None


def imported(name: str, path: Path, pkg: Path, known):
    "Modules inside `pkg` that module `name` imports, wherever the import stands, with the line."
    here = name.split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): full = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [pkg.name, *here[:len(here) - node.level]] if node.level else []
            full = [".".join([*base, *filter(None, [node.module]), a.name]) for a in node.names]
        else: continue
        inside = (f.removeprefix(pkg.name + ".") for f in full if f.startswith(pkg.name + "."))
        yield from ((to, node.lineno) for f in inside if (to := resolve(f, known)))


def may_import(me: str, to: str) -> bool:
    "Whether the floors let module `me` import module `to`; both have a floor."
    a, b = RANK[entry(me)], RANK[entry(to)]
    tops = me.split(".")[0], to.split(".")[0]
    return tops[0] == tops[1] or tops in SIDEWAYS if a == b else b <= CEILING.get(tops[0], FLOORS[a][0])


def faults(pkg: Path) -> list[str]:
    "One line for each module without a floor and each import that the floors forbid."
    known = modules(pkg)
    out = [f"{n} has no floor: give it one in FLOORS" for n in known if entry(n) is None]
    for me, path in known.items():
        if entry(me) is None: continue
        out += [f"{me}:{line} must not import {to}" for to, line in imported(me, path, pkg, known)
                if entry(to) and not may_import(me, to)]
    return out


def test_imports_flow_one_way():
    assert "core.enums" in modules(PKG)
    assert faults(PKG) == []


# ---- the checker itself, on a small package of the same name

@pytest.fixture
def fake(tmp_path):
    "Write modules (dotted name -> source) below an otherwise empty package; returns its faults."
    def build(**sources):
        for name, source in {"core.__init__": "", "core.enums": "", **sources}.items():
            path = tmp_path / "daedalus_etl" / Path(*name.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return faults(tmp_path / "daedalus_etl")
    return build


@pytest.mark.parametrize("source", [
    "from ..core.executor import run",
    "from ..core import executor",
    "import daedalus_etl.core.executor",
    "from daedalus_etl.core.executor import run",
    "def f():\n    from ..core.executor import run",
    "if True:\n    from .. import storage",
], ids=range(6))
def test_upward_import_is_found(fake, source):
    found = fake(**{"features.ofi": source, "core.executor": "", "storage.__init__": ""})
    assert len(found) == 1 and found[0].startswith("features.ofi:")


@pytest.mark.parametrize("me, to, allowed", [
    ("transforms.trades", "features.trades", True),
    ("features.trades", "features.state", True),
    ("features.trades", "storage.dataset", False),
    ("core.executor", "core.plan", True),
    ("core.executor", "storage.commit", True),
    ("core.executor", "run.local", True),
    ("run.local", "core.report", True),
    ("run.local", "core.step", False),
    ("run.local", "storage.commit", False),
    ("core.executor", "transforms.trades", False),
    ("core.executor", "features.state", False),
    ("storage.state", "core.executor", False),
    ("core.enums", "core.config", False),
    ("config", "core.config", True),
    ("core.config", "config", False),
    ("utils.crud", "storage.commit", True),
    ("storage.commit", "utils.crud", False),
    ("sources.simulator", "transforms.trades", False),
    ("explore.charts", "core.executor", True),
    ("explore.charts", "sources.simulator", False),
    ("runners.run_bars", "explore.charts", True),
])
def test_pairs(fake, me, to, allowed):
    assert (fake(**{me: f"import daedalus_etl.{to}", to: ""}) == []) is allowed


def test_package_init_of_core_may_not_pull_in_upper_floors(fake):
    assert fake(**{"core.__init__": "from .executor import x", "core.executor": ""}) != []


def test_module_without_floor_is_a_fault(fake):
    assert fake(helpers="") == ["helpers has no floor: give it one in FLOORS"]


def test_own_init_index_and_foreign_imports_are_free(fake):
    assert fake(__init__="from .core import enums", _modidx="import daedalus_etl.core.enums",
                **{"core.config": "import polars\nfrom daedalus_etl import __version__"}) == []
