"""Labels: against slow twins, from frames and through the executor, and kept out of features on every way in."""
import math
from datetime import timedelta

import lakes
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import BTC, ETH, UTC_US, dataset, day_start, footer, leaf, put, statuses
from polars.testing import assert_frame_equal

import daedalus_etl
import daedalus_etl.features.bars  # noqa: F401  declares the bars' columns
from daedalus_etl.core.base import TransformContext
from daedalus_etl.core.catalog import Catalogue, Column, declare, is_label, labels_declared
from daedalus_etl.core.config import DaedalusConfig, FeatureConfig, StorageConfig
from daedalus_etl.core.enums import FeatureCategory
from daedalus_etl.core.errors import ConfigError, SchemaError, UnknownFeatureError
from daedalus_etl.core.registry import create_transform
from daedalus_etl.core.steps import labels_config, steps_of
from daedalus_etl.explore.browse import LakeView
from daedalus_etl.features.frames import features
from daedalus_etl.labels.frames import labels
from daedalus_etl.labels.columns import label_names
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig

H, BPS, T, GAP = (1, 7, 40), 12.0, 25, 20
CONFIG = FeatureConfig(label_horizons=H, barrier_bps=BPS, barrier_horizon=T, max_gap_s=GAP)
START = day_start(8)
SYMBOLS = ("BTC-USDT", "ETH-USDT")


# ---- the twins: for each row, over all rows, in the words of the definitions; times in seconds

def naive_value(rows, since, when):
    "The last defined mid of the segment at or before `when`; None if a silence or the end of the stream lies between."
    if not rows or when > rows[-1][0]: return None
    heard = [c for c, _ in rows if since <= c <= when]
    if not heard or any(b - a > GAP for a, b in zip(heard, [*heard[1:], when])): return None
    first = heard[0]
    for c, _ in reversed([r for r in rows if r[0] < since]):      # back to where the segment begins
        if first - c > GAP: break
        first = c
    known = [m for c, m in rows if first <= c <= when and m is not None]
    return known[-1] if known else None


def naive_row(rows, i) -> dict:
    "All labels of row `i` of the ordered `rows` (clock, mid)."
    (t, mid), out = rows[i], {}
    for h in H:
        later = None if mid is None else naive_value(rows, t, t + h)
        out[f"fwd_return_{h}s"] = None if later is None else math.log(later / mid)
        out[f"fwd_return_{h}s_known_at"] = None if later is None else t + h
    return out | dict(zip(("barrier_label", "barrier_return", "barrier_known_at"), naive_barrier(rows, i), strict=True))


def naive_barrier(rows, i):
    t, mid = rows[i]
    if mid is None: return None, None, None
    before = t
    for c, m in rows[i + 1:]:
        if c > t + T or c - before > GAP: break
        before = c
        if m is not None and m >= mid * (1 + BPS * 1e-4): return 1, math.log(m / mid), c
        if m is not None and m <= mid * (1 - BPS * 1e-4): return -1, math.log(m / mid), c
    later = naive_value(rows, t, t + T)
    return (None, None, None) if later is None else (0, math.log(later / mid), t + T)


def naive_trade(rows, trade) -> dict:
    t, price, sign = trade
    before = [r for r in rows if r[0] < t]
    since = before[-1][0] if before else None
    out = {}
    for h in H:
        mid = naive_value([*before, (t, None)], since, since) if before else None
        later = None if mid is None or sign is None else naive_value(rows, since, t + h)
        values = (None, None) if later is None else (2.0 * sign * (price - later), 2.0 * sign * (later - mid))
        for name, v in zip(("realized_spread", "price_impact"), values, strict=True):
            out[f"{name}_{h}s"], out[f"{name}_{h}s_known_at"] = v, None if v is None else t + h
    return out


# ---- made-up rows

STEPS = st.sampled_from([0, 0, 1, 1, 2, 3, 6, 19, 20, 21, 50])
MIDS = st.sampled_from([None, 100.0, 100.05, 100.13, 99.9, 99.88, 101.0])


