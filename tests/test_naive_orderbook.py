"""The twins in `naive_orderbook` against values worked out by hand, and against what must hold of any right answer."""
import math

import naive_orderbook as twin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND, order
from naive_orderbook import ALWAYS, CONFIG, OK, columns, config, dedup_books, orderbook, orderbook_bars
from strategies import SATURDAY
from strategies_orderbook import book_rows, books_and_trades, fixed_books, fixed_clocks, fixed_trades

LN, E = math.log, math.exp


def at(seconds):
    "Epoch microseconds, `seconds` after Saturday 2024-08-10 00:00 UTC."
    return SATURDAY + round(seconds * SECOND)


def book(seconds, bids, asks, **more):
    return {"capture_ts": at(seconds), "timestamp": None, "nonce": None, "exchange": "x", "symbol": "A",
            "bids": bids, "asks": asks, **more}


def trade(seconds, side, amount):
    return {"capture_ts": at(seconds), "timestamp": None, "trade_id": None, "side": side, "price": 100.0,
            "amount": amount}


def col(rows, name): return [r[name] for r in rows]


def approx(values, rel=1e-12): return [v if v is None else pytest.approx(v, rel=rel, abs=1e-15) for v in values]


def about(row, **expected):
    for name, value in expected.items(): assert row[name] == pytest.approx(value, rel=1e-12, abs=1e-13), name


# Mid 100; bids at 100, 200 .. 500 bps of sizes 1 2 3 4 10, asks likewise of sizes 4 4 4 4 4; each side sums to 20.
BIDS = [(99.0, 1.0), (98.0, 2.0), (97.0, 3.0), (96.0, 4.0), (95.0, 10.0)]
ASKS = [(101.0, 4.0), (102.0, 4.0), (103.0, 4.0), (104.0, 4.0), (105.0, 4.0)]
[WIDE] = orderbook([book(0, BIDS, ASKS)])

# Mid 10 000, a unit of price is a basis point.
[NEAR] = orderbook([book(0, [(9999.0, 1.0), (9995.0, 2.0), (9990.0, 4.0), (9970.0, 8.0)],
                         [(10_001.0, 1.0), (10_004.0, 1.0), (10_030.0, 2.0)])])


def test_quote_columns():
    about(WIDE, best_bid=99, best_ask=101, mid_price=100, spread=2, relative_spread=0.02, spread_bps=200)
    about(WIDE, microprice=99.4, micro_minus_mid=-0.6, micro_minus_mid_bps=-60)        # (99 * 4 + 101 * 1) / 5
    assert (WIDE["book_state"], WIDE["n_bid_levels"], WIDE["n_ask_levels"]) == ("ok", 5, 5)
    assert (WIDE["bid_price_L1"], WIDE["ask_size_L4"]) == (98, 4)
    assert (WIDE["bid_price_L5"], WIDE["ask_size_L19"]) == (None, None)                 # no such level


def test_depth_columns():
    about(WIDE, total_bid_depth=20, total_ask_depth=20, total_imbalance=0)
    about(WIDE, imbalance_L1=-3 / 5, imbalance_L3=(6 - 12) / 18, imbalance_L5=0, imbalance_L10=0)
    about(WIDE, vwap_bid_5=96, vwap_ask_5=103, vwap_spread=7)      # bids: (99 + 196 + 291 + 384 + 950) / 20 = 1920 / 20
    smart_bid = E(-1) + 2 * E(-2) + 3 * E(-3) + 4 * E(-4) + 10 * E(-5)                  # k |P - m| / m = 1, 2 .. 5
    smart_ask = 4 * (E(-1) + E(-2) + E(-3) + E(-4) + E(-5))
    about(WIDE, smart_bid_depth=smart_bid, smart_ask_depth=smart_ask,
          smart_depth_imbalance=(smart_bid - smart_ask) / (smart_bid + smart_ask))
    about(WIDE, bid_depth_decay_5=10, ask_depth_decay_5=1, avg_depth_decay_5=5.5)
    about(WIDE, center_of_gravity=99.5, cog_vs_mid=-50)                                 # (1920 + 2060) / 40
    about(WIDE, bid_cog_bps=400, ask_cog_bps=300)          # bids: (100 + 400 + 900 + 1600 + 5000) / 20


