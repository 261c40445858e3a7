"""Bars of trades on every clock, end to end: frames, cuts, partitions, the live stream and the command line.

The truth are edges (`naive_edges`) and columns (`naive`) written from the definitions alone; runs are held to the same
bits however the trades come in."""
import json
import shutil
import math
from functools import cache

import lakes
import naive
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import BTC, ETH, cli, dataset, leaf, put, statuses, tape
from naive import SECOND
from numba import config as numba_config
from strategies import trade_rows
from test_bar_clocks import naive_edges
from test_contract import frame, meets, ordered, pieces, plain, same, silver, through_bytes

from daedalus_etl.core.base import TransformContext
from daedalus_etl.core.catalog import Catalogue
from daedalus_etl.core.config import BarSpec, DaedalusConfig, FeatureConfig
from daedalus_etl.core.errors import ConfigError, StateError
from daedalus_etl.core.pipeline import Pipeline
from daedalus_etl.core.state import dump_state
from daedalus_etl.features.bars import BarsProcessor
from daedalus_etl.features.frames import features
from daedalus_etl.features.state import BarBuilder
from daedalus_etl.features.trade_bars import bar_keys, bar_name
from daedalus_etl.transforms.bars import StreamBars

CLOCKS = ("tick:7", "volume:2.5", "dollar:150000", "cusum:0.0005", "tick_imbalance:4", "volume_imbalance:1.5",
          "dollar_imbalance:90000", "tick_runs:5", "volume_runs:1.5", "dollar_runs:90000", "tick_imbalance:20:adaptive",
          "volume_runs:20:adaptive", "dollar_runs:25:adaptive")
BLOCKS = ("delta", "size", "footprint", "entropy", "range", "liquidity", "jumps")
EVENTS = FeatureConfig(rolling_windows=(5,), bar_durations=(), bars=CLOCKS)
BOTH = FeatureConfig(rolling_windows=(5,), bar_durations=(60, 3600), bars=CLOCKS, bar_blocks=BLOCKS)
LABELS = tuple(b.label for b in EVENTS.bars)
briefly = settings(max_examples=5 if numba_config.DISABLE_JIT else 12)


# ---- running the package

def process(parts, config, *, restart=False) -> dict:
    "All bars of the ordered `parts` by clock, the open time bars at the end, and the end's state."
    def made(state=None): return BarsProcessor("trades", config, config.bar_durations, state, bars=config.bars)
    processor, out = made(), {k: [] for k in bar_keys(config)}
    for part in parts:
        for k, bars in processor.process(part).items(): out[k].append(bars)
        if restart: processor = made(through_bytes(processor.state()))
    return {k: processor.frame(k, bars) for k, bars in out.items()} | {"state": dump_state(processor.state())}


def transformed(rows: pl.DataFrame, config, **context) -> dict[str, pl.DataFrame]:
    "Bars of silver or bronze rows by the transform itself, by dataset; the transform as `transform`."
    transform = lakes.bars("nowhere", "nowhere")
    out = transform.transform({"silver": rows.lazy()}, TransformContext(feature_config=config, **context))
    return {k.removeprefix("gold/"): v.collect() for k, v in out.items()}


def equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for k in a: assert a[k] == b[k] if k == "state" else identical(a[k], b[k]), k


def identical(a: pl.DataFrame, b: pl.DataFrame) -> bool:
    "The same bits; of lists the same values."
    assert a.schema == b.schema
    lists = [c for c, d in a.schema.items() if d.is_nested()]
    same(a.drop(lists), b.drop(lists))
    return a.select(lists).equals(b.select(lists), null_equal=True)


# ---- what a bar on another clock is

def event_bars(rows: list[dict], clock: BarSpec) -> list[dict]:
    "The bars of ordered trades, from the formulas; times in us."
    silver, t = naive.trades(rows, ()), [naive.clock_us(r, "capture_ts") for r in rows]
    signs = [r["side_sign"] or 0 for r in silver]
    edges = naive_edges(clock, [(c, r["price"], r["amount"], s) for c, r, s in zip(t, rows, signs)])
    return [event_bar(silver[a:b], t[a:b]) for a, b in zip([0, *edges], edges)]


