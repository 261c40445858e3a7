"Pipelines: what a configuration means, plans that reach through all tiers, runs that do just that, and failures."
import json
import random
import re
import shutil
import sys
import textwrap
from pathlib import Path

import lakes
import polars as pl
import pytest
import yaml
from lakes import BTC, ETH, cli, leaf, put, quotes, tape
from polars.testing import assert_frame_equal

from daedalus_etl.core.base import BaseTransform
from daedalus_etl.core.config import DaedalusConfig, FilterSpec, StorageConfig, load_config
from daedalus_etl.core.enums import DataFormat, WriteMode
from daedalus_etl.core.errors import ConfigError, EmptyMatchError, TransformError, UnknownTransformError
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.pipeline import Pipeline
from daedalus_etl.core.registry import register_transform
from daedalus_etl.core.steps import default_steps, steps_of
from daedalus_etl.runners import jobs
from daedalus_etl.storage import objects as store

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"categories": ["structural"], "bar_durations": [60, 900]}
BARS = {"transform": "bars", "inputs": {"silver": "trades"}}
THREE = {"trades": {}, "bars": BARS, "hours": BARS | {"features": {"bar_durations": [3600]}}, "ticker": {}}


@register_transform("daily_sum")
class DailySum(BaseTransform):
    "Volume of each partition of two inputs: a transform of a user's own."
    parameters = ()

    def transform(self, inputs, context):
        parts = [f.select(pl.lit(n).alias("input"), pl.len().alias("rows")) for n, f in inputs.items()]
        return {"gold": pl.concat(parts)}


@register_transform("stumbles")
class Stumbles(BaseTransform):
    "Fails with an error of its own wherever ETH comes by."
    parameters = ()

    def transform(self, inputs, context):
        if context.stream == ETH: raise ValueError("no ETH here")
        return {"silver": inputs["trades"]}


@pytest.fixture
def bronze(tmp_path):
    "Two days of two streams of trades, two days of one stream of quotes."
    for day in (8, 9):
        for stream in (BTC, ETH): put(tmp_path / "raw/trades", tape(day, 60, stream), day, stream)
        put(tmp_path / "raw/ticker", quotes(day, 60), day)
    return tmp_path / "raw"


@pytest.fixture
def home(bronze): return bronze.parent


def pipeline(home, steps=None, **features):
    "A pipeline of `steps` over the bronze in `home`, with few columns."
    return Pipeline.from_config(DaedalusConfig(
        features=QUICK | features, pipeline=THREE if steps is None else steps,
        storage={"input_root": str(home / "raw"), "output_root": str(home / "lake")}))


def quiet(): return TransformExecutor(workers=2, progress=False)
def run(p, *args, **kwargs): return p.run(*args, executor=quiet(), **kwargs)
def plan(p, *args, **kwargs): return p.plan(*args, executor=quiet(), **kwargs)


def run_on(p, *args, **kwargs):
    "The report of a run that fails."
    with pytest.raises(Exception) as caught: run(p, *args, **kwargs)
    return caught.value.report


def touched(report, *statuses) -> dict[str, set[str]]:
    "By step, the partitions that were written, or are to be."
    wanted = statuses or ("written", "new", "changed", "stale")
    return {s.name: {u.partition for u in s.report.units if u.status in wanted} for s in report.steps if s.report}


def status(report): return {s.name: s.status for s in report.steps}
def units(report, step): return {u.partition: (u.status, u.reason) for u in report[step].units}


def plan_and_run(p, *args, **kwargs):
    "Plan, run, and see that the run wrote just what was planned; both reports."
    before = plan(p, *args, **kwargs)
    after = run(p, *args, **kwargs)
    assert touched(after, "written") == touched(before)
    return before, after


# ---- what the configuration means