def test_slopes():
    about(WIDE, bid_slope_simple=4 / 20, ask_slope_simple=4 / 20)
    # d - mean: -200 -100 0 100 200, sum of squares 100 000. Bids, cumulative 1 3 6 10 20: (-200 - 300 + 1000 + 4000);
    # asks, cumulative 4 8 .. 20: 4 per 100 bps.
    about(WIDE, bid_slope_regression=0.045, ask_slope_regression=0.04, slope_asymmetry=LN(9 / 8))
    # Bids: ln 1, 2, 3, 4, 10 at 100 .. 500 bps; -200 ln 1 - 100 ln 2 + 100 ln 4 + 200 ln 10 over 100 000.
    about(WIDE, bid_exp_decay_rate=-(LN(2) * 100 + 200 * LN(10)) / 100_000, ask_exp_decay_rate=0)
    sizes = [E(-0.01 * d) for d in (100, 200, 300)]                                     # decays by 0.01 per bp
    [row] = orderbook([book(0, list(zip((99.0, 98.0, 97.0), sizes)), [(101.0, 1.0), (102.0, 1.0)])])
    about(row, bid_exp_decay_rate=0.01)
    undefined = ["ask_exp_decay_rate", "ask_slope_regression", "slope_asymmetry"]      # n = 2
    undefined += ["bid_slope_simple", "bid_depth_decay_5", "avg_depth_decay_5"]        # n < 5
    assert [row[k] for k in undefined] == [None] * 6


def test_shape_of_a_side():
    about(WIDE, bid_concentration=130 / 400, ask_concentration=0.2)                     # 1 + 4 + 9 + 16 + 100
    shares = (0.05, 0.1, 0.15, 0.2, 0.5)
    about(WIDE, bid_entropy=-sum(w * LN(w) for w in shares) / LN(5), ask_entropy=1)
    # |differences| of the pairs of 1 2 3 4 10: 1 2 3 9, 1 2 8, 1 7, 6 = 40; twice that over 2 * 5 * 20.
    about(WIDE, bid_gini=0.4, ask_gini=0)
    assert (WIDE["bid_50pct_depth_levels"], WIDE["ask_50pct_depth_levels"]) == (3, 2)   # 1 3 6 [10]; 4 8 [12]
    assert (WIDE["bid_wall_level"], WIDE["ask_wall_level"]) == (4, 0)                   # first if tied
    about(WIDE, bid_wall_share=0.5, ask_wall_share=0.2)
    [one] = orderbook([book(0, [(99.0, 2.0)], [(101.0, 2.0)])])
    assert (one["bid_entropy"], one["bid_gini"], one["bid_concentration"]) == (None, None, 1)


def test_bands():
    # 5 lies in 5..10 and 10 in 10..25: lo <= d < hi.
    assert [NEAR[f"bid_vol_band_{b}bps"] for b in ("0_5", "5_10", "10_25", "25_50", "50_100")] == [1, 2, 4, 8, 0]
    assert [NEAR[f"ask_vol_band_{b}bps"] for b in ("0_5", "5_10", "10_25", "25_50", "50_100")] == [2, 0, 0, 2, 0]
    imbalances = [NEAR[f"imb_band_{b}bps"] for b in ("0_5", "5_10", "10_25", "25_50", "50_100")]
    assert imbalances == approx([-1 / 3, 1, 1, 0.6, None])
    about(NEAR, book_convexity=3 / 19)                     # 1 + 2 within 5; 15 + 4 within 50
    assert NEAR["band_truncated"] is True


