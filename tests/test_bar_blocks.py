"""Bars between edges: the same bits for every split, the same numbers as plain Python, nothing undefined but null."""
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from daedalus_etl.core.catalog import Catalogue, schema_of
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.errors import BadDataError, StateError
from daedalus_etl.core.state import dump_state, load_state
from daedalus_etl.features.bar_blocks import BarAggregator, choose_bars, join_bars
from daedalus_etl.features.bars import BarsProcessor
from daedalus_etl.features.processor import start_step
from daedalus_etl.features.streaming import US, return_batch

UTC = pl.Datetime("us", "UTC")
SIDES = {1: "buy", -1: "sell", 0: None}


def tape(n: int, seed: int, *, gap: float = 0.02, ties: bool = True) -> list[np.ndarray]:
    "Clocks, prices, amounts, signs and log returns of `n` random trades, a share `gap` of them after a long silence."
    rng = np.random.default_rng(seed)
    steps = rng.integers(0 if ties else 1, 20 * US, n) + (rng.random(n) < gap) * 400 * US
    price = np.round(100 * np.exp(np.cumsum(rng.normal(0, 1e-3, n))), 2)
    amount = np.where(rng.random(n) < 0.05, 0.0, rng.exponential(1.0, n))
    return rows_of(np.cumsum(steps), price, amount, rng.choice([1, -1, 0], n))


def rows_of(t, price, amount, sign) -> list[np.ndarray]:
    t, price, r = np.asarray(t, np.int64), np.asarray(price, float), np.empty(len(t))
    return_batch(start_step()[0], t, price, 300 * US, np.empty(t.size, np.uint8), r)
    return [t, price, np.asarray(amount, float), np.asarray(sign, np.int8), r]