def config_at(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(textwrap.dedent(text))
    return load_config(path)


@pytest.mark.parametrize(("text", "line", "found"), [
    ("  trades: {}\n  a: {transform: bars, inputs: {silver: trades}, depends_on: [b]}\n"
     "  b: {transform: bars, inputs: {silver: a/60s}}", 3, "a needs b needs a"),
    ("  trades: {}\n  trades_bars:\n    depends_on: [trads]", 4, "Did you mean 'trades'?"),
    ("  trades:\n    depends_on:\n    - trades", 4, "depends on itself"),
    ("  trades: {}\n  ticker:\n    outputs:\n      silver: '{output}/silver/trades'", 5, "writes there, too"),
    ("  trades_bars:\n    inputs:\n      silver: '{output}/gold/trades_bars/60s'", 4, "writes itself"),
    ("  trades_bars:\n    inputs:\n      silver: tradse\n  trades: {}", 4, "Did you mean 'trades'"),
    ("  trades:\n    inptus: {}", 3, "Did you mean 'inputs'?"),
    ("  trades:\n    inputs:\n      trades: {path: x/y, formt: csv}", 4, "Did you mean 'format'?"),
    ("  trades:\n    mode: apend", 3, "Did you mean 'append'?"),
    ("  trades:\n    features:\n      depth_levels: few", 4, "depth_levels"),
    ("  trades:\n    features:\n      depth_level: 3", 4, "Did you mean 'depth_levels'?"),
    ("  trades:\n    filter: {symbols: BTC}", 3, "Did you mean 'symbol'?"),
    ("  trades:\n    compression: zstd\n    compression_level: 99", 2, "found 99"),
    ("  mine: {transform: own}", 2, "mine.outputs: missing"),
    ("  mine: {}", 2, "mine.transform: missing"),
    ("  bad.name: {}", 2, "bad.name"),
    ("  trades: {format: delta}\n  trades_bars: {}", 3, "Delta")])
def test_mistakes_are_found_with_their_line(tmp_path, text, line, found):
    with pytest.raises(ConfigError) as caught: config_at(tmp_path, f"pipeline:\n{text}\n")
    assert f"c.yaml:{line}: " in str(caught.value) and found in str(caught.value), caught.value


@pytest.mark.parametrize("module", ["my-package", "../evil", "a..b", "", "/tmp/x.py", "a b"])
def test_plugins_are_dotted_names(module):
    with pytest.raises(ConfigError, match="plugins"): DaedalusConfig(plugins=[module])


def test_the_example_in_the_shipped_file_is_the_default():
    text = (ROOT / "config/config.yaml").read_text()
    example = [line[4:] for line in text.splitlines() if line.startswith("#   ")]
    written = DaedalusConfig(**yaml.safe_load("\n".join(example)))
    def seen(config):
        return {s.name: (s.config.model_copy(update={"description": ""}), s.features, s.filter, s.before, s.enabled)
                for s in steps_of(config)}
    assert list(written.pipeline) == list(default_steps())
    assert seen(written) == seen(DaedalusConfig()) == seen(load_config(ROOT / "config/config.yaml"))


def test_the_example_shows_every_field():
    text = (ROOT / "config/config.yaml").read_text()
    for name in type(DaedalusConfig(pipeline={"trades": {}}).pipeline["trades"]).model_fields:
        assert re.search(rf"^# +{name}: ", text, re.M), name


def test_a_step_says_how_its_outputs_are_written():
    storage = StorageConfig(compression_level=7, row_group_size=99)
    step = {"mode": "merge", "key_cols": ["trade_id"], "format": "parquet", "row_group_size": 5, "atomic": "run"}
    (plain, own), = [steps_of(DaedalusConfig(storage=storage, pipeline={"trades": {}, "ticker": step}))]
    (a,), (b,) = plain.config.outputs.values(), own.config.outputs.values()
    assert (a.compression_level, a.row_group_size, a.mode) == (7, 99, WriteMode.OVERWRITE_PARTITION)
    assert (b.compression_level, b.row_group_size, b.mode, b.key_cols) == (7, 5, WriteMode.MERGE, ("trade_id",))
    assert (plain.config.atomic, own.config.atomic, b.format) == ("partition", "run", DataFormat.PARQUET)


def test_dependencies_are_seen_in_paths_too(home):
    steps = {"late": {"transform": "daily_sum", "outputs": {"gold": "{output}/gold/late"},
                      "inputs": {"bars": "{output}/gold/./bars/60s"}}, "bars": BARS, "trades": {}}
    assert pipeline(home, steps).order == ["trades", "bars", "late"]


def test_unknown_transform_is_found_before_anything_runs(home):
    with pytest.raises(UnknownTransformError, match="step 'mine'.*Did you mean 'daily_sum'"):
        run(pipeline(home, {"trades": {}, "mine": {
            "transform": "dayly_sum", "inputs": {"trades": "trades"}, "outputs": {"gold": "{output}/gold/m"}}}))
    assert not (home / "lake").exists()


# ---- plans through the tiers, and runs that do what they say

def test_plan_of_nothing_yet(home):
    p = pipeline(home)
    before, after = plan_and_run(p)
    assert before.counts == {"new": 14} and after.counts == {"written": 14} and len(p) == 4
    assert units(before, "bars")[leaf(8)] == ("new", "no output yet, and its input will be computed")
    assert units(before, "trades")[leaf(8)] == ("new", "no output yet")
    assert status(before) == dict.fromkeys(p.order, "to do") and status(after) == dict.fromkeys(p.order, "written")


def test_second_run_touches_nothing_in_any_tier(home):
    p = pipeline(home)
    run(p)
    seen = lakes.places(home / "lake")
    before, after = plan_and_run(p)
    assert set(status(before).values()) == set(status(after).values()) == {"done"}
    assert before.counts == after.counts == {"done": 14} and before.reasons().is_empty()
    assert lakes.places(home / "lake") == seen


def test_plan_writes_nothing(home):
    plan(pipeline(home))
    assert not (home / "lake").exists()


def test_late_day_goes_through_all_tiers(home):
    p = pipeline(home)
    run(p)
    put(home / "raw/trades", tape(10, 60), 10)
    plan_and_run(p)
    put(home / "raw/trades", tape(11, 60), 11)
    before, _ = plan_and_run(p)
    late = {leaf(9), leaf(10), leaf(11)}           # bars look at the day behind, and at the one that shows it is over
    assert touched(before) == {"trades": {leaf(11)}, "bars": late, "hours": late, "ticker": set()}
    assert units(before, "bars")[leaf(9)] == ("changed", "its input will be computed")
    assert units(before, "bars")[leaf(8)][0] == "done" and status(before)["ticker"] == "done"


def test_changed_day_may_change_the_next(home):
    "What follows a perhaps is one: the plan holds all that is written, and maybe more."
    p = pipeline(home)
    run(p)
    put(home / "raw/trades", tape(8, 61), 8)
    before = plan(p)
    assert units(before, "trades")[leaf(9)][1].startswith("the state before it may change")
    assert units(before, "bars")[leaf(9)] == ("changed", "its input may change: computed unless that stays as it is")
    after = touched(run(p), "written")
    for step, written in after.items(): assert written <= touched(before)[step]
    assert all(leaf(8) in after[step] for step in ("trades", "bars", "hours"))


def test_changed_parameter_makes_its_step_stale_and_what_follows_changed(home):
    run(pipeline(home))
    before, _ = plan_and_run(pipeline(home, categories=["structural", "dynamic"]))
    assert {s.name: set(s.counts) for s in before.steps} == {
        "trades": {"stale"}, "bars": {"changed"}, "hours": {"changed"}, "ticker": {"stale"}}


def test_parameter_of_one_step_leaves_the_others(home):
    run(pipeline(home))
    steps = THREE | {"hours": BARS | {"features": {"bar_durations": [7200]}}}
    before, _ = plan_and_run(pipeline(home, steps))
    assert {s.name: set(s.counts) for s in before.steps} == {
        "trades": {"done"}, "bars": {"done"}, "hours": {"new"}, "ticker": {"done"}}
    assert (home / "lake/gold/hours/7200s").is_dir() and not (home / "lake/gold/bars/7200s").exists()


def test_lost_silver_is_made_again_with_what_hangs_on_it(home):
    p = pipeline(home)
    run(p)
    (home / "lake/silver/trades" / leaf(9, ETH) / "part-0.parquet").unlink()
    before, _ = plan_and_run(p)
    assert touched(before) == {"trades": {leaf(9, ETH)}, "ticker": set(), **dict.fromkeys(
        ("bars", "hours"), {leaf(8, ETH), leaf(9, ETH)})}


@pytest.mark.parametrize("seed", range(3))
def test_random_changes(home, seed):
    "Whatever happens to the files of any tier: all that a run writes was planned, and then there is nothing left."
    rng, steps = random.Random(seed), {"trades": {}, "bars": BARS}
    p = pipeline(home, steps)
    for _ in range(4):
        day, stream = rng.choice((8, 9, 10)), rng.choice((BTC, ETH))
        tier = home / rng.choice(("raw/trades", "lake/silver/trades", "lake/gold/bars/60s")) / leaf(day, stream)
        if tier.is_dir() and "lake" in tier.parts: next(tier.glob("*.parquet")).unlink()
        else: put(home / "raw/trades", tape(day, rng.choice((40, 60)), stream), day, stream)
        before = touched(plan(p))
        after = touched(run(p), "written")
        assert all(after[s] <= before[s] for s in steps), (day, stream)
        assert set(plan(p).counts) == {"done"}


def test_own_transform_over_two_steps_and_three_tiers(home):
    steps = THREE | {"sums": {"transform": "daily_sum", "outputs": {"gold": "{output}/gold/sums"}, "inputs": {
        "bars": "bars/60s", "quotes": {"path": "ticker", "optional": True}}}}
    before, _ = plan_and_run(pipeline(home, steps))
    assert touched(before)["sums"] == {leaf(d, s) for d in (8, 9) for s in (BTC, ETH)}
    rows = pl.read_parquet(home / "lake/gold/sums" / leaf(8) / "part-0.parquet")
    assert rows["input"].to_list() == ["bars", "quotes"] and (rows["rows"] > 50).all()
    put(home / "raw/ticker", quotes(9, 70), 9)
    before, _ = plan_and_run(pipeline(home, steps))
    assert touched(before) == {"trades": set(), "bars": set(), "hours": set(), "ticker": {leaf(9)}, "sums": {leaf(9)}}


def test_overrides_of_a_symbol_are_known_to_plans(home):
    own = {"overrides": {"ETH-USDT": {"bar_durations": [60]}}}
    steps = {"trades": {}, "bars": BARS, "sums": {
        "transform": "daily_sum", "inputs": {"bars": "bars/900s"}, "outputs": {"gold": "{output}/gold/sums"}}}
    before, _ = plan_and_run(pipeline(home, steps, **own))
    assert touched(before)["sums"] == {leaf(8), leaf(9)}


@pytest.mark.parametrize("spec", [
    FilterSpec(symbol="BTC/USDT"), FilterSpec(end_date="2024-08-08"), FilterSpec(symbol="ETH-USDT", day=8)])
def test_filters_of_a_run(home, spec):
    p = pipeline(home, {"trades": {}, "bars": BARS})
    before, _ = plan_and_run(p, spec)
    wanted = {leaf(d, s) for d in (8, 9) for s in (BTC, ETH) if spec.keeps_day(lakes.day_start(d).date())
              and spec.keeps("symbol", s[1])}
    assert touched(before) == {"trades": wanted, "bars": wanted}
    plan_and_run(p)


def test_filter_of_a_step(home):
    steps = {"trades": {}, "bars": BARS | {"filter": {"symbol": "BTC/USDT"}}}
    before, _ = plan_and_run(pipeline(home, steps))
    assert touched(before)["bars"] == {leaf(8), leaf(9)}
    other = run(pipeline(home, steps), FilterSpec(symbol="ETH-USDT"))
    assert status(other)["bars"] == "skipped" and "the step is for symbol" in other.steps[1].note
    with pytest.raises(EmptyMatchError, match="no step was begun"):
        run(pipeline(home, steps).select("bars", only=True), FilterSpec(symbol="ETH-USDT"))


def test_bytes_are_those_of_single_runs(home, bronze, tmp_path):
    run(pipeline(home, {"trades": {}, "trades_bars": {}}))
    base = ["--input", bronze / "trades", "--output", tmp_path / "one"]
    for command in (["trades", *base, "--categories", "structural"],
                    ["bars", "--output", tmp_path / "one", "--durations", "60,900"]):
        assert cli(*command).returncode == 0
    def data(lake): return {k: v for k, v in lakes.contents(lake).items() if k.endswith(".parquet")}
    one, whole = data(tmp_path / "one"), data(home / "lake")
    assert list(one) == list(whole) and len(one) == 12


def test_run_published_as_one_is_planned_as_one(home):
    steps = {"trades": {"mode": "overwrite"}, "bars": BARS}
    p = pipeline(home, steps)
    plan_and_run(p)
    for path in (home / "raw/trades" / leaf(9, ETH)).iterdir(): path.unlink()
    before, after = plan_and_run(p)
    assert units(before, "trades")[leaf(9, ETH)][0] == "vanished"
    assert units(before, "bars")[leaf(9, ETH)][0] == units(after, "bars")[leaf(9, ETH)][0] == "vanished"


def test_states_lie_in_a_folder_of_each_step(home, tmp_path):
    p = pipeline(home)
    run(p, FilterSpec(day=8), state_path=tmp_path / "states")
    assert sorted(f.name for f in (tmp_path / "states").iterdir()) == sorted(p.order)
    run(p, FilterSpec(day=9), state_path=tmp_path / "states")


def test_on_an_object_store(home, bucket, tmp_path, monkeypatch):
    "Bronze and lake in a bucket: the same plan, the same run, and the same rows as on a disk."
    monkeypatch.setenv("DAEDALUS_SPOOL", str(tmp_path / "spool"))
    steps = {"trades": {}, "trades_bars": {}}
    for p in (home / "raw/trades").rglob("*.parquet"):
        store.put(f"{bucket}/raw/{p.relative_to(home / 'raw').as_posix()}", p)
    there = Pipeline.from_config(DaedalusConfig(
        features=QUICK, storage={"input_root": f"{bucket}/raw", "output_root": f"{bucket}/lake"}))
    assert there.order == ["trades", "trades_bars"]                     # found below the bucket
    plan_and_run(there)
    run(pipeline(home, steps))
    made = {o.url.removeprefix(f"{bucket}/lake/") for o in store.walk(f"{bucket}/lake")}
    data = {p for p in lakes.contents(home / "lake") if p.endswith(".parquet")}
    assert {p for p in made if p.endswith(".parquet")} == data and len(data) == 12
    def rows(root): return pl.read_parquet(f"{root}/**/*.parquet", hive_partitioning=True)
    for name in ("silver/trades", "gold/trades_bars/60s"):
        assert_frame_equal(rows(f"{bucket}/lake/{name}"), rows(home / "lake" / name), check_exact=True)
    put(home / "late", tape(10, 60), 10)
    store.put(f"{bucket}/raw/trades/{leaf(10)}/data.parquet", home / "late" / leaf(10) / "data.parquet")
    before, _ = plan_and_run(there)
    assert touched(before) == {"trades": {leaf(10)}, "trades_bars": {leaf(d) for d in (8, 9, 10)}}
    assert set(plan(there).counts) == {"done"}


# ---- failures

def broken(home, day=8, stream=ETH): put(home / "raw/trades", tape(day, 60, stream).drop("price"), day, stream)


def test_dependants_go_on_with_what_was_published(home):
    broken(home, 9)
    report = run_on(pipeline(home))
    assert status(report) == {"trades": "failed", "bars": "written", "hours": "written", "ticker": "written"}
    assert report.steps[1].note == "goes on with what trades published"
    assert touched(report, "written")["bars"] == {leaf(8), leaf(9), leaf(8, ETH)}
    put(home / "raw/trades", tape(9, 60, ETH), 9, ETH)
    plan_and_run(pipeline(home))
    alone = pipeline(home).plan(executor=quiet())
    assert set(alone.counts) == {"done"}


def test_depends_on_means_success(home):
    broken(home)
    steps = THREE | {"hours": BARS | {"depends_on": ["trades"]}, "ticker": {"depends_on": ["hours"]}}
    report = run_on(pipeline(home, steps))
    assert status(report) == {"trades": "failed", "bars": "written", "hours": "skipped", "ticker": "skipped"}
    assert [s.note for s in report.steps[2:]] == ["needs trades to succeed", "needs hours to succeed"]
    assert not (home / "lake/silver/ticker").exists()


def test_nothing_to_go_on_with(home):
    for day in (8, 9):
        for stream in (BTC, ETH): broken(home, day, stream)
    report = run_on(pipeline(home))
    assert status(report) == {"trades": "failed", "bars": "skipped", "hours": "skipped", "ticker": "written"}
    assert report.steps[1].note == f"waits for {home}/lake/silver/trades"
    assert report.failed[0].report.totals()["failed"] == 2


def test_missing_input_is_one_steps_fault(home):
    shutil.rmtree(home / "raw/ticker")
    steps = {"ticker": {}, "ticker_bars": {}, "trades": {}}
    report = run_on(pipeline(home, steps))
    assert status(report) == {"ticker": "failed", "ticker_bars": "skipped", "trades": "written"}
    assert status(plan(pipeline(home, steps))) == {"ticker": "failed", "ticker_bars": "skipped", "trades": "done"}
    with pytest.raises(Exception, match="raw/ticker: no such folder"): plan(pipeline(home, steps)).raise_first()


def test_a_step_that_is_not_meant_keeps_nobody_waiting(home):
    "A filter that meets nothing of the run is no failure: what depends on the step goes on."
    steps = {"ticker": {"filter": {"symbol": "ETH/USDT"}}, "trades": {"depends_on": ["ticker"]}}
    report = run(pipeline(home, steps), FilterSpec(symbol="BTC/USDT"))
    assert status(report) == {"ticker": "skipped", "trades": "written"}
    apart = {"ticker": {"filter": {"start_date": "2024-08-20"}}, "trades": {}}
    report = run(pipeline(home, apart), FilterSpec(end_date="2024-08-10"))
    assert status(report)["ticker"] == "skipped" and "no day in common" in report.steps[0].note
    assert status(report)["trades"] in ("written", "done")


def test_places_are_the_same_in_any_spelling(home, monkeypatch):
    monkeypatch.chdir(home)
    steps = {"bars": {"transform": "bars", "inputs": {"silver": f"{home}/lake/silver/trades"}}, "trades": {}}
    storage = {"input_root": "raw", "output_root": "lake"}
    p = Pipeline.from_config(DaedalusConfig(features=QUICK, pipeline=steps, storage=storage))
    assert p.order == ["trades", "bars"]
    both = {"trades": {}, "again": {"transform": "trades_features", "inputs": {"trades": "raw/trades"},
                                    "outputs": {"silver": f"{home}/lake/silver/trades"}}}
    with pytest.raises(ConfigError, match="is one place with"):
        Pipeline.from_config(DaedalusConfig(features=QUICK, pipeline=both, storage=storage))


@pytest.mark.parametrize(("trades", "inputs"), [
    (None, {"orderbook": "raw/orderbook", "trades": "raw/trades"}), ("", {"orderbook": "raw/orderbook"}),
    ("elsewhere", {"orderbook": "raw/orderbook", "trades": "elsewhere"})])
def test_trades_that_are_asked_for_replace_those_that_are_declared(trades, inputs):
    steps = {"orderbook": {"inputs": {"orderbook": "{input}/orderbook", "trades": "{input}/trades"}}}
    config = DaedalusConfig(pipeline=steps, storage={"input_root": "raw", "output_root": "lake"})
    (step,) = steps_of(config, trades=trades)
    assert {n: i.path for n, i in step.config.inputs.items()} == inputs


def test_errors_of_own_transforms_stop_only_what_needs_them(home):
    own = {"transform": "stumbles", "inputs": {"trades": "{input}/trades"}, "outputs": {"silver": "{output}/silver/o"}}
    with pytest.raises(ValueError, match="no ETH here") as caught:
        run(pipeline(home, {"own": own, "bars": BARS | {"inputs": {"silver": "own"}}, "trades": {}}))
    report = caught.value.report
    assert status(report) == {"own": "failed", "bars": "written", "trades": "written"}
    assert touched(report, "written")["bars"] == {leaf(8), leaf(9)}
    assert any("step own" in note for note in caught.value.__notes__)


def test_conflict_ends_a_chain_in_the_plan_too(home):
    stranger = home / "lake/silver/trades" / leaf(8, ETH) / "other.parquet"
    stranger.parent.mkdir(parents=True)
    tape().write_parquet(stranger)
    p = pipeline(home, {"trades": {}, "sums": {"transform": "daily_sum", "inputs": {"trades": {
        "path": "trades", "channel": None}}, "outputs": {"gold": "{output}/gold/s"}}})
    before = plan(p)
    assert status(before)["trades"] == "failed" and units(before, "trades")[leaf(8, ETH)][0] == "conflict"
    assert leaf(9, ETH) not in touched(before)["sums"] and leaf(9) in touched(before)["sums"]


def test_interrupt_is_not_swallowed(home):
    class Stops(TransformExecutor):
        def execute(self, *args, **kwargs): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): pipeline(home).run(executor=Stops(progress=False))