def test_depth_within():
    about(NEAR, spread_to_depth_5bps=2 / 3, spread_to_depth_10bps=2 / 5)                # 1 + 2; 3 + 2
    assert (WIDE["spread_to_depth_5bps"], WIDE["book_convexity"]) == (None, None)       # no depth there
    assert WIDE["band_truncated"] is False                                              # 500 bps on both sides


def test_cost_to_trade():
    # Buy 1000: 404 + 408 for 8, the last 188 at 103. Sell 1000: 99 + 196 + 291 + 384 = 970 for 10, the last 30 at 95.
    about(WIDE, cost_to_buy_1000_bps=(1000 / (8 + 188 / 103) - 100) * 100)
    about(WIDE, cost_to_sell_1000_bps=(100 - 1000 / (10 + 30 / 95)) * 100)
    assert WIDE["cost_to_buy_10000_bps"] is None                                        # the asks hold 2060
    [row] = orderbook([book(0, [(99.0, 10.0)], [(101.0, 1000 / 101 * (1 - 1e-10))])])
    about(row, cost_to_buy_1000_bps=100.00000101)          # short by 1e-10: 1000 / base = 101 (1 + 1e-10)
    assert row["cost_to_sell_1000_bps"] is None                                         # 990


def test_states():
    bid, ask = [(99.0, 1.0)], [(101.0, 1.0)]
    cases = [(bid, ask, "ok"), ([(101.0, 1.0)], ask, "locked"), ([(102.0, 1.0)], ask, "crossed"),
             (bid, [], "one_sided"), ([], ask, "one_sided"), ([], [], "empty"), ([(99.0, 0.0)], ask, "one_sided"),
             ([(99.0, 0.0)], [(101.0, 0.0)], "empty"), ([(98.0, 1.0), (99.0, 1.0)], ask, "unsorted"),
             (bid, [(101.0, 1.0), (101.0, 1.0)], "unsorted"), ([(98.0, 1.0), (99.0, 1.0)], [], "one_sided"),
             ([(102.0, 1.0), (103.0, 1.0)], ask, "unsorted"), ([(98.0, 0.0), (99.0, 1.0)], ask, "ok")]
    rows = orderbook([book(i, b, a) for i, (b, a, _) in enumerate(cases)], [])
    assert col(rows, "book_state") == [state for _, _, state in cases]
    assert (rows[6]["n_bid_levels"], rows[6]["n_ask_levels"]) == (0, 1)                 # size 0 is dropped first
    about(rows[1], spread=0, mid_price=101, microprice=101)
    about(rows[2], best_bid=102, best_ask=101, total_bid_depth=1, bid_wall_share=1)     # crossed: what needs no mid
    about(rows[3], best_bid=99, bid_price_L0=99)
    assert {k for k, v in rows[5].items() if v is not None} == {"capture_ts", "exchange", "symbol", *ALWAYS}
    for row in (rows[2], rows[3]):
        written = {k for k, v in row.items() if v is not None} - {"capture_ts", "exchange", "symbol", *ALWAYS}
        assert all("bid" in k or "ask" in k for k in written)
        assert not [k for k in written if any(x in k for x in ("band", "cog", "smart", "regression", "exp", "cost"))]


def test_ofi():
    q = [([(99.0, 5.0)], [(101.0, 7.0)]),
         ([(99.0, 8.0)], [(101.0, 6.0)]),       # both prices stay: 8 - 5 - 6 + 7 = 4
         ([(99.5, 2.0)], [(101.0, 6.0)]),       # bid up: +2; ask stays, 6 less 6: 2
         ([(99.5, 2.0)], [(100.5, 3.0)]),       # ask down: -3
         ([(99.0, 4.0)], [(101.5, 9.0)]),       # bid down: -2; ask up: +3: 1
         ([(99.0, 4.0)], []),                   # one-sided: no observation
         ([(99.0, 5.0)], [(101.5, 9.0)])]       # against the last good row: 1
    rows = orderbook([book(i, *x) for i, x in enumerate(q)])
    assert col(rows, "ofi") == [None, 4, 2, -3, 1, None, 1]
    assert col(rows, "ofi_sum_5s") == [None, 4, 6, 3, 4, None, 1 - 3 + 1 + 2]           # (1, 6]: rows 2 3 4 6
    assert col(rows, "mid_velocity") == [None, 0, 0.25, -0.25, 0.25, None, 0]           # mids 100 100 100.25 100 100.25
    assert col(rows, "mid_accel") == approx([None, None, 0.25, -0.5, 0.5, None, -0.25 / 1.5])       # dt 1 1 1 1 . 2