def event_bar(own: list[dict], t: list[int]) -> dict:
    length, sums = (t[-1] - t[0]) / SECOND, naive.trade_sums(own)
    variance = naive.sum_of_squares(r["log_return"] for r in own)
    sums["trade_imbalance"] = sums.pop("imbalance")
    defined = variance is not None and length > 0
    return sums | naive.ohlc([r["price"] for r in own]) | {
        "bar_start": t[0], "bar_end": t[-1], "available_at": t[-1], "is_complete": True, "n_obs": len(own),
        "bar_duration_sec": length, "realized_variance": variance,
        "realized_vol": None if variance is None else math.sqrt(variance),
        "annualized_vol": math.sqrt(variance * naive.YEAR_S / length) if defined else None}


@briefly
@given(rows=trade_rows(), clock=st.sampled_from(EVENTS.bars))
def test_bars_are_what_the_definitions_say(rows, clock):
    rows = ordered("trades", rows)
    config = FeatureConfig(bar_durations=(), bars=(clock,))
    got, want = process([frame("trades", rows)], config)[clock.label], event_bars(rows, clock)
    scale = max((r["amount"] for r in rows), default=0.0) * 32 * np.finfo(float).eps
    atol = {"trade_imbalance": 1e-9}
    def near(n, name): return atol.get(name, scale if "volume" in name else 0.0)
    meets(plain(got), want, Catalogue("trades_bars", config), near)


def test_bars_by_hand():
    "A volume of 10: the excess of a large trade closes the next bars early, and a bar is known with its last trade."
    trades = ((1, 100.0, 4.0, "buy"), (2, 102.0, 25.0, "sell"), (2, 101.0, 1.0, "buy"), (9, 103.0, 1.0, ""))
    rows = frame("trades", [dict(capture_ts=s * SECOND, price=p, amount=q, side=d) for s, p, q, d in trades])
    bars = process([rows], FeatureConfig(bar_durations=(), bars=["volume:10"]))["volume-10"]
    assert bars["n_obs"].to_list() == [2, 1, 1] and bars["volume"].to_list() == [29.0, 1.0, 1.0]
    seconds = bars.select(pl.col("bar_start", "bar_end", "available_at").dt.second()).rows()
    assert seconds == [(1, 2, 2), (2, 2, 2), (9, 9, 9)] and bars["is_complete"].all()
    assert bars["bar_duration_sec"].to_list() == [1.0, 0.0, 0.0] and bars["annualized_vol"].null_count() == 2


def test_every_clock_has_bars_on_the_tape():
    "So that the tests below say something."
    made = process([tape(8), tape(9)], BOTH)
    for label in LABELS: assert made[label].height > 20, label
    for k in bar_keys(BOTH): assert made[k].columns == list(Catalogue("trades_bars", BOTH)), k


# ---- any cut, the same bars

@briefly
@given(data=st.data())
def test_cuts_do_not_matter(data):
    rows = frame("trades", ordered("trades", data.draw(trade_rows())))
    config = BOTH.model_copy(update={"bar_durations": (60,), "bars": (data.draw(st.sampled_from(BOTH.bars)),)})
    whole = process([rows], config)
    parts = pieces(rows, data.draw(st.lists(st.integers(0, rows.height), max_size=6)))
    for restart in (False, True): equal(process(parts, config, restart=restart), whole)


def test_row_by_row_gives_the_same_bits():
    rows = tape(8)[:200]
    equal(process(pieces(rows, range(1, rows.height)), BOTH), process([rows], BOTH))


def test_clocks_do_not_know_of_each_other():
    whole = process([tape(8)], BOTH)
    for clock in EVENTS.bars:
        alone = process([tape(8)], BOTH.model_copy(update={"bars": (clock,), "bar_durations": ()}))
        assert identical(alone[clock.label], whole[clock.label])


def test_a_state_without_the_clock_is_refused():
    processor = BarsProcessor("trades", BOTH, (60,), bars=BOTH.bars[:2])
    processor.process(tape(8))
    state = through_bytes(processor.state())
    with pytest.raises(StateError, match="no bars of 900s"): BarsProcessor("trades", BOTH, (900,), state)
    with pytest.raises(StateError, match=f"no bars of {LABELS[2]}; expected one of 60s, {LABELS[0]}, "):
        BarsProcessor("trades", BOTH, (60,), state, bars=BOTH.bars)


def test_bars_ahead_of_the_partition_are_not_made_from_what_comes_later():
    "The look-ahead closes time bars and leaves the others, and the state, alone."
    bars, high = StreamBars("trades", BOTH, None), int(lakes.day_start(9).timestamp()) * SECOND
    bars.feed([tape(8)])
    before = {label: bars.bars(label, None, high) for label in LABELS}
    state = dump_state(bars.state(high))
    bars.look_ahead([tape(9).lazy()], tape(9).columns, high)
    for label in LABELS: assert identical(bars.bars(label, None, high), before[label])
    assert bars.bars(3600, None, high)["is_complete"].all()
    again = StreamBars("trades", BOTH, None)
    again.feed([tape(8)])
    assert dump_state(again.state(high)) == state


