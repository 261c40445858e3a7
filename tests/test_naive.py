"""The twins in `naive` against values worked out by hand, and against what must hold of any right answer."""
import math

import naive
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import SECOND
from strategies import SATURDAY, multi_stream, ticker_rows, trade_rows

LN = math.log


def at(seconds):
    "Epoch microseconds, `seconds` after Saturday 2024-08-10 00:00 UTC."
    return SATURDAY + round(seconds * SECOND)


def trade(seconds, side, price, amount, **more):
    return {"capture_ts": at(seconds), "timestamp": None, "exchange": "x", "symbol": "A", "trade_id": None,
            "side": side, "price": price, "amount": amount, **more}


def quote(seconds, bid, ask, bid_volume=None, ask_volume=None):
    return {"capture_ts": at(seconds), "timestamp": None, "exchange": "x", "symbol": "A", "bid": bid, "ask": ask,
            "bid_volume": bid_volume, "ask_volume": ask_volume}


def column(rows, name): return [r[name] for r in rows]


def approx(values): return [v if v is None else pytest.approx(v, rel=1e-14) for v in values]


TAPE = [trade(0, "buy", 100.0, 1.0),
        trade(2, "SELL", 110.0, 2.0),
        trade(5, "x", 110.0, 4.0),              # 5 s after the first: just outside of its window
        trade(5, "Buy", 121.0, 0.0),            # same clock: sees the row before, is not seen by it
        trade(305, "sell", 121.0, 1.0),         # a gap of 300 s: still the segment
        trade(605.000001, None, 60.5, 3.0)]     # 300 s and 1 us: a new one


def test_trade_row_columns():
    out = naive.trades(TAPE, windows=(5, 300))
    assert column(out, "segment_id") == [at(0)] * 5 + [at(605.000001)]
    assert column(out, "segment_age_s") == [0, 2, 5, 5, 305, 0]
    assert column(out, "is_buy") == [1, 0, None, 1, 0, None]
    assert column(out, "side_sign") == [1, -1, None, 1, -1, None]
    assert column(out, "dollar_volume") == [100, 220, 440, 0, 121, 181.5]
    assert column(out, "signed_volume") == [1, -2, None, 0, -1, None]
    assert column(out, "dt_s") == [None, 2, 3, 0, 300, None]
    assert column(out, "log_return") == approx([None, LN(1.1), 0.0, LN(1.1), 0.0, None])
    assert {(r["hour"], r["day_of_week"], r["is_weekend"]) for r in out} == {(0, 6, True)}
    assert column(out, "side") == column(TAPE, "side")


def test_trade_windows():
    out = naive.trades(TAPE, windows=(5, 300))
    # 5 s: {0}, {0 1}, {1 2}, {1 2 3}, {4}, {5}; 300 s: {0}, {0 1}, {0 1 2}, {0 1 2 3}, {4} (305 - 300 = 5 is out), {5}
    assert column(out, "trade_count_5s") == [1, 2, 2, 3, 1, 1]
    assert column(out, "trade_count_300s") == [1, 2, 3, 4, 1, 1]
    assert column(out, "volume_5s") == [1, 3, 6, 6, 1, 3]
    assert column(out, "dollar_volume_300s") == [100, 320, 760, 760, 121, 181.5]
    assert column(out, "vwap_5s") == approx([100, 320 / 3, 110, 110, 121, 60.5])
    assert column(out, "buy_ratio_5s") == [1, 0.5, 0, 0.5, 0, None]              # by count: an amount of 0 counts
    assert column(out, "tfi_5s") == approx([1, -1 / 3, -1, -1, -1, None])
    r2 = LN(1.1) ** 2
    assert column(out, "realized_var_5s") == approx([None, r2, r2, 2 * r2, 0, None])


def test_trade_window_without_volume():
    [row] = naive.trades([trade(0, "buy", 100.0, 0.0)], windows=(5,))
    assert (row["vwap_5s"], row["tfi_5s"], row["buy_ratio_5s"], row["volume_5s"]) == (None, None, 1.0, 0.0)