def test_mlofi_with_a_missing_level():
    q = [([(99.0, 1.0), (98.0, 2.0)], [(101.0, 1.0)]),
         ([(99.0, 1.0)], [(101.0, 1.0), (102.0, 4.0)])]
    # Level 0: 0. Level 1: the bid of 2 is gone (-2), an ask of 4 has come at a price below "beyond the deepest" (-4).
    rows = orderbook([book(i, *x) for i, x in enumerate(q)], cfg=config(ofi_per_level=True))
    about(rows[1], mlofi=-6 * E(-0.5), mlofi_sum_5s=-6 * E(-0.5), ofi=0, ofi_L0=0, ofi_L1=-6)
    assert (rows[1]["ofi_L2"], rows[0]["mlofi"]) == (None, None)
    rows = orderbook([book(i, *x) for i, x in enumerate(reversed(q))])
    about(rows[1], mlofi=6 * E(-0.5))


def quoted(seconds, bid, ask): return book(seconds, [(bid, 1.0)], [(ask, 1.0)])


def test_returns_and_their_windows():
    rows = orderbook([quoted(0, 99, 101), quoted(1, 109, 111), quoted(2, 98, 100), quoted(7, 98, 100)])
    a, b = LN(1.1), LN(99 / 110)                           # mids 100 110 99 99
    assert col(rows, "log_return") == approx([None, a, b, 0])
    assert col(rows, "rv_5s") == approx([None, abs(a), math.sqrt(a * a + b * b), 0])
    assert col(rows, "mean_return_5s") == approx([None, a, (a + b) / 2, 0])             # (2, 7] holds row 3 alone
    assert col(rows, "ret_std_5s") == approx([None, None, abs(a - b) / math.sqrt(2), None])
    # Spreads of 2 / 100 for 1 s, 2 / 110 for 1 s; the last from 2 s on: (2, 7] is 2 / 99 throughout.
    assert col(rows, "mean_spread_5s") == approx([0.02, 0.02, (0.02 + 2 / 110) / 2, 2 / 99])


def test_segments():
    rows = orderbook([quoted(0, 99, 101), quoted(300, 98, 100), quoted(600.000001, 98, 100)])
    assert col(rows, "segment_id") == [at(0), at(0), at(600.000001)]
    assert col(rows, "segment_age_s") == [0, 300, 0]
    assert col(rows, "log_return") == approx([None, LN(0.99), None])
    assert col(rows, "ofi") == [None, 0 - 1 - 1 + 0, None]                              # bid and ask down


def test_shape_windows():
    flat = [(101.0, 1.0), (102.0, 1.0), (103.0, 1.0)]
    bids = [[(99.0, s), (98.0, s), (97.0, s)] for s in (1.0, 3.0, 1.0)]
    rows = orderbook([book(t, b, flat) for t, b in zip((0, 10, 65), bids)])
    assert col(rows, "bid_slope_regression") == approx([0.01, 0.03, 0.01])
    assert col(rows, "bid_slope_mean_60s") == approx([0.01, 0.02, 0.02])                # (5, 65]: rows 1 and 2
    assert col(rows, "bid_slope_std_60s") == approx([None, 0.02 / math.sqrt(2), 0.02 / math.sqrt(2)])
    assert col(rows, "ask_slope_std_60s") == approx([None, 0, 0])
    # Both sides 200 bps deep; sizes 3 and 9 against 3: (9 * 98 + 3 * 102) / 12 = 99.
    assert col(rows, "cog_vs_mid") == approx([0, -100, 0])
    assert col(rows, "cog_vs_mid_mean_60s") == approx([0, -50, -50])
    near = [book(t, [(9999.0, q), (9990.0, 50.0)], [(10_001.0, 1.0)]) for t, q in ((0, 1.0), (1, 3.0))]
    assert col(orderbook(near), "depth_0_5bps_sigma") == approx([None, math.sqrt(2)])   # 2 and 4


