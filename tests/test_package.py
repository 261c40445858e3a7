"""What a user installs: the wheel by itself, what importing it costs, and what it must not need."""
import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PKG = ROOT / "daedalus_etl"
NOTEBOOK_TOOLS = {"nbdev", "fastcore", "execnb", "IPython"}
SOURCES = ("settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
HEAVY = {"numba", "altair", "pyarrow", "ipywidgets"} | NOTEBOOK_TOOLS


@pytest.fixture(scope="module")
def cfg():
    ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def modules() -> list[str]:
    "Dotted names of all modules of the package."
    paths = (p.relative_to(ROOT).with_suffix("") for p in sorted(PKG.rglob("*.py")) if p.stem != "_modidx")
    return [".".join(p.parts).removesuffix(".__init__") for p in paths]


def call(*command, cwd, **env):
    "Run a command away from the checkout; its output, or a failure that shows what it said."
    gone = {"PYTHONPATH", "IN_TEST", "NUMBA_DISABLE_JIT", *env}
    env = {k: v for k, v in os.environ.items() if k not in gone} | env
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(code, cwd, **env):
    "What `code` prints last, read as JSON, from a new interpreter."
    return json.loads(call(sys.executable, "-c", code, cwd=cwd, **env).splitlines()[-1])


# ---- the wheel

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from the source distribution, so what MANIFEST.in forgets is missed here; nothing is downloaded."
    src, out = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("dist")
    shutil.copytree(PKG, src / "daedalus_etl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES: shutil.copy(ROOT / name, src)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, src, cwd=src)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    "The wheel installed into a folder of its own; the dependencies are those of this interpreter."
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    call(*pip, "--target", target, wheel, cwd=target)
    return target


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"daedalus_etl"}
    assert {n for n in names if n.endswith(".py")} == {p.relative_to(ROOT).as_posix() for p in PKG.rglob("*.py")}
    assert any(n.endswith("LICENSE") for n in names)


def test_installed_package_says_its_version(site, cfg, tmp_path):
    code = "import json, daedalus_etl as d; print(json.dumps([d.__file__, d.__version__]))"
    file, version = python(code, tmp_path, PYTHONPATH=str(site))
    assert Path(file).is_relative_to(site)
    assert version == cfg["version"]


def test_installed_command_shows_help(site, cfg, tmp_path):
    said = call(site / "bin" / "daedalus", "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert all(word in said for word in ("trades", "ticker", "bars", "demo"))


def test_installed_entry_points_load(site, cfg, tmp_path):
    code = """
import json
from importlib.metadata import entry_points
found = entry_points(group='daedalus_etl.transforms')
print(json.dumps({e.name: f'{e.load().__module__}:{e.load().__name__}' for e in found}))
"""
    assert python(code, tmp_path, PYTHONPATH=str(site)) == dict(t.split("=") for t in cfg["transforms"].split())


def test_extras_are_the_keys_of_settings(wheel, cfg):
    meta = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(meta).decode()
    extras = {line.split(": ")[1] for line in text.splitlines() if line.startswith("Provides-Extra")}
    assert extras == {"dask", "delta", "s3", "explore", "live", "bench", "dev"}
    plain = [line for line in text.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(plain) == len(cfg["requirements"].split())


# ---- what an import costs

def loaded(module, tmp_path) -> set[str]:
    "Top-level packages in memory after `import module`."
    code = f"import json, sys, {module}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    return set(python(code, tmp_path, PYTHONPATH=str(ROOT)))


@pytest.mark.parametrize("module", ["daedalus_etl", "daedalus_etl.cli"])
def test_import_is_light(module, tmp_path):
    assert loaded(module, tmp_path) & HEAVY == set()


def test_heavy_packages_are_seen_where_loaded(tmp_path):
    "The check above can fail: a kernel module does load numba."
    assert "numba" in loaded("daedalus_etl.features.streaming", tmp_path)


COMPILED = """
import gc, importlib, json, sys
from numba.core import event
from numba.core.dispatcher import Dispatcher
with event.install_recorder('numba:compile') as compiling:
    for name in {names!r}: importlib.import_module(name)
kernels = [d for d in gc.get_objects() if isinstance(d, Dispatcher) and d.py_func.__module__.startswith('daedalus_etl')]
ready = sorted(f'{{d.py_func.__module__}}.{{d.__name__}}' for d in kernels if d.signatures)
print(json.dumps([len(kernels), ready, [str(e.data.get('dispatcher')) for _, e in compiling.buffer]]))
"""


def test_import_of_transforms_compiles_nothing(tmp_path):
    names = [n for n in modules() if n.startswith(("daedalus_etl.features", "daedalus_etl.transforms"))]
    kernels, ready, compiled = python(COMPILED.format(names=names), tmp_path, PYTHONPATH=str(ROOT))
    assert kernels > 0
    assert (ready, compiled) == ([], [])


# ---- what it must not need

def roots(path: Path) -> set[str]:
    "Top-level packages that a file imports, wherever the import stands."
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return plain | {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}


def test_no_module_imports_notebook_tools():
    found = {p.name: roots(p) & NOTEBOOK_TOOLS for p in PKG.rglob("*.py")}
    assert {n: r for n, r in found.items() if r} == {}


def test_every_module_imports(tmp_path):
    "Each by itself in one interpreter that has no notebook tools."
    code = f"""
import importlib, json, sys
for name in {sorted(NOTEBOOK_TOOLS - {'IPython'})!r}: sys.modules[name] = None
for name in {modules()!r}: importlib.import_module(name)
print(json.dumps(len(sys.modules)))
"""
    assert python(code, tmp_path, PYTHONPATH=str(ROOT)) > 0