def time_edges(t, seconds) -> np.ndarray:
    "Where a clock of time ends bars."
    return np.flatnonzero(np.diff(t // (seconds * US))) + 1


def take(config, edges, rows, cuts=(), *, restart=False) -> tuple[dict, BarAggregator]:
    "Raw bars of `rows` in pieces; an edge at a cut is drawn by the piece before (event) or after it (time), in turns."
    made, parts, after = BarAggregator(config), [], False
    for a, b in zip([0, *cuts], [*cuts, rows[0].size]):
        own = [e - a for e in edges if (a <= e if after else a < e) and (e <= b if after else e <= b)]
        last = bool(own) and own[-1] == b - a and b < rows[0].size
        if last and b % 2: own, after = own[:-1], True           # the next piece begins with it
        else: after = False
        parts.append(made.take(np.array(own, np.int64), *(x[a:b] for x in rows)))
        if restart: made = BarAggregator(config, load_state(dump_state(made.state()))[0])
    return join_bars(parts), made


def bars(config, edges, rows, cuts=(), *, restart=False, duration_s=None) -> pl.DataFrame:
    raw, made = take(config, edges, rows, cuts, restart=restart)
    return pl.concat([made.columns(raw, duration_s=duration_s, complete=True),
                      made.columns(made.open(), duration_s=duration_s, complete=False)])


@pytest.mark.parametrize("seconds", [7, 60, 900])
def test_time_bars_have_the_bits_of_the_processor(seconds):
    rows = tape(2000, seconds)
    frame = pl.DataFrame({"capture_ts": pl.Series(rows[0]).cast(UTC), "price": rows[1], "amount": rows[2],
                          "side": [SIDES[s] for s in rows[3].tolist()]})
    p = BarsProcessor("trades", FeatureConfig(), (seconds,))
    want = p.frame(seconds, [p.process(frame)[seconds]])
    got = bars(FeatureConfig(), time_edges(rows[0], seconds), rows, duration_s=seconds)
    assert_frame_equal(got, want, check_exact=True)


def test_refusals():
    made, rows = BarAggregator(FeatureConfig()), tape(10, 0)
    for edges in ([0], [3, 3], [4, 2], [11], [-1]):
        with pytest.raises(BadDataError, match="ascending from 1"): made.take(np.array(edges), *rows)
    with pytest.raises(StateError, match="lacks the blocks"): BarAggregator(FeatureConfig(), {"size": {}})


@pytest.mark.parametrize("block", ["range", "liquidity"])
@pytest.mark.parametrize("other", [2, 9])
@pytest.mark.parametrize("n", [3, 200])
def test_a_state_belongs_to_its_window(block, other, n):
    "Also where it is not full yet, and where a longer one could hold it."
    def config(size): return FeatureConfig(bar_blocks=(block,), bar_window=size)
    state = load_state(dump_state(take(config(4), list(range(1, n)), tape(n, 1))[1].state()))[0]
    BarAggregator(config(4), state)
    with pytest.raises(StateError, match=f"a window of {other} bars cannot go on from the state of one of 4"):
        BarAggregator(config(other), state)


# ---- blocks

ALL = ("delta", "size", "footprint", "entropy", "range", "liquidity", "jumps")
SMALL = FeatureConfig(bar_blocks=ALL, bar_window=4, large_trade=100.0)


@st.composite
def split_tapes(draw):
    "A tape, edges and cuts; small, with ties, silences, single-trade bars and cuts at edges."
    rows = tape(draw(st.integers(1, 60)), draw(st.integers(0, 10**6)), gap=draw(st.sampled_from([0.0, 0.1, 0.5])))
    n = rows[0].size
    edges = sorted(draw(st.sets(st.integers(1, n), max_size=n)))
    return rows, edges, sorted(draw(st.sets(st.integers(1, n), max_size=12)) - {n})


@settings(max_examples=60, deadline=None)
@given(split_tapes())
def test_any_split_has_the_same_bits(case):
    rows, edges, cuts = case
    want = bars(SMALL, edges, rows)
    assert_frame_equal(bars(SMALL, edges, rows, cuts, restart=True), want, check_exact=True)
    assert dump_state(take(SMALL, edges, rows, cuts)[1].state()) == dump_state(take(SMALL, edges, rows)[1].state())


@settings(max_examples=60, deadline=None)
@given(split_tapes())
def test_columns_keep_what_the_catalogue_says(case):
    rows, edges, _ = case
    made, catalogue = bars(SMALL, edges, rows), Catalogue("trades_bars", SMALL)
    assert made.schema == pl.Schema(schema_of(catalogue.values()))
    for c in catalogue.values():
        values = made[c.name].explode() if isinstance(c.dtype, pl.List) else made[c.name]
        if not values.dtype.is_float(): continue
        assert values.drop_nulls().is_finite().all(), c.name
        assert c.lo is None or (values.drop_nulls() >= c.lo).all(), c.name
        assert c.hi is None or (values.drop_nulls() <= c.hi).all(), c.name


@settings(max_examples=40, deadline=None)
@given(split_tapes())
def test_footprint_adds_up(case):
    rows, edges, _ = case
    made = bars(SMALL, edges, rows)
    unknown = pl.col("volume") - pl.col("buy_volume") - pl.col("sell_volume")
    got = made.select(b=pl.col("footprint_buy").list.sum() - unknown / 2 - pl.col("buy_volume"),
                      s=pl.col("footprint_sell").list.sum() - unknown / 2 - pl.col("sell_volume"))
    assert (got["b"].abs() < 1e-9).all() and (got["s"].abs() < 1e-9).all()
    assert made["footprint_price"].list.eval(pl.element().diff().drop_nulls() > 0).list.all().all()
    area = made.drop_nulls("poc_price")
    assert (area["value_area_low"] <= area["poc_price"]).all() and (area["poc_price"] <= area["value_area_high"]).all()


@settings(max_examples=40, deadline=None)
@given(split_tapes(), st.integers(1, 60))
def test_closed_bars_know_nothing_of_later_trades(case, cut):
    rows, edges, _ = case
    cut = min(cut, rows[0].size)
    early = take(SMALL, [e for e in edges if e <= cut], [x[:cut] for x in rows])
    whole, made = take(SMALL, edges, rows)
    want = made.columns(whole, duration_s=None, complete=True)
    got = early[1].columns(early[0], duration_s=None, complete=True)
    assert_frame_equal(got, want[:got.height], check_exact=True)


def test_blocks_alone_are_as_blocks_together():
    rows, edges = tape(500, 3), list(range(7, 500, 13))
    want = bars(SMALL, edges, rows)
    for block in ALL:
        got = bars(FeatureConfig(bar_blocks=(block,), bar_window=4, large_trade=100.0), edges, rows)
        assert set(got.columns) < set(want.columns) and len(got.columns) > 24
        assert_frame_equal(got, want.select(got.columns), check_exact=True)


CHANGES = {"bar_window": 9, "large_trade": 1.0, "footprint_tick": 0.5, "value_area": 0.3}


@pytest.mark.parametrize("name", CHANGES)
def test_every_parameter_is_used(name):
    rows, edges = tape(500, 3), list(range(7, 500, 13))
    before, after = bars(SMALL, edges, rows), bars(SMALL.model_copy(update={name: CHANGES[name]}), edges, rows)
    assert before.columns != after.columns or not before.equals(after)


def test_raw_bars_are_chosen_whole():
    rows, edges = tape(200, 4), list(range(3, 200, 9))
    raw, made = take(SMALL, edges, rows)
    keep = np.arange(len(edges)) % 3 == 1
    want = made.columns(raw, duration_s=None, complete=True)
    got = made.columns(choose_bars(raw, keep), duration_s=None, complete=True)
    assert_frame_equal(got, want.filter(pl.Series(keep)), check_exact=True)
    nothing = made.columns(choose_bars(raw, np.zeros(len(edges), bool)), duration_s=60, complete=True)
    assert nothing.height == 0 and nothing.schema == want.schema


@pytest.mark.parametrize("edges", [[0], [3]])
def test_an_open_bar_of_one_trade(edges):
    rows = rows_of([0, 1, 2], [100, 101, 100], [1, 0, 1], [1, 0, -1])
    made = BarAggregator(SMALL)
    made.take(np.array([], np.int64), *(x[:1] for x in rows))
    first = made.columns(made.take(np.array(edges), *rows), duration_s=None, complete=True)
    assert first["n_obs"].to_list() == [1 if edges == [0] else 4]