def test_spread_percentile():
    assert col(orderbook([quoted(t, 99, 101) for t in range(5)]), "spread_percentile") == [0.5] * 5
    spreads = [quoted(0, 99, 101), quoted(1, 98, 102), quoted(2, 99.5, 100.5), quoted(3, 99, 101), quoted(301, 98, 102)]
    rows = orderbook(spreads)                              # 2 4 1 2 | (1, 301]: 1 2 4
    assert col(rows, "spread_percentile") == approx([0.5, 1.5 / 2, 0.5 / 3, (1 + 1) / 4, 2.5 / 3])
    assert col(rows, "spread_regime") == ["normal", "normal", "tight", "normal", "wide"]
    assert col(rows, "spread_regime_tight_frac") == approx([0, 0, 0, 1 / 3, 1 / 300])   # row 2 held 1 s of 3, of 300
    assert col(rows, "spread_regime_wide_frac") == [0] * 5                              # the last has held no time yet
    rows = orderbook(spreads, cfg=config(use_dynamic_spread_regime=False, spread_tight_threshold_bps=100,
                                         spread_wide_threshold_bps=400))
    assert col(rows, "spread_regime") == ["normal", "wide", "tight", "normal", "wide"]  # 200 400 100 200 400 bps
    # Of 6 significant digits: 2.0000001 is 2.
    rows = orderbook([quoted(0, 99, 101), quoted(1, 99, 101.0000001)])
    assert col(rows, "spread_percentile") == [0.5, 0.5]


def test_ofi_regression():
    sizes = [1.0, 2.0, 4.0, 5.0]
    rows = orderbook([book(t, [(99.0, q)], [(101.0, 1.0)]) for t, q in enumerate(sizes)])
    assert col(rows, "ofi_n") == [0, 1, 2, 3]
    assert (rows[3]["ofi_beta"], rows[3]["ofi_r2"], rows[2]["ofi_beta"]) == (0, None, None)     # all returns are 0
    # The ask stays. Bid up: + its new size, 2; down: - its old size, -2; up: 4.
    q = [(99.0, 1.0), (99.5, 2.0), (99.0, 7.0), (99.5, 4.0)]
    rows = orderbook([book(t, [x], [(101.0, 1.0)]) for t, x in enumerate(q)])
    assert col(rows, "ofi") == [None, 2, -2, 4]
    r = LN(100.25 / 100)                                           # returns r, -r, r
    # x - 4/3: 2/3 -10/3 8/3; y - r/3: 2/3 -4/3 2/3 (of r). Sxy = (4 + 40 + 16) / 9 r, Sxx = 168 / 9, Syy = 24 / 9 r^2.
    about(rows[3], ofi_beta=60 / 168 * r, ofi_r2=60 * 60 / (168 * 24), ofi_n=3)