# ---- steps that are named

def test_named_steps_bring_those_before_them(home):
    p = pipeline(home)
    assert p.select("hours").order == ["trades", "hours"] and p.select("hours", only=True).order == ["hours"]
    assert p.select().order == p.order
    with pytest.raises(ConfigError, match="Did you mean 'hours'"): p.select("hour")


def test_disabled_step_runs_if_it_is_named(home):
    p = pipeline(home, THREE | {"hours": THREE["hours"] | {"enabled": False}})
    assert p.select().order == ["trades", "bars", "ticker"] and p.select("hours").order == ["trades", "hours"]


# ---- on the command line

def config_file(home, plugins=()):
    steps = THREE | {"sums": {"transform": "own_sum", "inputs": {"bars": "bars/60s"},
                              "outputs": {"gold": "{output}/gold/sums"}}}
    content = {"features": QUICK, "pipeline": steps if plugins else THREE, "plugins": list(plugins),
               "storage": {"input_root": "raw", "output_root": "lake"}}
    (home / "config").mkdir(exist_ok=True)
    (home / "config/config.yaml").write_text(json.dumps(content))


OWN = '''
import polars as pl
from daedalus_etl import BaseTransform, register_transform

@register_transform("own_sum")
class OwnSum(BaseTransform):
    "Rows of each partition."
    def transform(self, inputs, context): return {"gold": inputs["bars"].select(pl.len().alias("rows"))}
'''