# ---- frames of several streams

def test_streams_are_apart():
    parts = [tape(8), tape(8, stream=ETH)]
    gold = transformed(pl.concat(parts).sort("capture_ts", maintain_order=True), BOTH)
    for name, bars in gold.items():
        assert identical(bars, pl.concat(transformed(p, BOTH)[name] for p in parts))
        assert set(bars["symbol"]) == {"BTC-USDT", "ETH-USDT"}


def test_bars_of_silver_are_those_of_bronze():
    equal(transformed(silver("trades", tape(8), BOTH), BOTH), transformed(tape(8), BOTH))


def test_a_symbol_can_have_clocks_of_its_own():
    config = FeatureConfig(bar_durations=(60,), bars=["tick:50"], overrides={"ETH-USDT": {"bars": ["tick:20"]}})
    rows = pl.concat([tape(8), tape(8, stream=ETH)])
    gold = transformed(rows, config)
    assert list(gold) == ["60s", "tick-50", "tick-20"]
    assert set(gold["tick-50"]["symbol"]) == {"BTC-USDT"} and set(gold["tick-20"]["symbol"]) == {"ETH-USDT"}
    assert (gold["tick-50"].height, gold["tick-20"].height) == (480 // 50, 480 // 20)


def test_no_trades_make_no_bars():
    for name, bars in transformed(tape(8).clear(), BOTH).items():
        assert bars.height == 0 and bars.columns == ["exchange", "symbol", *Catalogue("trades_bars", BOTH)], name


@pytest.mark.parametrize("changes", [
    {"bar_blocks": ("delta",)}, {"bar_window": 3}, {"large_trade": 1.0}, {"footprint_tick": 7.0}, {"value_area": 0.2},
    {"bars": ("tick:9",)}])
def test_every_parameter_is_of_the_key_and_of_the_bars(changes):
    "A change of it changes the bars, and the transform says that it depends on it."
    (name,) = changes
    assert name in lakes.bars("nowhere", "nowhere").parameters
    changed = FeatureConfig(**dict(BOTH) | changes)
    a, b = (transformed(tape(8), c) for c in (BOTH, changed))
    assert a.keys() != b.keys() or not all(a[k].equals(b[k], null_equal=True) for k in a)


# ---- partitions

@pytest.fixture
def days():
    "Three days of trades, each with bursts about midnight; the second day's file is missing for nobody."
    return {d: tape(d) for d in (8, 9, 10)}


def silver_of(tmp_path, days, config=BOTH, stream=BTC):
    for day, rows in days.items(): put(tmp_path / "bronze", rows, day, stream)
    lakes.run(lakes.trades(tmp_path / "bronze", tmp_path / "lake"), features=config)
    return tmp_path / "lake/silver/trades"


def gold_of(silver, lake, config=BOTH):
    return lakes.run(lakes.bars(silver, lake), features=config)


def names_of(config): return [bar_name(k) for k in bar_keys(config)]


def test_bars_over_day_edges(tmp_path, days):
    "Partition by partition they are those of all rows as one frame; a bar lies in the day in which it closes."
    silver, lake = silver_of(tmp_path, days), tmp_path / "lake"
    gold_of(silver, lake)
    whole = transformed(pl.concat(days.values()), BOTH)
    crossing = 0
    for name in names_of(BOTH):
        root = lake / "gold/trades_bars" / name
        assert identical(dataset(root), whole[name]), name
        if name in LABELS:
            for day in days:
                bars = dataset(root / leaf(day))
                assert set(bars["available_at"].dt.day()) <= {day} and bars["is_complete"].all()
                crossing += (bars["bar_start"].dt.day() < day).sum()
    assert crossing > 5
    assert lakes.leftovers(lake) == []
    before = lakes.places(lake)
    assert statuses(gold_of(silver, lake)) == ["done"] * 3 and lakes.places(lake) == before


def test_partitions_of_an_hour(tmp_path):
    whole = pl.concat([tape(8), tape(9)])
    stamps = whole.with_columns(pl.col("capture_ts").dt.truncate("1h").alias("h")).partition_by("h", as_dict=True)
    for (stamp,), part in stamps.items(): put(tmp_path / "bronze", part.drop("h"), stamp.day, hour=stamp.hour)
    silver, lake = silver_of(tmp_path, {}), tmp_path / "lake"
    config = FeatureConfig(rolling_windows=(5,), bar_durations=(900,), bars=(*CLOCKS[:4], CLOCKS[-1]))
    assert statuses(gold_of(silver, lake, config)) == ["written"] * 48
    want = transformed(whole, config)
    for name in names_of(config): assert identical(dataset(lake / "gold/trades_bars" / name), want[name]), name


def test_a_new_day_changes_no_bar_that_is_written(tmp_path, days):
    "Without time bars the days before are not even looked at; with them they are, and their event bars stay."
    for config, then in ((EVENTS, ["done", "written"]), (BOTH, ["written", "written"])):
        home = tmp_path / str(len(config.bar_durations))
        gold_of(silver_of(home, {8: days[8]}, config), home / "lake", config)
        gold = home / "lake/gold/trades_bars"
        before = {name: dataset(gold / name / leaf(8)) for name in LABELS}
        assert statuses(gold_of(silver_of(home, {9: days[9]}, config), home / "lake", config)) == then
        for name in LABELS: assert identical(dataset(gold / name / leaf(8)), before[name])


def test_a_changed_day_changes_all_that_come_after(tmp_path, days):
    silver, lake = silver_of(tmp_path, days, EVENTS), tmp_path / "lake"
    gold_of(silver, lake, EVENTS)
    changed = days | {9: days[9].filter(pl.col("capture_ts").dt.hour() != 12)}
    silver_of(tmp_path, {9: changed[9]}, EVENTS)                    # which ends as it did: silver of day 10 stays
    plan = lakes.run(lakes.bars(silver, lake), features=EVENTS, dry_run=True)
    assert statuses(plan) == ["done", "changed", "changed"]
    forgets = lakes.bars(silver, lake).never_forgets
    assert "volume-2.5" in forgets(EVENTS) and not forgets(FeatureConfig())
    assert statuses(gold_of(silver, lake, EVENTS)) == ["done", "written", "written"]
    whole = transformed(pl.concat(changed.values()), EVENTS)
    for name in LABELS: assert identical(dataset(lake / "gold/trades_bars" / name), whole[name])


def test_a_bar_of_many_days(tmp_path, days):
    "It lies in the day in which it closes; days without a closing trade hold no row."
    n = sum(rows.height for rows in days.values())
    config = FeatureConfig(rolling_windows=(5,), bar_durations=(), bars=[f"tick:{n - 3}"])
    gold_of(silver_of(tmp_path, days, config), tmp_path / "lake", config)
    root = tmp_path / f"lake/gold/trades_bars/tick-{n - 3}"
    assert [dataset(root / leaf(d)).height for d in days] == [0, 0, 1]
    bar = dataset(root).row(0, named=True)
    assert bar["n_obs"] == n - 3 and bar["bar_start"] == days[8]["capture_ts"][0]


def test_the_exchanges_clock(tmp_path):
    "The local clock is behind: trades of a day have an exchange time in the next; rows decide where a bar lies."
    days = {d: tape(d, lag_ms=-1270) for d in (8, 9)}
    config = FeatureConfig(**dict(BOTH) | {"clock": "timestamp"})
    gold_of(silver_of(tmp_path, days, config), tmp_path / "lake", config)
    whole = transformed(pl.concat(days.values()), config)
    for name in names_of(config): assert identical(dataset(tmp_path / "lake/gold/trades_bars" / name), whole[name])


def test_symbols_with_clocks_of_their_own_have_datasets_of_their_own(tmp_path):
    for stream in (BTC, ETH): put(tmp_path / "bronze", tape(8, stream=stream), 8, stream)
    config = FeatureConfig(bar_durations=(60,), bars=["tick:50"], overrides={"ETH-USDT": {"bars": ["tick:20"]}})
    gold_of(silver_of(tmp_path, {}, config), tmp_path / "lake", config)
    gold = tmp_path / "lake/gold/trades_bars"
    found = {p.name: [q.name for q in p.rglob("symbol=*")] for p in gold.iterdir()}
    assert found == {"60s": found["60s"], "tick-50": ["symbol=BTC-USDT"], "tick-20": ["symbol=ETH-USDT"]}
    assert len(found["60s"]) == 2
    assert statuses(gold_of(tmp_path / "lake/silver/trades", tmp_path / "lake", config)) == ["done"] * 2


def test_no_bars_at_all_are_refused(tmp_path, days):
    none = FeatureConfig(rolling_windows=(5,), bar_durations=())
    silver = silver_of(tmp_path, {8: days[8]}, none)
    with pytest.raises(ConfigError, match="both empty"): gold_of(silver, tmp_path / "lake", none)


# ---- live

@pytest.mark.parametrize("config", [BOTH, EVENTS])
def test_live_bars_are_those_of_the_batch(config):
    "Row by row, with a restart on the way; a bar comes with the trade that closes it."
    rows, whole = tape(8)[:150], process([tape(8)[:150]], config)
    builder, out = BarBuilder("trades", config), {k: [] for k in bar_keys(config)}
    for i, row in enumerate(rows.to_dicts()):
        for k, bars in builder.push(row).items():
            assert bars.height == 1 and (k not in LABELS or bars["available_at"][0] == row["capture_ts"])
            out[k].append(bars)
        if i == 70: builder = BarBuilder("trades", config, state=through_bytes(builder.state()))
    for k, still in builder.open_bars().items():
        assert identical(pl.concat([*out[k], *([still] if k not in LABELS else [])]), whole[k]), k
        assert not still["is_complete"].any()


def test_live_goes_on_where_a_partition_ended(tmp_path, days):
    put(tmp_path / "bronze", days[8], 8)
    transform = lakes.bars(silver_of(tmp_path, {}, BOTH), tmp_path / "lake")
    context = TransformContext(feature_config=BOTH, stream=BTC)
    for frame_ in transform.transform({"silver": days[8].lazy()}, context).values(): frame_.collect()
    (state,) = transform.state.values()
    builder = BarBuilder("trades", BOTH, state=through_bytes(state))
    live, whole = builder.push(days[9]), process([days[8], days[9]], BOTH)
    first = process([days[8]], BOTH)
    for label in LABELS: assert identical(live[label], whole[label][first[label].height:]), label


def test_clocks_of_a_builder():
    builder = BarBuilder("trades", durations=[60], bars=["tick:2", BarSpec(type="volume", threshold=1e9)])
    closed = builder.push(tape(8)[:5])
    assert list(builder.open_bars()) == [60, "tick-2", "volume-1000000000"]
    assert closed["tick-2"]["n_obs"].to_list() == [2, 2] and "volume-1000000000" not in closed
    assert builder.open_bars()["tick-2"]["n_obs"].to_list() == [1]
    assert list(BarBuilder("ticker", BOTH).open_bars()) == [60, 3600]        # what the configuration says of trades
    for bad in ("ticker", "orderbook"):
        with pytest.raises(ConfigError, match="counted in trades"): BarBuilder(bad, bars=["tick:2"])


# ---- other channels

def test_quotes_have_bars_of_time_only(tmp_path):
    put(tmp_path / "bronze", lakes.quotes(8), 8)
    lakes.run(lakes.ticker(tmp_path / "bronze", tmp_path / "lake"), features=BOTH)
    with pytest.raises(ConfigError, match="tick-7, .* of ticker rows.*counted in trades"):
        lakes.run(lakes.bars(tmp_path / "lake/silver/ticker", tmp_path / "lake", "ticker"), features=BOTH)


def test_a_pipeline_of_all_channels(tmp_path):
    "Clocks and blocks stand once, for all; quotes have their time bars."
    put(tmp_path / "raw/trades", tape(8), 8)
    put(tmp_path / "raw/ticker", lakes.quotes(8), 8)
    both = {"bar_durations": [60], "bars": ["tick:40"], "bar_blocks": ["delta"], "categories": ["structural"]}
    config = DaedalusConfig(features=both, storage={"input_root": str(tmp_path / "raw"),
                                                    "output_root": str(tmp_path / "lake")})
    Pipeline.from_config(config).run()
    gold = tmp_path / "lake/gold"
    assert sorted(p.relative_to(gold).as_posix() for p in gold.glob("*/*")) == [
        "ticker_bars/60s", "trades_bars/60s", "trades_bars/tick-40"]
    assert "delta" in dataset(gold / "trades_bars/tick-40").columns
    assert "delta" not in dataset(gold / "ticker_bars/60s").columns


# ---- the command line

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two days of silver trades, made once."
    home = tmp_path_factory.mktemp("home")
    for day in (8, 9): put(home / "data/raw/ready/ccxt/trades", tape(day), day)
    assert cli("trades", "--categories", "structural", cwd=home).returncode == 0
    return home


@pytest.fixture
def home(made, tmp_path): return shutil.copytree(made, tmp_path / "home")


def test_bars_on_the_command_line(home):
    done = cli("bars", "--channel", "trades", "--durations", "3600", "--bars", "volume:10", "dollar:1e6",
               "tick_imbalance:100:adaptive", "--blocks", "delta", "size", "footprint", cwd=home)
    assert done.returncode == 0, done.stderr
    gold = home / "data/processed/gold/trades_bars"
    assert sorted(p.name for p in gold.iterdir()) == ["3600s", "dollar-1000000", "tick_imbalance-100-adaptive",
                                                       "volume-10"]
    config = FeatureConfig(bar_durations=(3600,), bars=["volume:10", "dollar:1e6", "tick_imbalance:100:adaptive"],
                           bar_blocks=("delta", "size", "footprint"))
    want = transformed(pl.concat([tape(8), tape(9)]), config)
    for name, bars in want.items(): assert identical(dataset(gold / name), bars), name
    assert cli("status", "--bars", "volume:10", cwd=home).stdout.count("trades_bars/volume-10") >= 1


def test_bars_in_yaml(home):
    (home / "c.yaml").write_text(json.dumps({"features": {
        "bar_durations": [], "bars": [{"type": "volume", "threshold": 10}, "tick_runs:50:adaptive"],
        "bar_blocks": ["size"]}}))
    done = cli("bars", "--config", "c.yaml", cwd=home)
    assert done.returncode == 0, done.stderr
    gold = home / "data/processed/gold/trades_bars"
    assert sorted(p.name for p in gold.iterdir()) == ["tick_runs-50-adaptive", "volume-10"]
    assert "trade_size_p95" in dataset(gold / "volume-10").columns


@pytest.mark.parametrize(("args", "text"), [
    (["--bars", "volumes:10"], "Did you mean 'volume'"), (["--bars", "volume"], "such as volume:10"),
    (["--bars", "tick:5:adaptive"], "fixed threshold"), (["--bars", "tick:0"], "threshold"),
    (["--bars", "tick:5", "tick:5"], "declared twice"), (["--blocks", "sizes"], "Did you mean 'size'"),
    (["--channel", "ticker", "--bars", "tick:5"], "counted in trades"),
    (["--channel", "orderbook", "--blocks", "size"], "--blocks with --channel orderbook"),
    (["--durations", ""], "both empty")])
def test_what_the_command_line_refuses(made, args, text):
    done = cli("bars", *args, cwd=made)
    assert done.returncode == 2 and text in done.stderr, done.stderr


# ---- recorded trades

@cache
def recorded(root, day, symbol="BTC-USDT"):
    path = root / "trades" / leaf(day, ("binance", symbol)) / "data.parquet"
    return pl.read_parquet(path, hive_partitioning=False)


def test_recorded_days(shared_bronze, tmp_path):
    "Two days through silver and gold: as one frame, as cut, and live, on every clock; volumes add up."
    parts = {d: recorded(shared_bronze, d).head(20_000) for d in (8, 9)}
    config = FeatureConfig(rolling_windows=(5,), bar_durations=(60,), bar_blocks=BLOCKS, bars=[
        "tick:500", "volume:20", "dollar:1e6", "cusum:0.002", "volume_imbalance:10", "tick_imbalance:300:adaptive",
        "dollar_runs:300:adaptive"])
    gold_of(silver_of(tmp_path, parts, config), tmp_path / "lake", config)
    rows = features(trades=pl.concat(parts.values()), config=config)
    whole = transformed(rows, config)
    for name in names_of(config):
        bars = dataset(tmp_path / "lake/gold/trades_bars" / name)
        assert bars.height > 3 and identical(bars, whole[name]), name
        floats = bars.select(pl.selectors.float())
        assert all(floats[c].is_finite().all() for c in floats.columns), name
        assert (bars["available_at"] >= bars["bar_start"]).all()
    for spec in config.bars:
        n = whole[spec.label]["n_obs"].sum()
        assert whole[spec.label]["volume"].sum() == pytest.approx(rows["amount"][:n].sum(), rel=1e-9)
        if spec.adaptive: assert 150 < whole[spec.label]["n_obs"].mean() < 600
    live, out = BarBuilder("trades", config), {k: [] for k in bar_keys(config)}
    for part in pieces(rows, range(1, rows.height, 37)):
        for k, bars in live.push(part).items(): out[k].append(bars)
    for spec in config.bars:
        assert identical(pl.concat(out[spec.label]), whole[spec.label].drop("exchange", "symbol")), spec.label