def test_kyle_lambda():
    # Mids 100 at 0.5, 101 at 1.5, 102 at 2.5, 100 at 3.5; looked at from 4.0.
    books = [quoted(t, m - 1, m + 1) for t, m in ((0.5, 100), (1.5, 101), (2.5, 102), (3.5, 100), (4.0, 100))]
    trades = [trade(0.2, "buy", 9.0), trade(1.0, "buy", 1.0), trade(1.9, "x", 5.0), trade(2.5, "buy", 3.0),
              trade(2.999999, "sell", 1.0), trade(3.7, "sell", 2.0), trade(4.0, "buy", 99.0)]
    rows = orderbook(books, trades)
    # [0, 1) holds the first mid and is left out; [1, 2): 1, ln 1.01; [2, 3): 3 - 1 = 2, ln(102/101);
    # [3, 4): -2, ln(100/102).
    assert col(rows, "kyle_lambda_n") == [0, 0, 1, 2, 3]
    x, y = (1, 2, -2), (LN(1.01), LN(102 / 101), LN(100 / 102))
    # x - 1/3: 2/3 5/3 -7/3, Sxx = 78/9; the y sum to 0, so Sxy = sum x y and Syy = sum y^2.
    sxy = sum(a * b for a, b in zip(x, y))
    about(rows[4], kyle_lambda=sxy / (78 / 9), kyle_lambda_r2=sxy ** 2 / (78 / 9) / sum(b * b for b in y))
    assert (rows[3]["kyle_lambda"], rows[3]["kyle_lambda_r2"]) == (None, None)
    rows = orderbook(books, trades, config(kyle_lambda_window=3))
    assert rows[4]["kyle_lambda_n"] == 3                           # ends in (1, 4]: 2, 3, 4
    assert orderbook(books, trades, {"kyle_lambda_window": 2})[4]["kyle_lambda_n"] == 2
    quiet = orderbook(books, [])[4]                                # no trades: x = 0 throughout
    assert (quiet["kyle_lambda"], quiet["kyle_lambda_r2"], quiet["kyle_lambda_n"]) == (None, None, 3)
    assert orderbook(books)[4]["kyle_lambda_n"] is None            # no trades input


def test_kyle_interval_without_books_and_over_a_gap():
    rows = orderbook([quoted(0.5, 99, 101), quoted(5.5, 99, 101), quoted(400, 99, 101), quoted(402.5, 99, 101)], [])
    # From 5.5: [1, 2) .. [4, 5), no book in any. From 402.5: a new segment, [400, 401) holds its first mid; [401, 402).
    assert col(rows, "kyle_lambda_n") == [0, 4, 0, 1]


def test_trade_windows():
    trades = [trade(-3, "buy", 1.0), trade(0, "sell", 3.0), trade(2, "x", 4.0), trade(2.000001, "buy", 50.0)]
    books = [quoted(0, 99, 101), quoted(2, 99, 101), book(2, [], []), quoted(10, 99, 101)]
    rows = orderbook(books, trades)
    assert col(rows, "trade_count_5s") == [2, 2, None, 0]          # (-5, 0]; (-3, 2]: without the one at -3
    assert col(rows, "trade_vol_5s") == [4, 7, None, 0]
    assert col(rows, "tfi_5s") == [-0.5, -1, None, None]           # of known sides; null if none
    assert col(rows, "trade_count_15s") == [2, 3, None, 4]
    assert set(col(orderbook(books), "trade_vol_5s")) == {None}
    assert col(orderbook(books, []), "trade_count_5s") == [0, 0, None, 0]


def test_vpin():
    [row] = orderbook([quoted(60, 99, 101)], [trade(i, "buy", 1.0) for i in range(50)])
    assert (row["vpin"], row["vpin_bucket_count"], row["vpin_bucket_size"]) == (1, 50, 1)       # a one-sided tape
    [row] = orderbook([quoted(60, 99, 101)], [trade(i, "buy", 1.0) for i in range(49)])
    assert (row["vpin"], row["vpin_bucket_count"]) == (None, 49)
    # Buckets of 2: [1.5 buy, 0.5 sell] -> 0.5; [2 sell] -> 1; [1 sell, 1 unknown] -> (1.5 - 0.5) / 2; the rest is open.
    trades = [trade(0, "buy", 1.5), trade(1, "sell", 3.5), trade(2, "", 1.0), trade(3, "buy", 1.9)]
    cfg = config(vpin_bucket_size=2.0, vpin_window_buckets=2)
    rows = orderbook([quoted(t, 99, 101) for t in (0, 1, 2, 3)], trades, cfg)
    assert col(rows, "vpin_bucket_count") == [0, 2, 3, 3]
    assert col(rows, "vpin") == approx([None, 0.75, 0.75, 0.75])
    assert {orderbook([quoted(0, 99, 101)], t, c)[0][k] for k in ("vpin", "vpin_bucket_count", "vpin_bucket_size")
            for t, c in ((None, CONFIG), (trades, config(enable_vpin=False)))} == {None}


