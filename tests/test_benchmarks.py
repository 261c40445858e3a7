"""The benchmark suite: that cases run, that its arithmetic is right, and that the site shows what was measured."""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))               # the suite lies beside the package, and is not installed with it

from benchmarks import cost, harness, report
from benchmarks.cases import choose, every
from benchmarks.harness import FLOOR, OURS, Case, Env, Options, Side, Skip
from benchmarks.reference import load
from benchmarks.scripts import SCRIPTS, figures
from daedalus_etl.core.errors import ConfigError, InputNotFoundError
from daedalus_etl.runners import bench

RESULTS, SHOWN = ROOT / "benchmarks" / "results.json", ROOT / "benchmarks" / "results.md"
FAST = "bars_parquet,clock_parquet,read_lake,commit_tiny"       # floors, peers and our own side, a second each


def suite(*words, **more):
    "The suite in a process of its own."
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "benchmarks", *map(str, words)], cwd=ROOT, env=env | more,
                          capture_output=True, text=True, check=False)


# ---- a quick run

@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    "results.json and results.md of a few cases."
    d = tmp_path_factory.mktemp("bench")
    done = suite("--quick", "--case", FAST, "--data", d / "data", "--out", d / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((d / "out" / "results.json").read_text()), (d / "out" / "results.md").read_text()


NUMBER, WORDS = (int, float), (str, type(None))


def check_schema(results: dict) -> None:
    "What readers of results.json count on."
    assert results["schema"] == 1 and type(results["quick"]) is type(results["provisional"]) is bool
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", results["date"]) and isinstance(results["commit"], WORDS)
    assert set(results["machine"]) == {"cpu", "cores", "ram_gib", "system", "kernel", "arch"}
    assert {"python", "polars", "duckdb", "pandas"} <= set(results["versions"])
    assert set(results["noise"]) == {"load_before", "load_after", "calibration_before", "calibration_after",
                                     "others_cores", "warnings"}
    for name, case in results["cases"].items():
        assert set(case) == set("title what group unit rows rounds sides seconds others_cores".split()), name
        for side in case["sides"].values(): check_side(side)
    assert all(set(s) in ({"result"}, {"skipped"}, {"failed"}) for s in results["scripts"].values())
    assert set(results["cost"] or {}) <= {"plan", "measured", "cores", "storage_tb", "requests"}


def check_side(side: dict) -> None:
    assert side["role"] in (OURS, FLOOR, harness.PEER, "variant")
    if "wall" not in side:
        assert isinstance(side.get("skipped") or side.get("failed"), str)
        return
    for key in ("wall", "cpu", "rss", "wall_ratio", "cpu_ratio"):
        if side[key] is None: continue
        assert set(side[key]) == {"median", "min", "max"} and all(isinstance(v, NUMBER) for v in side[key].values())
        assert side[key]["min"] <= side[key]["median"] <= side[key]["max"]
    assert side["rows"] > 0


def test_quick_run_has_the_schema(quick):
    results, _ = quick
    check_schema(results)
    assert set(results["cases"]) == set(FAST.split(","))
    assert results["quick"] and results["provisional"]
    assert results["command"].startswith("python -m benchmarks --quick")


def test_every_side_of_the_fast_cases_ran(quick):
    sides = {f"{n}/{s}": v for n, c in quick[0]["cases"].items() for s, v in c["sides"].items()}
    assert [n for n, v in sides.items() if "wall" not in v] == []
    assert {"bars_parquet/floor", "bars_parquet/duckdb", "bars_parquet/pandas", "read_lake/polars"} <= set(sides)
    assert sides["bars_parquet/daedalus_etl"]["bars"] == sides["bars_parquet/polars"]["bars"] > 0
    minutes = {sides[f"clock_parquet/{s}"]["bars"] for s in ("daedalus_etl", "polars", "duckdb")}
    assert minutes == {sides["bars_parquet/polars"]["bars"]}


def test_table_has_a_line_for_every_side(quick):
    results, text = quick
    for case in results["cases"].values():
        assert f"### {case['title']}" in text
        for name, side in case["sides"].items():
            assert f"| {name} | {report.number(side['rows'])} | {report.number(side['wall']['median'])} (" in text
    assert "**provisional**" in text


def test_unknown_case_is_an_error():
    with pytest.raises(ConfigError, match="no case is named 'bars_of_gold'"): choose(["bars_of_gold"])
    assert set(choose(["bars*", "live"])) == {"bars_parquet", "bars_memory", "live"}


def test_cases_are_whole():
    "Each has one side of ours to compare with, names of sides are its own, and says what it is in words."
    for name, case in every().items():
        names = [s.name for s in case.sides]
        assert [s.role for s in case.sides].count(OURS) == 1 and case.sides[0].role == OURS, name
        assert len(names) == len(set(names)) and len(case.what.split()) > 5 and 0 < case.quick <= case.rows, name


# ---- arithmetic, on made-up numbers

def run_of(wall, cpu=1.0, rows=100): return {"wall": wall, "cpu": cpu, "rss": 50.0, "rows": rows}


def test_ratio_is_taken_within_a_round_and_per_row():
    ours, peer = [run_of(1.0), run_of(2.0), run_of(4.0)], [run_of(3.0), run_of(6.0), run_of(4.0)]
    assert harness.ratios(peer, ours, "wall") == {"median": 3.0, "min": 1.0, "max": 3.0}
    slow = [run_of(1.0, rows=10)] * 3                     # a tenth of the rows in the same time
    assert harness.ratios(slow, ours, "wall") == {"median": 5.0, "min": 2.5, "max": 10.0}
    assert harness.ratios([None, run_of(6.0)], ours, "wall")["median"] == 3.0
    assert harness.ratios([None], [run_of(1.0)], "wall") is None


def test_summary_says_medians_spreads_and_reasons():
    case = Case("c", "C", "what it is", "bars", 100, tuple(Side(n, len, r) for n, r in
                                                           (("us", OURS), ("floor", FLOOR), ("peer", "peer"))))
    runs = {"us": [run_of(2.0, 4.0), run_of(3.0, 6.0)], "floor": [run_of(1.0, 1.0), run_of(1.0, 3.0)], "peer": [None]}
    told = harness.summary(case, runs, {"peer": {"skipped": "not installed: peer"}})
    assert told["sides"]["us"]["wall"] == {"median": 2.5, "min": 2.0, "max": 3.0}
    assert told["sides"]["us"]["cpu_ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert told["sides"]["floor"]["cpu_ratio"] == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert told["sides"]["peer"] == {"role": "peer", "skipped": "not installed: peer"}
    assert told["rows"] == 100 and told["rounds"] == 2


def test_measured_counts_children_and_what_the_work_says():
    burn = "x = 0\nfor i in range(3_000_000): x += i"
    told = harness.measured(lambda: {"rows": 7, "bars": subprocess.run([sys.executable, "-c", burn]).returncode})
    assert told["rows"] == 7 and told["bars"] == 0 and told["wall"] > 0.05 and told["cpu"] > 0.05 and told["rss"] > 5


def calm(wall=0.02, cpu=0.02): return {k: {"median": v, "min": v, "max": v} for k, v in (("wall", wall), ("cpu", cpu))}


@pytest.mark.parametrize("noise, says", [
    ({}, []), ({"load_before": 1.9}, ["load average was 1.9 on 2 cores"]), ({"others_cores": 0.5}, ["used 0.50 cores"]),
    ({"others_cores": None}, []), ({"calibration_after": calm(0.03, 0.03)}, ["took +50% wall time"]),
    ({"calibration_before": calm(0.025, 0.02)}, ["took -20% wall", "waited for a core 25%"])])
def test_a_loaded_machine_is_warned_of(noise, says):
    quiet = {"load_before": 0.1, "others_cores": 0.01, "calibration_before": calm(), "calibration_after": calm()}
    found = harness.warnings(quiet | noise, 2)
    assert len(found) == len(says) and all(s in f for s, f in zip(says, found, strict=True))


@pytest.mark.parametrize("x, said", [(0, "0"), (12, "12"), (1234.5, "1,234"), (0.01234, "0.0123"), (99.96, "100"),
                                     (1.5, "1.50"), (None, "-"), (15_768_000_000, "15,768,000,000")])
def test_number(x, said): assert report.number(x) == said


# ---- what cannot run here

def test_missing_peer_and_failing_side_are_told(tmp_path):
    "In results of a case, not as the end of the run; through a child as the driver starts it."
    (tmp_path / "tried.py").write_text("""
import benchmarks.cases as cases, json, sys
from benchmarks.harness import Case, Side, OURS
def boom(env): raise ValueError("too bad")
case = Case("made_up", "Made up", "what it is", "bars", 5, (
    Side("us", lambda env: env.rows, OURS), Side("peer", len, needs=("no_such_library",)),
    Side("broken", boom)), quick=5)
cases.find = lambda name: case
from benchmarks import child
print(json.dumps(child.obey(json.loads(sys.argv[1]))))
""")
    order = {"task": "measure", "case": "made_up", "sides": ["us", "peer", "broken"], "quick": True,
             "data": str(tmp_path / "data"), "reference": None}
    told = harness.last_json([sys.executable, str(tmp_path / "tried.py"), json.dumps(order)])
    assert told["us"]["rows"] == 5
    assert told["peer"] == {"skipped": "not installed: no_such_library"}
    assert told["broken"] == {"failed": "ValueError: too bad"}
    assert not list((tmp_path / "data").iterdir())        # scratch folders are gone


def test_last_json_tells_failures():
    def python(code): return harness.last_json([sys.executable, "-c", code])
    assert python("print('words'); print('{\"a\": 1}')") == {"a": 1}
    assert "boom" in python("raise SystemExit('boom')")["failed"]
    assert "no JSON" in python("print('words')")["failed"] and "no JSON" in python("pass")["failed"]
    assert "no JSON object" in python("print(3)")["failed"]
    assert "FileNotFoundError" in harness.last_json(["/no/such/python"])["failed"]


@pytest.mark.parametrize("text, found", [
    ('words\n{"a": 1}', {"a": 1}), ('{\n "a": {\n  "b": 2\n }\n}', {"a": {"b": 2}}),
    ('{"n": 1, "x": 2}\n{"n": 5, "x": 3}\n\na table', {"n 1": {"n": 1, "x": 2}, "n 5": {"n": 5, "x": 3}}),
    ("threads, 1 worker(s), first run: 1,000 partitions in 8.1 s; 8.13 ms wall, 7.50 ms CPU each",
     {"threads, 1 worker(s), first run": {"partitions": 1000.0, "wall_ms": 8.13, "cpu_ms": 7.5}}),
    ("nothing of use", {}), ("", {})])
def test_figures_of_scripts(text, found): assert figures(text) == found


# ---- the reference implementation, from a path

FAKE = {"core/executor.py": """
import polars as pl
class TransformExecutor:
    def __init__(self, feature_config=None): self.feature_config = feature_config
    def execute(self, transform, filter_spec=None, limit_rows=None, dry_run=False):
        (given,) = transform.config.inputs.values()
        frame = pl.scan_parquet(f"{given.path}/**/*.parquet").head(limit_rows).collect()
        return {"write_stats": {"silver": {"rows": frame.height}}}
""", "core/config.py": """
class FeatureConfig: pass
class InputConfig:
    def __init__(self, name, path): self.name, self.path = name, path
class OutputConfig(InputConfig): pass
class TransformConfig:
    def __init__(self, name, inputs, outputs): self.name, self.inputs, self.outputs = name, inputs, outputs
""", "transforms/trades.py": """
class TradesFeatureTransform:
    def __init__(self, config): self.config = config
"""}


@pytest.fixture
def fake(tmp_path):
    "A tiny implementation with the names that a job needs."
    for name, text in FAKE.items():
        path = tmp_path / "theirs" / "etl" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (tmp_path / "theirs" / "etl" / "__init__.py").touch()
    return tmp_path / "theirs"


def reference_says(path, tmp_path):
    "What the reference's side of the trades job says in a child."
    case = every()["trades_silver"]
    side = next(s for s in case.sides if s.name == "reference")
    return harness.child(case, [side], Options(tmp_path / "data", quick=True, reference=path))["reference"]


def test_reference_runs_from_its_path(fake, tmp_path):
    told = reference_says(fake, tmp_path)
    assert told["rows"] > 15_000 and told["wall"] > 0


def test_reference_is_skipped_with_a_reason(fake, tmp_path):
    with pytest.raises(Skip, match="no path to it was given"): load(None, "trades")
    with pytest.raises(Skip, match="no such folder"): load(tmp_path / "nowhere", "trades")
    with pytest.raises(Skip, match="has no package etl or"): load(tmp_path, "trades")
    (fake / "etl" / "transforms" / "trades.py").write_text("class Other: pass")
    assert reference_says(fake, tmp_path) == {"skipped": "etl.transforms.trades has no TradesFeatureTransform"}
    (fake / "etl" / "core" / "config.py").write_text("import config.of_nowhere")
    assert "etl.core.config does not import: ModuleNotFoundError" in reference_says(fake, tmp_path)["skipped"]


# ---- the cost model, by hand

PLAN = cost.Plan(symbols=4, days=10, rows_a_day=500_000)                            # 40 units, 20 million rows
MEASURED = cost.Measured((3600.0, 7200.0, 14_400.0), bronze_mb=100.0, silver_mb=50.0, gold_mb=10.0, speedup=1.6)


def test_the_plan_of_the_site():
    assert cost.Plan().rows == 50 * 365 * 864_000 == 15_768_000_000 and cost.Plan().units == 18_250


@pytest.mark.parametrize("cores, chains, each, hours, ideal", [
    (1, 1, 1, 40.0, 40.0),           # 40 units of half a million rows, 7200 s a million: an hour each
    (2, 2, 1, 20.0, 20.0), (3, 3, 1, 20.0, 40 / 3),      # four chains on three cores: two turns, or days dealt out
    (4, 4, 1, 10.0, 10.0), (7, 4, 1, 10.0, 10.0),        # more cores than chains change nothing
    (8, 4, 2, 6.25, 6.25)])          # two for each chain: 1.6 times as fast
def test_hours_by_hand(cores, chains, each, hours, ideal):
    told = cost.wall(MEASURED, PLAN, cores)
    assert (told["chains"], told["cores_a_chain"], told["cores_busy"]) == (chains, each, chains * each)
    assert told["hours"] == pytest.approx(hours) and told["ideal_hours"] == pytest.approx(ideal)
    assert told["low"] == pytest.approx(ideal / 2) and told["high"] == pytest.approx(hours * 2)


def test_overhead_is_added_to_each_unit_and_no_core_shortens_it():
    slow = cost.Measured(**{**vars(MEASURED), "overhead_s": 3600.0})
    assert cost.wall(slow, PLAN, 4)["hours"] == pytest.approx(20.0)
    assert cost.wall(slow, PLAN, 8)["hours"] == pytest.approx(10 * (1 / 1.6 + 1))


def test_speedup_is_amdahls():
    assert cost.speedup(1.6, 1) == 1.0 and cost.speedup(1.6, 2) == pytest.approx(1.6)
    assert cost.speedup(1.6, 4) == pytest.approx(1 / (0.25 + 0.75 / 4)) and cost.speedup(2.0, 8) == pytest.approx(8.0)
    assert cost.speedup(1.0, 64) == 1.0 and cost.speedup(0.7, 64) == 1.0      # what slows down is not used


def test_terabytes_requests_and_rates_by_hand():
    told = cost.estimate(MEASURED, PLAN)
    assert told["storage_tb"] == pytest.approx({"bronze": 0.002, "silver": 0.001, "gold": 0.0002})
    assert told["requests"] == {"LIST": 40 * 13, "GET": 40 * 8, "PUT": 40 * 12}
    moved = 20 * (100 + 2 * 50 + 10)                                          # MB: silver is written and read
    assert told["cores"]["1"]["mb_s"] == pytest.approx(moved / (40 * 3600))
    assert list(told["cores"]) == ["1", "16", "50", "128"]


def side_of(rows, cpu, **more): return {"rows": rows, "cpu": dict(zip(("min", "median", "max"), cpu)), **more}


def test_the_model_reads_results():
    walls = {n: {"wall": dict(zip(("min", "median", "max"), w))} for n, w in
             (("1 core", (2.0, 3.0, 4.0)), ("2 cores", (1.0, 2.0, 3.0)))}
    cases = {"books_silver": {"sides": {"daedalus_etl": side_of(1e6, (5, 6, 7), bytes_in=2e8, bytes_out=3e8)}},
             "books_gold": {"sides": {"daedalus_etl": side_of(2e6, (1, 2, 3), bytes_out=4e6)}},
             "books_cores": {"sides": walls}}
    told = cost.measured_of({"cases": cases})
    assert told.seconds == (2.5, 4.0, 5.5) and told.speedup == 1.5 and told.overhead_s is None
    assert (told.bronze_mb, told.silver_mb, told.gold_mb) == (200.0, 300.0, 2.0)
    told = {"cluster": {"result": {"cost of a unit": {"noop ms/unit": 3.0, "tiny extra ms/unit": 8.0}}}}
    assert cost.measured_of({"cases": cases, "scripts": told}).overhead_s == 0.008
    cases["books_cores"]["sides"] = {"1 core": {"skipped": "no"}, "2 cores": {"skipped": "no"}}
    assert cost.measured_of({"cases": cases}).seconds == pytest.approx((5.5, 7.0, 8.5))
    assert cost.measured_of({"cases": {}}) is None


# ---- what the site shows

def test_committed_results_have_the_schema_and_every_case():
    results = json.loads(RESULTS.read_text())
    check_schema(results)
    assert set(results["cases"]) == set(every()) and (results["cost"] is not None or results["quick"])
    assert [f"{n}/{s}" for n, c in results["cases"].items() for s, v in c["sides"].items() if "failed" in v] == []


def test_page_tables_and_results_agree():
    "The Markdown is what the results make, and the page shows all of its tables."
    assert SHOWN.read_text() == report.markdown(json.loads(RESULTS.read_text()))
    cells = json.loads((ROOT / "nbs" / "benchmarks.ipynb").read_text())["cells"]
    outputs = [o.get("data", {}) for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    shown = "\n".join("".join(d.get("text/markdown", "")) for d in outputs)
    missing = [line for line in SHOWN.read_text().splitlines() if line.startswith("|") and line not in shown]
    assert missing == [], "run `python -m benchmarks --redraw`"


# ---- the front

def test_front_finds_the_clone_and_says_where_to_get_it(tmp_path):
    assert bench.suite() == ROOT
    with pytest.raises(InputNotFoundError, match="Clone the project"): bench.suite(tmp_path)


def test_front_lists_cases():
    done = subprocess.run([sys.executable, "-m", "daedalus_etl.cli", "bench", "--list"], capture_output=True, text=True,
                          cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == {*every(), *SCRIPTS}


def test_flags_of_both_fronts_are_the_same():
    words = ["--case", "live", "--python", "x=y", "--python", "z=w"]
    args = bench.add_flags(argparse.ArgumentParser()).parse_args(words)
    assert args.python == ["x=y", "z=w"] and args.rounds == 3 and not args.quick


def test_env_keeps_what_was_made_once():
    env, calls = Env(Path("."), Path("."), 1), []
    assert [env.once("x", lambda: calls.append(1) or 5) for _ in range(3)] == [5, 5, 5] and calls == [1]