def test_the_command_line_with_a_plug_in(home):
    (home / "plug").mkdir()
    (home / "plug/my_transforms.py").write_text(OWN)
    config_file(home, ["my_transforms"])
    done = cli("plan", cwd=home)
    assert done.returncode == 1 and "'my_transforms' cannot be imported: ModuleNotFoundError" in done.stderr
    path = f"{ROOT}:{home / 'plug'}"
    done = cli("run", "sums", cwd=home, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (home / "lake/gold").iterdir()) == ["bars", "sums"]
    assert "pipeline: 3 steps; 12 partitions written" in done.stdout
    config_file(home)
    done = cli("plan", "hours", "--only", "--plugins", "my_transforms", cwd=home, PYTHONPATH=path)
    assert done.returncode == 0 and "1 step; 4 partitions to compute" in done.stdout, done.stderr


def main(home, monkeypatch, *args):
    from daedalus_etl import cli as commands
    monkeypatch.chdir(home)
    monkeypatch.delenv("DAEDALUS_CONFIG", raising=False)
    return commands.main(list(map(str, args)))


def test_exit_code_is_that_of_the_first_error(home, monkeypatch, capsys):
    config_file(home)
    broken(home)
    stranger = home / "lake/silver/ticker" / leaf(8) / "other.parquet"
    stranger.parent.mkdir(parents=True)
    tape().write_parquet(stranger)
    assert main(home, monkeypatch, "run") == 1
    said, err = capsys.readouterr()
    assert "goes on with what trades published" in said and "4 steps, 2 failed" in said
    assert "error: trades: " in err and "error: ticker: " in err and "Traceback" not in err
    assert main(home, monkeypatch, "run", "ticker") == 3
    assert main(home, monkeypatch, "run", "nothing") == 2
    assert "there is no step 'nothing'" in capsys.readouterr().err