def test_vpin_of_a_daily_size():
    day = 86_400
    trades = [trade(0, "buy", 100.0), trade(day, "buy", 1.0), trade(day + 1, "sell", 2.0),
              trade(3 * day, "buy", 2.0)]
    books = [quoted(t, 99, 101) for t in (1, day - 1, day, day + 1, 2 * day + 5, 3 * day)]
    rows = orderbook(books, trades, config(vpin_bucket_size="auto", vpin_window_buckets=1))
    # Day 0: no size. Day 1: 100 / 50 = 2; [1 buy, 1 sell] -> 0; 1 sell is open. No trades on day 2: still 2.
    # Day 3: 3 / 50 for buckets that begin then; the open one keeps 2: [1 sell, 1 buy] -> 0; 1 / 0.06 = 16 full of buys.
    assert col(rows, "vpin_bucket_size") == approx([None, None, 2, 2, 2, 0.06])
    assert col(rows, "vpin_bucket_count") == [0, 0, 0, 1, 1, 18]
    assert col(rows, "vpin") == approx([None, None, None, 0, 0, 1])


def test_dedup():
    a, b = ([(99.0, 1.0)], [(101.0, 1.0)]), ([(99.0, 2.0)], [(101.0, 1.0)])
    rows = [book(0, *a, nonce=1), book(0, *a, nonce=2), book(0, *b, nonce=1), book(0, *a, nonce=1),
            book(1, *a, nonce=1), book(1, *a, nonce=0), book(1, *a, nonce=None)]
    assert dedup_books(rows) == (rows[:3] + rows[4:6], [rows[3], rows[6]])


def test_bars():
    books = [quoted(50, 99, 101), quoted(65, 98, 102), book(70, [(97.0, 5.0)], []), quoted(80, 97, 103),
             quoted(119, 96, 104), quoted(130, 109.5, 110.5), book(150, [], []), quoted(172, 98.5, 101.5)]
    first, second, third = orderbook_bars(orderbook(books, cfg=config(max_gap_s=30)), 60, max_gap_s=30)
    # 0..60: 2 from 50.  60..120: 2 for 5 s, 4 for 5 s, null 10 s, 6 for 30 s (then stale), 8 (a new segment) for 1 s.
    # 120..180: 8 carried 10 s, 1 for 20 s, null, 3 for 8 s.
    assert [b["mean_spread"] for b in (first, second, third)] == approx([2, 218 / 41, 124 / 38])
    about(second, mean_relative_spread=2.18 / 41, mean_microprice=100, mean_micro_minus_mid=0, mean_l1_imbalance=0)
    about(third, mean_microprice=(100 * 10 + 110 * 20 + 100 * 8) / 38)
    # The one-sided book has a bid depth (5, for 10 s) and no ask depth.
    about(second, mean_bid_depth=(1 * 41 + 5 * 10) / 51, mean_ask_depth=1)
    assert [b["snapshot_count"] for b in (first, second, third)] == [1, 4, 3]
    assert [b["n_obs"] for b in (first, second, third)] == [1, 4, 3]
    # 65: bid down -1, ask up +1; 80 likewise; 119 begins a segment; 130: bid up +1, ask up +1; 172: both down.
    assert [b["sum_ofi"] for b in (first, second, third)] == [None, 0, 2 - 2]
    assert [third[k] for k in ("open", "high", "low", "close")] == [110, 110, 100, 100]
    r2 = 2 * LN(1.1) ** 2                                          # 100 -> 110 -> 100
    about(third, realized_variance=r2, annualized_vol=math.sqrt(r2 * 525_600), **{"return": -1 / 11, "range": 1 / 11})
    assert [b["is_complete"] for b in (first, second, third)] == [True, True, False]


