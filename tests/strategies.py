"""Hypothesis strategies: bronze rows of trades and tickers that visit the edges of windows, blocks, segments and bars.

Rows are dicts as `naive` has them (`capture_ts` int microseconds), in order unless `shuffled`. With clock="timestamp"
every row has a `timestamp` and the edges are those of that clock.
"""
from hypothesis import strategies as st
from naive import SECOND, WINDOWS, order

# Thursday 2024-08-08 23:58:20 UTC: a minute, quarter, hour and day edge (and a Friday) are near.
THURSDAY = 1_723_161_500 * SECOND
SATURDAY = 1_723_248_000 * SECOND                              # 2024-08-10 00:00:00 UTC, a multiple of every window
BASES = (SATURDAY - 1, SATURDAY, THURSDAY, THURSDAY + 123_457, SATURDAY - 5 * SECOND)
EDGES = (1, 60, 3600, *WINDOWS)                                # seconds: blocks and bars to step exactly onto
STREAMS = (("binance", "BTC-USDT"), ("binance", "ETH-USDT"), ("binanceus", "BTC-USDT"))
SIDES = ("buy", "sell", "BUY", "Sell", "bUy", "SELL", "", "unknown", "b", " buy", None)
AMOUNTS = (0.0, 1e-8, 0.001, 0.1, 0.3, 1.0, 1.0, 2.5, 1e6)
MOVES = (1.0, 1.0, 1.0, 1 + 1e-9, 1.0001, 1 / 1.0001, 1.01, 0.99, 0.5, 2.0, 1000.0, 0.001)
LOW, HIGH = 1e-4, 1e9                                          # a jump beyond is not taken
QUOTES = ("ok", "ok", "ok", "wide", "locked", "crossed", "no_bid", "no_ask", "none", "zero_bid", "zero_ask")
VOLUMES = (0.0, 0.0, None, 1e-8, 0.1, 0.3, 1.0, 2.5, 1e6)


def sizes(max_size: int) -> st.SearchStrategy[int]:
    "Half of the streams short (and quick to shrink), half of any length."
    return st.one_of(st.integers(0, min(8, max_size)), st.integers(0, max_size))