def test_status_knows_what_is_to_come(home, monkeypatch, capsys):
    config_file(home)
    assert main(home, monkeypatch, "status", "bars") == 0
    said = capsys.readouterr().out
    rows = [[w.strip() for w in line.strip("│").split("┆")] for line in said.splitlines() if "┆" in line]
    assert ["bars", "gold/bars/60s", "0", "4"] in [r[:4] for r in rows]
    assert main(home, monkeypatch, "run", "bars", "--symbol", "BTC-USDT") == 0
    capsys.readouterr()
    assert main(home, monkeypatch, "status", "bars") == 0
    rows = [[w.strip() for w in line.strip("│").split("┆")] for line in capsys.readouterr().out.splitlines()]
    assert ["bars", "gold/bars/900s", "2", "2"] in [r[:4] for r in rows]


def test_status_says_what_cannot_be_planned(home, monkeypatch, capsys):
    config_file(home)
    shutil.rmtree(home / "raw/ticker")
    assert main(home, monkeypatch, "status") == 2
    said, err = capsys.readouterr()
    assert "silver/trades" in said and "raw/ticker: no such folder" in err and "Traceback" not in err
    assert main(home, monkeypatch, "run", "--only") == 2 and "names of steps" in capsys.readouterr().err


def test_bars_of_quotes_on_other_clocks_are_refused(home):
    steps = {"trades": {}, "bars": BARS, "ticker": {}, "quotes": {"transform": "bars", "inputs": {"silver": "ticker"}}}
    report = run_on(pipeline(home, steps, bars=[{"type": "volume", "threshold": 10}]))
    assert status(report) == dict.fromkeys(("trades", "bars", "ticker"), "written") | {"quotes": "failed"}
    assert "volume-10" in str(report.failed[0].error) and "counted in trades" in str(report.failed[0].error)