def test_bar_without_a_good_book():
    [_, bar] = orderbook_bars(orderbook([quoted(0, 99, 101), book(70, [], []), book(80, [], [])]), 60)
    assert bar["mean_spread"] == 2                                 # carried from 60 to 70
    [_, bar] = orderbook_bars(orderbook([quoted(0, 99, 101), book(60, [], [])]), 60)
    assert {bar[k] for k in ("open", "mean_spread", "mean_bid_depth", "sum_ofi", "realized_vol")} == {None}


# ---- what must hold of any right answer

SMALL = config(rolling_windows=(5, 60), depth_levels=6, ofi_per_level=True)


def values(rows): return [v for r in rows for v in r.values() if isinstance(v, float)]


@settings(max_examples=40)
@given(st.data())
def test_past_only_and_finite(data):
    "A row's value is the same however books and trades go on; nothing is NaN or inf; each row lies in one bar."
    clock = data.draw(st.sampled_from(("capture_ts", "timestamp")))
    books, trades = data.draw(books_and_trades(max_size=25, clock=clock, max_levels=12))
    cfg = config(**{**vars(SMALL), "clock": clock, "vpin_bucket_size": data.draw(st.sampled_from((1.0, "auto")))})
    out = orderbook(books, trades, cfg)
    gold = orderbook_bars(out, 60, clock=clock)
    cut = data.draw(st.integers(0, len(books)))
    last = max((twin.clock_us(r, clock) for r in books[:cut]), default=0)
    assert orderbook(books[:cut], [t for t in trades if twin.clock_us(t, clock) <= last], cfg) == out[:cut]
    assert all(map(math.isfinite, values(out) + values(gold)))
    assert sum(b["n_obs"] for b in gold) == len(books)
    assert all(list(row)[-len(columns(cfg)):] == columns(cfg) for row in out)


@settings(max_examples=40)
@given(book_rows(max_size=30))
def test_bounds(rows):
    "Units of section 5; what is null by state."
    for row in orderbook(rows, []):
        for name, v in row.items():
            if not isinstance(v, float): continue
            if any(x in name for x in ("imbalance", "imb_band")): assert -1 <= v <= 1, name
            if any(x in name for x in ("entropy", "gini", "concentration", "share", "convexity", "r2", "frac")):
                assert 0 <= v <= 1 + 1e-12, name
            if name == "spread_percentile": assert 0 < v < 1
        assert (row["mid_price"] is not None) == (row["book_state"] in OK) == (row["kyle_lambda_n"] is not None)
        if row["book_state"] in ("empty", "unsorted"): assert {row[k] for k in columns() if k not in ALWAYS} == {None}


@given(book_rows(max_size=30, repeats=True, shuffled=True))
def test_dedup_loses_no_row(rows):
    kept, dropped = dedup_books(order(rows, tiebreak="nonce"))
    assert sorted(map(id, kept + dropped)) == sorted(map(id, rows))
    assert dedup_books(kept) == (kept, [])


def test_fixed_streams():
    "The same for a seed, of every kind, and all columns are reached."
    clocks = fixed_clocks(200, 2.0)
    books, trades = fixed_books(clocks, 1), fixed_trades(fixed_clocks(800, 0.5), 2)
    assert books == fixed_books(clocks, 1) != fixed_books(clocks, 2)
    rows = orderbook(books, trades, config(ofi_per_level=True))
    assert [k for k in columns() if all(r[k] is None for r in rows)] == []
    assert len({r["book_state"] for r in rows}) > 2