def steps(tick: int) -> st.SearchStrategy[tuple[str, int]]:
    "How the clock goes on, in multiples of `tick` microseconds: by an amount, or onto an edge (or one tick off it)."
    near = [w * SECOND + e for w in WINDOWS for e in (-tick, 0, tick)]                       # 300 s +- a tick: segments
    burst = [0] * 10 + [tick] * 4 + [SECOND - tick, SECOND, SECOND + tick, 2_500_000, 30 * SECOND, 150 * SECOND]
    far = [301 * SECOND, 600 * SECOND, 3600 * SECOND, 100_000 * SECOND]
    onto = [("onto", e * SECOND) for e in EDGES]
    before = [("before", e * SECOND) for e in EDGES]
    fixed = st.sampled_from([("by", d) for d in burst + near + far] + onto + before)
    return st.one_of(fixed, fixed, st.integers(0, 20 * SECOND // tick).map(lambda k: ("by", k * tick)))


def advance(clock: int, step: tuple[str, int], tick: int) -> int:
    "The next clock: never before this one."
    kind, d = step
    if kind == "by": return clock + d
    edge = (clock // d + 1) * d
    return edge if kind == "onto" else max(clock, edge - tick)


@st.composite
def clocks(draw, n: int, clock: str):
    "`n` non-decreasing clocks in microseconds; whole milliseconds if the clock is `timestamp`."
    tick = 1000 if clock == "timestamp" else 1
    at, out = draw(st.sampled_from(BASES)) // tick * tick, []
    for step in draw(st.lists(steps(tick), min_size=n, max_size=n)):
        out.append(at)
        at = advance(at, step, tick)
    return out


def times(at: int, lag_ms: int | None, clock: str) -> dict:
    "The time columns of a row whose chosen clock is `at`; `lag_ms` is the capture's lag, None for no `timestamp`."
    if clock == "timestamp": capture, timestamp = at + (lag_ms or 0) * 1000, at // 1000
    else: capture, timestamp = at, None if lag_ms is None else at // 1000 - lag_ms
    return {"collected_at": capture // 1000 + 5, "capture_ts": capture, "timestamp": timestamp,
            "exchange": STREAMS[0][0], "symbol": STREAMS[0][1]}


LAGS = st.sampled_from((0, 0, 1, 7, 40, 500, None))
PRICE0 = st.sampled_from((0.37, 100.0, 61_234.56))


def walk(price: float, move: float) -> float:
    "The next price, rounded like a tape's; a jump out of bounds is not taken."
    new = float(f"{price * move:.10g}")
    return new if LOW <= new <= HIGH else price


def trade_id(i: int, kind: str) -> str | None:
    "Unique ids, or none: rising (8, 9, 10: numbers are not text), falling, no number, empty, null."
    return {"up": str(8 + i), "down": str(5000 - i), "text": f"t{i}", "empty": "", "null": None}[kind]


TRADE = st.tuples(st.sampled_from(SIDES), st.one_of(st.sampled_from(AMOUNTS), st.floats(1e-6, 1e3)),
                  st.sampled_from(MOVES), LAGS, st.sampled_from(("up", "up", "up", "down", "text", "empty", "null")),
                  st.booleans())


def repeat(rows: list[dict], i: int, back: int, kind: str) -> None:
    "Make row i carry the trade id of the row `back` before it, as the same trade or (`other`) as a different one."
    source, row = rows[max(0, i - back)], rows[i]
    keys = ("trade_id",) if kind == "other" else ("trade_id", "timestamp", "side", "price", "amount", "cost")
    row.update({k: source[k] for k in keys})


def arrange(draw, rows, clock, tiebreak, shuffled):
    "The rows in order, or in none."
    rows = order(rows, clock, tiebreak)
    if shuffled: draw(st.randoms(use_true_random=False)).shuffle(rows)
    return rows


@st.composite
def trade_rows(draw, *, max_size=200, clock="capture_ts", repeats=False, shuffled=False):
    "Trades of one stream; ids are unique unless `repeats` (for `dedup_trades`, with `naive.day` as partition)."
    n = draw(sizes(max_size))
    price, rows = draw(PRICE0), []
    drawn = draw(st.lists(TRADE, min_size=n, max_size=n))
    for i, (at, (side, amount, move, lag, kind, cost)) in enumerate(zip(draw(clocks(n, clock)), drawn)):
        price = walk(price, move)
        rows.append(times(at, lag, clock) | {"trade_id": trade_id(i, kind), "side": side, "price": price,
                                             "amount": amount, "cost": price * amount if cost else None})
    if repeats and n > 1:
        where = st.tuples(st.integers(1, n - 1), st.integers(1, 3), st.sampled_from(("same", "same", "other")))
        for i, back, kind in draw(st.lists(where, max_size=20)): repeat(rows, i, back, kind)
    return arrange(draw, rows, clock, "trade_id", shuffled)


def prices(kind: str, mid: float) -> tuple[float | None, float | None]:
    "Bid and ask of a kind of quote about `mid`."
    bid, ask = float(f"{mid * 0.9999:.10g}"), float(f"{mid * 1.0001:.10g}")
    return {"ok": (bid, ask), "wide": (mid * 0.5, mid * 1.5), "locked": (mid, mid), "crossed": (ask, bid),
            "no_bid": (None, ask), "no_ask": (bid, None), "none": (None, None), "zero_bid": (0.0, ask),
            "zero_ask": (bid, 0.0)}[kind]


QUOTE = st.tuples(st.sampled_from(QUOTES), st.sampled_from(MOVES), LAGS, st.sampled_from(VOLUMES),
                  st.sampled_from(VOLUMES), st.booleans())
STATISTICS = ("last", "open", "high", "low", "close", "vwap", "base_volume", "quote_volume", "change", "percentage")


@st.composite
def ticker_rows(draw, *, max_size=200, clock="capture_ts", shuffled=False):
    "Tickers of one stream: locked, crossed, one-sided and empty quotes, zero and missing volumes."
    n = draw(sizes(max_size))
    mid, rows = draw(PRICE0), []
    drawn = draw(st.lists(QUOTE, min_size=n, max_size=n))
    for at, (kind, move, lag, bid_volume, ask_volume, full) in zip(draw(clocks(n, clock)), drawn):
        mid = walk(mid, move)
        bid, ask = prices(kind, mid)
        rows.append(times(at, lag, clock) | {"bid": bid, "ask": ask, "bid_volume": bid_volume, "ask_volume": ask_volume}
                    | dict.fromkeys(STATISTICS, mid if full else None))
    return arrange(draw, rows, clock, None, shuffled)


@st.composite
def multi_stream(draw, rows):
    "2..3 streams drawn from `rows` (a strategy such as `trade_rows()`), interleaved by `capture_ts`."
    chosen = STREAMS[:draw(st.integers(2, 3))]
    parts = [[r | {"exchange": e, "symbol": s} for r in draw(rows)] for e, s in chosen]
    return sorted((r for part in parts for r in part), key=lambda r: r["capture_ts"])