def test_input_and_output_of_the_command_line(home, monkeypatch):
    config_file(home)
    (home / "raw").rename(home / "other")
    assert main(home, monkeypatch, "run", "ticker", "--input", "other", "--output", "there") == 0
    assert (home / "there/silver/ticker").is_dir() and not (home / "lake").exists()


# ---- looks

def test_what_is_shown(home):
    p, report = pipeline(home), plan(pipeline(home))
    assert "| `bars` | bars | trades |" in p._repr_markdown_()
    assert p.mermaid().splitlines()[0] == "flowchart LR" and repr(p) == "Pipeline(trades > bars > hours > ticker)"
    for text in (report._repr_markdown_(), report._repr_html_()):
        assert "14 partitions to compute" in text and "its input will be computed" in text
    assert report.partitions().height == 14 and list(report) == p.order and report.success
    assert report.reasons()["partitions"].sum() == 14


def test_secrets_in_errors_are_not_shown(home):
    class Tells(TransformExecutor):
        def execute(self, *args, **kwargs): raise TransformError("at s3://key:s3cr3t@bucket/x")
    report = run_on_with(pipeline(home, {"trades": {}}), Tells(progress=False))
    assert "s3cr3t" not in report._repr_html_() + report._repr_markdown_() + str(report.to_frame().to_dicts())


def run_on_with(p, executor):
    with pytest.raises(TransformError) as caught: p.run(executor=executor)
    return caught.value.report


def test_jobs_keep_their_names():
    assert jobs.CHANNELS == ("trades", "ticker", "orderbook") and callable(jobs.features_config)
    assert "daedalus_etl.core.pipeline" in sys.modules