@st.composite
def streams(draw):
    "For each symbol: rows (clock, mid) in order, and trades (clock, price, sign)."
    out = {}
    for symbol in SYMBOLS:
        clock, rows = 0, []
        for step, mid in draw(st.lists(st.tuples(STEPS, MIDS), max_size=25)):
            clock += step
            rows.append((clock, mid))
        trades = draw(st.lists(st.tuples(st.integers(-3, 120), st.sampled_from([99.0, 100.1]),
                                         st.sampled_from([1, -1, None])), max_size=8))
        out[symbol] = rows, sorted(trades, key=lambda r: r[0])
    return out


def at(s): return START + timedelta(seconds=s)


def book_frame(made) -> pl.DataFrame:
    "The rows of all streams, one stream after the other, numbered."
    rows = [(at(c), "x", s, m) for s, (own, _) in made.items() for c, m in own]
    schema = {"capture_ts": UTC_US, "exchange": pl.String, "symbol": pl.String, "mid_price": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("nr")


def trade_frame(made) -> pl.DataFrame:
    rows = [(at(c), "x", s, p, sign) for s, (_, own) in made.items() for c, p, sign in own]
    schema = {"capture_ts": UTC_US, "exchange": pl.String, "symbol": pl.String, "price": pl.Float64,
              "side_sign": pl.Int8}
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("nr")


def same(frame: pl.DataFrame, want: list[dict]) -> None:
    "The labels of `frame` are those of the twin, its times in seconds."
    got = frame.select(want[0].keys() if want else []).with_columns(
        (pl.col(UTC_US) - START).dt.total_microseconds() / 1e6).to_dicts()
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        for k in w:
            both = g[k] is not None and w[k] is not None
            fine = math.isclose(g[k], w[k], rel_tol=1e-12, abs_tol=1e-12) if both else g[k] is w[k]
            assert fine, f"row {i}, {k}: {g[k]}, and by the definition {w[k]}"


@settings(deadline=None, max_examples=150)
@given(streams(), st.randoms(use_true_random=False))
def test_twin(made, rnd):
    "Frames in any order of streams; rows of one clock keep theirs."
    frame = book_frame(made)
    order = list(SYMBOLS) * len(frame)
    rnd.shuffle(order)
    left = {s: frame.filter(symbol=s).rows(named=True) for s in SYMBOLS}
    mixed = [left[s].pop(0) for s in order if left[s]]
    out = labels(pl.DataFrame(mixed, schema=frame.schema), config=CONFIG)
    assert out["nr"].to_list() == [r["nr"] for r in mixed]                   # row for row
    assert out.columns == [*frame.columns, *label_names("book_labels", CONFIG)]
    want = [naive_row(rows, i) for rows, _ in made.values() for i in range(len(rows))]
    same(out.sort("nr"), want)
    same(labels(frame.sample(fraction=1.0, shuffle=True, seed=1).sort("capture_ts", "nr", descending=[True, False]),
                config=CONFIG).sort("nr"), want)                             # latest first


@settings(deadline=None, max_examples=150)
@given(streams())
def test_trades_twin(made):
    frame, trades = book_frame(made), trade_frame(made)
    out = labels(frame, trades=trades[::-1], config=CONFIG)
    assert out["nr"].to_list() == trades["nr"].to_list()[::-1]
    assert out.columns == [*trades.columns, *label_names("trade_labels", CONFIG)]
    same(out.sort("nr"), [naive_trade(rows, tr) for rows, own in made.values() for tr in own])


@settings(deadline=None, max_examples=80)
@given(streams())
def test_known_at(made):
    "A label is null where it is not known; it is known no earlier than its row, and is made of nothing later."
    for channel, frame in (("book_labels", labels(book_frame(made), config=CONFIG)),
                           ("trade_labels", labels(book_frame(made), trades=trade_frame(made), config=CONFIG))):
        for name in label_names(channel, CONFIG):
            if name.endswith("_known_at"): continue
            known = "barrier_known_at" if name.startswith("barrier") else f"{name}_known_at"
            assert frame.filter(pl.col(name).is_null() != pl.col(known).is_null()).is_empty()
            assert frame.filter(pl.col(known) < pl.col("capture_ts")).is_empty()
            assert frame.schema[known] == UTC_US
    books = book_frame(made)
    first = labels(books, config=CONFIG)
    for cut in (5, 30, 60):
        later = pl.when(pl.col("capture_ts") > at(cut)).then(77.0)
        again = labels(books.with_columns(mid_price=later.otherwise("mid_price")), config=CONFIG)
        for name in (f"fwd_return_{H[1]}s", "barrier_label"):
            known = "barrier_known_at" if name.startswith("barrier") else f"{name}_known_at"
            old, new = (f.filter(pl.col("capture_ts") <= at(cut)) for f in (first, again))
            kept = (old[known] <= at(cut)).fill_null(False)
            assert_frame_equal(old.filter(kept).select(name, known), new.filter(kept).select(name, known))


@pytest.fixture(scope="module")
def market():
    "Four minutes around midnight of one stream: silver books and trades."
    day = simulate(SimulatorConfig(), 240, start=day_start(9) - timedelta(minutes=2), exchange="binance")
    silver = features(books=day["orderbook"], features=["mid_price", "spread_bps"])
    return silver, features(trades=day["trades"], features=["side_sign"]), day


SHORT = FeatureConfig(label_horizons=(1, 30), barrier_bps=1, barrier_horizon=20)


def test_effective_is_realised_and_impact(market):
    silver, trades, _ = market
    mids = silver.select("exchange", "symbol", (pl.col("capture_ts") + pl.duration(microseconds=1)).alias("capture_ts"),
                         mid="mid_price").drop_nulls()                       # seen strictly after the book
    out = labels(silver, trades=trades, config=SHORT).join_asof(
        mids.drop("exchange", "symbol"), on="capture_ts")
    effective = 2 * pl.col("side_sign") * (pl.col("price") - pl.col("mid"))
    for h in SHORT.label_horizons:
        part = out.drop_nulls(f"realized_spread_{h}s")
        total = part.select(effective - pl.col(f"realized_spread_{h}s") - pl.col(f"price_impact_{h}s")).to_series()
        assert part.height > 100 and total.abs().max() < 1e-7


def test_raw_rows(market):
    "Raw books and ticker rows are labelled by the mids that features have."
    silver, _, day = market
    raw = labels(day["orderbook"], config=SHORT)
    assert_frame_equal(raw.select(label_names("book_labels", SHORT)),
                       labels(silver, config=SHORT).select(label_names("book_labels", SHORT)))
    ticker = day["ticker"] if "ticker" in day else None
    if ticker is not None: assert labels(ticker, config=SHORT)["fwd_return_1s"].is_not_null().any()


def test_of_other_moments(market):
    "Asked for at the clocks of the rows, one clock each, labels are those of the rows."
    silver, *_ = market
    once = silver.unique("capture_ts", keep="last", maintain_order=True).drop_nulls("mid_price")
    names = label_names("book_labels", SHORT)
    own = labels(silver, config=SHORT).unique("capture_ts", keep="last", maintain_order=True).drop_nulls("mid_price")
    moved = labels(silver, at=once.select("exchange", "symbol", available_at="capture_ts"), config=SHORT)
    assert_frame_equal(moved.select(names), own.select(names), check_exact=True)


def test_grid_keeps_silences():
    "A grid repeats the last row; where that was heard too long ago, or a silence lies behind, there is no label."
    rows = [(at(s), m) for s, m in ((0, 100.0), (3, 101.0), (40, 102.0), (44, 103.0), (60, 104.0))]
    books = pl.DataFrame(rows, schema={"capture_ts": UTC_US, "mid_price": pl.Float64}, orient="row")
    grid = pl.DataFrame({"capture_ts": [at(s) for s in range(0, 61, 2)]}, schema={"capture_ts": UTC_US})
    stale = grid.join_asof(books.with_columns(heard="capture_ts"), on="capture_ts").with_columns(
        data_staleness_s=(pl.col("capture_ts") - pl.col("heard")).dt.total_microseconds() / 1e6).drop("heard")
    config = FeatureConfig(label_horizons=[8], max_gap_s=20)
    want = labels(books, at=grid, config=config)["fwd_return_8s"]
    assert labels(stale, config=config)["fwd_return_8s"].to_list() == want.to_list()
    seconds = [s for s, v in zip(range(0, 61, 2), want, strict=True) if v is not None]
    assert seconds == [*range(0, 16, 2), *range(40, 53, 2)]


def test_event_bars():
    "Bars of any clock: known at `available_at`; silence lies between the end of one and the beginning of the next."
    spans = [(0, 10, 100.0), (12, 90, 101.0), (91, 95, 102.0), (130, 140, 103.0), (141, 150, 104.0)]
    bars = pl.DataFrame([(at(a), at(b), c) for a, b, c in spans], orient="row",
                        schema={"bar_start": UTC_US, "available_at": UTC_US, "close": pl.Float64})
    got = labels(bars, config=FeatureConfig(label_horizons=[30], max_gap_s=20))["fwd_return_30s"]
    # 30 s after 10 s the second bar is open; after 90 and 95 s the stream was silent for too long; after 140 s it ends
    assert [None if v is None else round(math.exp(v), 9) for v in got] == [1.0, None, None, None, None]


# ---- kept out of features

NAMES = [*label_names("book_labels", FeatureConfig()), *label_names("trade_labels", FeatureConfig())]


@pytest.mark.parametrize("name", NAMES)
def test_no_label_is_a_feature(name):
    assert is_label(name, FeatureConfig())
    with pytest.raises(ConfigError, match="is a label"): FeatureConfig(features=[name])
    with pytest.raises(ConfigError, match="is a label"): FeatureConfig(overrides={"BTC-USDT": {"features": [name]}})
    with pytest.raises(ConfigError, match="is a label"): daedalus_etl.features(trades=lakes.tape(), features=[name])


@pytest.mark.parametrize("channel", ["trades", "ticker", "orderbook", "trades_bars", "ticker_bars", "orderbook_bars"])
def test_no_channel_of_features_holds_a_label(channel):
    assert not {c.category for c in Catalogue(channel, FeatureConfig()).values()} & {FeatureCategory.LABEL}
    assert not set(labels_declared()) & {c.name for c in Catalogue(channel, FeatureConfig()).values()}
    spy = Column(name="spy", channel=channel, unit="1", category=FeatureCategory.LABEL, formula="tomorrow")
    with pytest.raises(UnknownFeatureError, match="cannot be declared"): declare(spy)


def test_category_is_refused():
    with pytest.raises(ConfigError, match="labels look ahead"): FeatureConfig(categories=["structural", "label"])
    with pytest.raises(UnknownFeatureError, match="cannot be declared"):
        declare(Column(name="x", channel="book_labels", unit="1", category=FeatureCategory.DYNAMIC, formula="x"))


@pytest.mark.parametrize("flags", [("--categories", "label"), ("--features", "barrier_label")])
def test_cli_refuses(tmp_path, flags):
    done = lakes.cli("orderbook", "--input", str(tmp_path), "--output", str(tmp_path / "lake"), *flags)
    assert done.returncode == 2 and "label" in done.stderr and "Traceback" not in done.stderr


# ---- through the executor

def write(lake, market, days=(8, 9), stream=BTC):
    for channel, rows in zip(("orderbook", "trades"), market, strict=False):
        for d in days:
            part = rows.filter(pl.col("capture_ts").dt.day() == d)
            put(lake / f"silver/{channel}", part.with_columns(symbol=pl.lit(stream[1])), d, stream)


def transform(lake, trades=True):
    where = str(lake / "silver/trades") if trades else None
    return create_transform("labels", labels_config("orderbook", StorageConfig(output_root=str(lake)), trades=where))


def stored(lake, channel): return dataset(lake / "label" / channel)


def test_partitions_are_those_of_the_whole(tmp_path, market):
    silver, trades, _ = market
    midnight = day_start(9)                                  # the first trades of the day come before its first book
    silver = silver.filter(~pl.col("capture_ts").is_between(midnight, midnight + timedelta(seconds=15)))
    for stream in (BTC, ETH): write(tmp_path, (silver, trades), stream=stream)
    report = lakes.run(transform(tmp_path), features=SHORT)
    assert statuses(report) == ["written"] * 4
    for channel, rows, other in (("book_labels", silver, None), ("trade_labels", trades, trades)):
        want, got = labels(silver, trades=other, config=SHORT), stored(tmp_path, channel)
        own = got.filter(symbol=BTC[1])
        names = label_names(channel, SHORT)
        assert own.height == rows.height and own["capture_ts"].to_list() == rows["capture_ts"].to_list()
        assert_frame_equal(own.select(names), want.select(names), check_exact=True)
        assert_frame_equal(got.filter(symbol=ETH[1]).select(names), want.select(names), check_exact=True)
        made = footer(tmp_path / "label" / channel)
        assert made["looks_ahead"] == "true" and '"fwd_return_30s":"1"' in made["units"]
        assert not set(got.columns) & {"mid_price", "spread_bps", "price", "side_sign"}
    before = lakes.places(tmp_path / "label")
    assert statuses(lakes.run(transform(tmp_path), features=SHORT)) == ["done"] * 4
    assert lakes.places(tmp_path / "label") == before


def test_the_exchanges_clock(tmp_path, market):
    *_, day = market
    own = FeatureConfig(**dict(SHORT) | {"clock": "timestamp"})
    silver = features(books=day["orderbook"], features=["mid_price"], config=FeatureConfig(clock="timestamp"))
    trades = features(trades=day["trades"], features=["side_sign"], config=FeatureConfig(clock="timestamp"))
    write(tmp_path, (silver, trades))
    lakes.run(transform(tmp_path), features=own)
    for channel, other in (("book_labels", None), ("trade_labels", trades)):
        want, names = labels(silver, trades=other, config=own), label_names(channel, own)
        assert_frame_equal(stored(tmp_path, channel).select(names), want.select(names), check_exact=True)
    by_capture = labels(silver, config=SHORT)
    assert not by_capture["fwd_return_1s"].equals(labels(silver, config=own)["fwd_return_1s"])


def test_a_step_of_a_pipeline(tmp_path):
    step = {"transform": "labels", "inputs": {"silver": "orderbook", "silver_trades": "trades"},
            "outputs": {"label": "{output}/label"}, "features": {"label_horizons": [7]}}
    config = DaedalusConfig(pipeline={"trades": {}, "orderbook": {}, "labels": step}, storage={"output_root": "lake"})
    (made,) = [s for s in steps_of(config) if s.name == "labels"]
    assert made.needs == ("orderbook", "trades") and made.features.label_horizons == (7,)
    assert create_transform("labels", made.config).datasets(None) == ["label/book_labels", "label/trade_labels"]


def test_a_later_day_completes_the_one_before(tmp_path, market):
    write(tmp_path, market, days=[8])
    assert statuses(lakes.run(transform(tmp_path), features=SHORT)) == ["written"]
    early = stored(tmp_path, "book_labels")
    assert early["fwd_return_30s"][-1] is None
    write(tmp_path, market, days=[9])
    report = lakes.run(transform(tmp_path), features=SHORT)
    assert [u.reason for u in report.units] == ["the input changed", "no output yet"]
    late = stored(tmp_path, "book_labels")[:early.height]
    assert late["fwd_return_30s"][-1] is not None
    kept = early["fwd_return_30s"].is_not_null()
    assert_frame_equal(late.filter(kept).select("fwd_return_30s"), early.filter(kept).select("fwd_return_30s"))


def test_without_trades(tmp_path, market):
    "No trades at all: no dataset of their labels; no trades of one day: a partition without rows."
    write(tmp_path, market)
    lakes.run(transform(tmp_path, trades=False), features=SHORT)
    assert not (tmp_path / "label/trade_labels").exists()
    other = tmp_path / "other"
    write(other, market)
    for p in (other / "silver/trades" / leaf(9)).iterdir(): p.unlink()
    lakes.run(transform(other), features=SHORT)
    assert dataset(other / "label/trade_labels" / leaf(9)).height == 0
    assert_frame_equal(stored(other, "book_labels"), stored(tmp_path, "book_labels"))


def test_overrides(tmp_path, market):
    write(tmp_path, market)
    own = FeatureConfig(**dict(SHORT) | {"overrides": {BTC[1]: {"barrier_bps": 3.0, "barrier_horizon": 45}}})
    lakes.run(transform(tmp_path), features=own)
    names = label_names("book_labels", SHORT)
    want = labels(market[0], config=FeatureConfig(**dict(SHORT) | {"barrier_bps": 3.0, "barrier_horizon": 45}))
    assert_frame_equal(stored(tmp_path, "book_labels").select(names), want.select(names), check_exact=True)
    with pytest.raises(ConfigError, match="a dataset has one schema"):
        labels(market[0].with_columns(symbol=pl.lit("A")),
               config=FeatureConfig(**dict(SHORT) | {"overrides": {"A": {"label_horizons": [2]}}}))


def test_command_and_readers(tmp_path, market):
    write(tmp_path, market)
    flags = ("--horizons", "1,30", "--barrier-bps", "1", "--barrier-horizon", "20")
    done = lakes.cli("labels", "--output", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr
    read = daedalus_etl.read(tmp_path, "label", "trade_labels", BTC[1], features="price_impact_30s").collect()
    want = labels(market[0], trades=market[1], config=SHORT)
    assert read["price_impact_30s"].to_list() == want["price_impact_30s"].to_list()
    assert LakeView(tmp_path).channels("label") == ["book_labels", "trade_labels"]
    shown = lakes.cli("features", "--channel", "book_labels")
    assert shown.returncode == 0 and "barrier_label" in shown.stdout


# ---- streams that cannot be told apart, and streams that are quiet

def test_rows_that_do_not_say_their_stream_are_refused_where_mids_are_of_several(market):
    silver, trades, _ = market
    two = pl.concat([silver, silver.with_columns(symbol=pl.lit("ETH-USDT"), mid_price=pl.col("mid_price") / 2)])
    for how in ({"trades": trades.drop("symbol")}, {"at": trades.select("exchange", "capture_ts")}):
        with pytest.raises(SchemaError, match="hold 2 of them") as found: labels(two, **how, config=SHORT)
        assert found.value.column == "symbol"
        assert labels(silver, **how, config=SHORT).height == trades.height      # one stream needs no name


def test_the_transform_refuses_to_mix_streams(market):
    silver, trades, _ = market
    other = silver.with_columns(symbol=pl.lit("ETH-USDT"))
    made = create_transform("labels", labels_config("orderbook", StorageConfig(output_root="x"), trades="y"))

    def run(books, later=()):
        context = TransformContext(feature_config=SHORT, lookahead={"silver": iter([f.lazy() for f in later])})
        inputs = {"silver": books.lazy(), "silver_trades": trades.drop("symbol").lazy()}
        return made.fork().transform(inputs, context)["label/trade_labels"].collect()
    with pytest.raises(SchemaError, match="hold 2 of them"): run(pl.concat([silver, other]))
    late = other.with_columns(pl.col("capture_ts") + timedelta(minutes=10))
    with pytest.raises(SchemaError, match="hold 2 of them"): run(silver, [late])
    assert run(silver).height == trades.height


def test_a_stream_that_is_quiet_for_a_partition_is_looked_for_in_the_next():
    "The first later partition takes one stream beyond the horizon, the second holds what the other waits for."
    def books(symbol, *rows): return pl.DataFrame(
        [(at(s), "x", symbol, m) for s, m in rows], orient="row",
        schema={"capture_ts": UTC_US, "exchange": pl.String, "symbol": pl.String, "mid_price": pl.Float64})
    one, two = SYMBOLS
    day = [pl.concat([books(one, (0, 100.0)), books(two, (0, 50.0))]),
           books(one, (5, 101.0), (60, 102.0)), books(two, (6, 51.0), (61, 52.0))]
    config = FeatureConfig(label_horizons=[30], barrier_horizon=30)
    want = labels(pl.concat(day), config=config)["fwd_return_30s"][:2].to_list()
    made = create_transform("labels", labels_config("orderbook", StorageConfig(output_root="x")))
    context = TransformContext(feature_config=config, lookahead={"silver": iter([f.lazy() for f in day[1:]])})
    got = made.transform({"silver": day[0].lazy()}, context)["label/book_labels"].collect()
    assert got["fwd_return_30s"].to_list() == want and None not in want