def test_event_time_clock():
    rows = [trade(9, "buy", 1.0, 1.0, timestamp=at(0) // 1000), trade(3, "buy", 2.0, 1.0, timestamp=at(4) // 1000)]
    out = naive.trades(rows, windows=(5,), clock="timestamp")
    assert column(out, "dt_s") == [None, 4]
    assert column(out, "segment_id") == [at(0)] * 2


def test_order():
    def row(name, seconds, timestamp, trade_id):
        return {"name": name, "capture_ts": at(seconds), "timestamp": timestamp, "trade_id": trade_id}
    rows = [row("late", 1, 1, "1"), row("ten", 0, 5, "10"), row("nine", 0, 5, "9"), row("text", 0, 5, "b"),
            row("none", 0, 5, None), row("text2", 0, 5, "a"), row("null time", 0, None, "99"), row("early", 0, 4, "77")]
    named = column(naive.order(rows), "name")
    assert named == ["null time", "early", "text", "none", "text2", "nine", "ten", "late"]
    books = [{"capture_ts": 0, "timestamp": 1, "nonce": n} for n in (3, 0, 2, None)]
    assert column(naive.order(books, tiebreak="nonce"), "nonce") == [0, None, 2, 3]


def test_dedup():
    def row(seconds, name, partition, price=1.0):
        return trade(seconds, "buy", price, 1.0, trade_id=name, partition=partition)
    rows = [row(0, "a", 1), row(1, "", 1), row(1, None, 1), row(1, "", 1), row(1, None, 1),
            row(2000, "a", 1),                  # same partition, however old: dropped
            row(2899, "a", 2),                  # 899 s after the last: dropped
            row(3799, "a", 2, 9.0),             # 900 s after, but within its partition; other price: conflicting
            row(4699, "a", 3, 9.0)]             # 900 s after the last, a new partition: kept
    kept, dropped, conflicting = naive.dedup_trades(rows)
    assert kept == rows[:5] + rows[8:]
    assert (dropped, conflicting) == (rows[5:7], [rows[7]])


def test_trade_bars():
    one, two, three = naive.trade_bars(TAPE, 300)      # rows 0..3 | row 4 | row 5
    r2 = LN(1.1) ** 2
    assert (one["bar_start"], one["bar_end"], one["available_at"]) == (at(0), at(300), at(300))
    assert (one["n_obs"], one["trade_count"], one["bar_duration_sec"]) == (4, 4, 300)
    assert [one[k] for k in ("open", "high", "low", "close")] == [100, 121, 100, 121]
    assert [one[k] for k in ("return", "range", "log_return")] == approx([0.21, 0.21, LN(1.21)])
    assert [one[k] for k in ("volume", "dollar_volume", "buy_volume", "sell_volume")] == [7, 760, 1, 2]
    assert [one[k] for k in ("vwap", "trade_imbalance", "buy_ratio")] == approx([760 / 7, -1 / 3, 2 / 3])
    assert [one[k] for k in ("realized_variance", "realized_vol")] == approx([2 * r2, math.sqrt(2 * r2)])
    assert one["annualized_vol"] == pytest.approx(math.sqrt(2 * r2 * 105_120))            # 31 536 000 / 300
    assert (two["realized_variance"], two["trade_imbalance"]) == (0.0, -1.0)
    assert (three["realized_variance"], three["annualized_vol"], three["buy_ratio"]) == (None, None, None)
    assert [b["is_complete"] for b in (one, two, three)] == [True, True, False]


BOARD = [quote(0, 99.0, 101.0, 3.0, 1.0),       # mid 100, spread 2, imbalance 1/2
         quote(2, 102.0, 106.0, 0.0, 0.0),      # mid 104, spread 4, no imbalance
         quote(3, None, 105.0, 1.0, 3.0),       # no mid, imbalance -1/2
         quote(6, 111.0, 110.0, None, 3.0),     # crossed
         quote(6, 110.0, 110.0, 2.0, 2.0),      # locked: mid 110, spread 0, imbalance 0
         quote(10, 111.0, 113.0, 1.0, 0.0)]     # mid 112, spread 2, imbalance 1


def test_ticker_row_columns():
    out = naive.ticker(BOARD, windows=(5,))
    assert column(out, "mid_price") == [100, 104, None, None, 110, 112]
    assert column(out, "spread") == [2, 4, None, None, 0, 2]
    assert column(out, "relative_spread") == approx([0.02, 4 / 104, None, None, 0, 2 / 112])
    assert column(out, "spread_bps") == approx([200, 40_000 / 104, None, None, 0, 20_000 / 112])
    assert column(out, "microprice") == [100.5, None, None, None, 110, 113]      # (99 * 1 + 101 * 3) / 4
    assert column(out, "volume_imbalance") == [0.5, None, -0.5, None, 0, 1]
    assert column(out, "log_return") == approx([None, LN(1.04), None, None, LN(110 / 104), LN(112 / 110)])
    assert column(out, "segment_age_s") == [0, 2, 3, 6, 6, 10]


def test_ticker_windows():
    out = naive.ticker(BOARD, windows=(5,))
    # t = 3: 100 for 2 s, 104 for 1 s.  t = 6: 100 and 104 for 1 s each, then null.  t = 10: from 5, 110 for 4 s.
    assert column(out, "mid_price_mean_5s") == approx([100, 100, 304 / 3, 102, 102, 110])
    # t = 3: variance 2/3 * 1/3 * 4^2 = 32/9
    assert column(out, "mid_price_std_5s") == approx([None, 0, math.sqrt(32) / 3, 2, 2, 0])
    assert column(out, "spread_mean_5s") == approx([2, 2, 8 / 3, 3, 3, 0])
    # t = 6: 1/2 for 1 s, null 1 s, -1/2 for 3 s.  t = 10: -1/2 for 1 s, 0 for 4 s
    assert column(out, "vol_imbalance_mean_5s") == approx([0.5, 0.5, 0.5, -0.25, -0.25, -0.1])


def test_ticker_window_of_nulls_is_own_value():
    rows = [quote(0, 99.0, 101.0), quote(1, None, None), quote(10, 103.0, 105.0), quote(311, 1.0, 3.0)]
    out = naive.ticker(rows, windows=(5,))
    assert column(out, "mid_price_mean_5s") == [100, 100, 104, 2]         # 5..10 is null throughout; 311 a new segment
    assert column(out, "mid_price_std_5s") == [None, 0, None, None]
    assert column(out, "log_return") == approx([None, None, LN(1.04), None])


def test_ticker_bars():
    rows = [quote(50, 99.0, 101.0), quote(65, 98.0, 102.0), quote(70, None, 102.0), quote(80, 97.0, 103.0),
            quote(119, 96.0, 104.0), quote(130, 99.5, 100.5), quote(150, None, None), quote(172, 98.5, 101.5)]
    first, second, third = naive.ticker_bars(rows, 60, max_gap_s=30)
    # 0..60: 2 from 50.  60..120: 2 for 5 s, 4 for 5 s, null, 6 for 30 s (then stale), 8 (a new segment) for 1 s.
    # 120..180: 8 carried 10 s, 1 for 20 s, null, 3 for 8 s.
    assert [b["mean_spread"] for b in (first, second, third)] == approx([2, 218 / 41, 124 / 38])
    assert second["mean_relative_spread"] == pytest.approx(2.18 / 41)
    assert [(b["min_spread"], b["max_spread"]) for b in (first, second, third)] == [(2, 2), (4, 8), (1, 3)]
    assert [b["tick_count"] for b in (first, second, third)] == [1, 4, 3]
    assert [b["realized_variance"] for b in (first, second, third)] == [None, 0, 0]
    assert third["is_complete"] is False


def test_ticker_bar_after_a_gap_carries_nothing():
    _, bar = naive.ticker_bars([quote(50, 99.0, 101.0), quote(81, 98.0, 102.0)], 60, max_gap_s=30)
    assert bar["mean_spread"] == 4
    _, bar = naive.ticker_bars([quote(50, 99.0, 101.0), quote(80, 98.0, 102.0)], 60, max_gap_s=30)
    assert bar["mean_spread"] == approx([(2 * 20 + 4 * 30) / 50])[0]


def test_ticker_bar_without_time_or_quotes():
    rows = [quote(0, 99.0, 101.0), quote(0, None, None), quote(70, None, None)]
    first, second = naive.ticker_bars(rows, 60)
    assert first["mean_spread"] == 2                                       # held no time: its own value
    assert {second[k] for k in ("open", "close", "return", "mean_spread", "min_spread", "annualized_vol")} == {None}
    assert (second["n_obs"], second["tick_count"]) == (1, 1)


# ---- what must hold of any right answer

KINDS = [(trade_rows, naive.trades, naive.trade_bars), (ticker_rows, naive.ticker, naive.ticker_bars)]


def floats(rows): return [v for r in rows for v in r.values() if isinstance(v, float)]


@pytest.mark.parametrize(("rows", "silver", "bars"), KINDS)
@given(data=st.data())
def test_past_only_and_finite(rows, silver, bars, data):
    "A row's value is the same however the stream goes on; nothing is NaN or inf; each row lies in one bar."
    clock = data.draw(st.sampled_from(("capture_ts", "timestamp")))
    stream = data.draw(rows(max_size=60, clock=clock))
    out, gold = silver(stream, clock=clock), bars(stream, 60, clock=clock)
    cut = data.draw(st.integers(0, len(stream)))
    assert silver(stream[:cut], clock=clock) == out[:cut]
    assert all(map(math.isfinite, floats(out) + floats(gold)))
    assert sum(b["n_obs"] for b in gold) == len(stream)


@given(trade_rows(max_size=60, repeats=True, shuffled=True))
def test_dedup_loses_no_row(rows):
    ordered = naive.order(rows)
    parts = naive.dedup_trades(ordered, partition=naive.day)
    assert sorted(map(id, sum(parts, []))) == sorted(map(id, rows))
    assert naive.dedup_trades(parts[0], partition=naive.day) == (parts[0], [], [])


@given(multi_stream(ticker_rows(max_size=30)))
def test_streams_part_what_was_interleaved(rows):
    parts = naive.streams(rows)
    assert sum(map(len, parts.values())) == len(rows)
    assert all(naive.order(p, tiebreak=None) == p for p in parts.values())
