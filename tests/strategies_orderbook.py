"""Hypothesis strategies: bronze rows of order books, alone or beside the trades of their period, in every state.

Rows are dicts as `naive_orderbook` has them. Prices lie on a grid of ticks and mostly stay, so that order flow meets
ties; levels are drawn as patterns that repeat, so that a deep book costs no more to draw than a shallow one.
"""
import random

import strategies
from hypothesis import strategies as st
from naive import order
from naive_orderbook import dedup_books
from strategies import LAGS, SECOND, SIDES, arrange, clocks, sizes, trade_id, walk

# (tick, first mid in ticks): of 1 bp, of 1 bp in cents, of 0.08 bp, of 0.03 bp, of 250 bps.
GRIDS = ((1.0, 10_000), (0.01, 10_000), (0.5, 122_469), (1e-6, 370_000), (0.25, 40))
LOW_TICKS, HIGH_TICKS = 4, 10**8                                # a jump beyond is not taken
KINDS = (*("ok",) * 12, "locked", "crossed", "no_bids", "no_asks", "empty", "unsorted_bids", "unsorted_asks",
         "equal_bids", "equal_asks", "zero_best", "zeros", "zero_bids", "zero_all", "zero_out_of_place")
TICKS = (*(0,) * 8, 1, 1, -1, -1, 2, -5, 100, -100)             # moves of the mid in ticks
JUMPS = (0.001, 0.5, 2, 1000)                                   # and as factors
HALVES = (1, 1, 1, 2, 5, 40)                                    # half of the spread, ticks
GAPS = ((1,), (1,), (1, 2), (2, 1, 5), (50,), (1, 300), (7, 1, 31))     # ticks from level to level, repeating
COUNTS = (1, 2, 3, 4, 5, 6, 9, 10, 11, 19, 20, 21, 25, 30)
DEEP = (100, 300)
SIZES = (1.0, 1.0, 1.0, 0.1, 0.3, 2.5, 7.0, 1e-8, 0.001, 1e6, 1e9)
DYADIC = (1.0, 1.0, 0.5, 0.25, 2.0, 2.5, 7.0, 1024.0)           # sums of these are exact in any order
AMOUNTS = (0.0, 1e-8, 0.001, 0.1, 0.3, 1.0, 1.0, 2.5, 60.0)
DYADIC_AMOUNTS = (0.0, 0.125, 0.5, 1.0, 1.0, 2.5, 64.0)


def price(ticks: int, tick: float) -> float:
    "A price of the grid as a venue prints it."
    return float(f"{ticks * tick:.12g}")


def ladder(best: int, direction: int, gaps, pattern, n: int, turn: int, tick: float) -> list[tuple[float, float]]:
    "Up to n levels from `best` outward (bids: direction -1, to the last price above 0); sizes begin at `turn`."
    out, at = [], best
    while len(out) < n and at > 0:
        out.append((price(at, tick), pattern[(len(out) + turn) % len(pattern)]))
        at += direction * gaps[(len(out) + turn) % len(gaps)]
    return out


def swapped(side):
    "The first two levels in the wrong order; a side of one level as it is."
    return [side[1], side[0], *side[2:]] if len(side) > 1 else side


def doubled(side):
    "The deepest price twice."
    return [*side, side[-1]]


def zeroed(side, every: int):
    "The first level and each `every`-th from it with size 0."
    return [(p, 0.0 if i % every == 0 else q) for i, (p, q) in enumerate(side)]


def disturbed(kind: str, bids, asks):
    "The book of a kind, made from a good one."
    return {"no_bids": lambda: ([], asks), "no_asks": lambda: (bids, []), "empty": lambda: ([], []),
            "unsorted_bids": lambda: (swapped(bids), asks), "unsorted_asks": lambda: (bids, swapped(asks)),
            "equal_bids": lambda: (doubled(bids), asks), "equal_asks": lambda: (bids, doubled(asks)),
            "zero_best": lambda: ([(bids[0][0], 0.0), *bids[1:]], asks), "zeros": lambda: (bids, zeroed(asks, 3)),
            "zero_bids": lambda: (zeroed(bids, 1), asks), "zero_all": lambda: (zeroed(bids, 1), zeroed(asks, 1)),
            "zero_out_of_place": lambda: ([*bids, (bids[0][0] * 2, 0.0)], [*asks, (asks[0][0], 0.0)]),
            }.get(kind, lambda: (bids, asks))()


def book(kind, mid, tick, half, counts, gaps, pattern, turn):
    "Bids and asks of a kind about a mid (in ticks)."
    half = min({"locked": 0, "crossed": -half}.get(kind, half), mid - 1)
    bids = ladder(mid - half, -1, gaps, pattern, counts[0], turn, tick)
    asks = ladder(mid + half, 1, gaps, pattern[::-1], counts[1], turn, tick)
    return disturbed(kind, bids, asks)


def moved(mid: int, move) -> int:
    "The next mid in ticks: an int is added, a factor taken; a jump out of bounds is not taken."
    kind, x = move
    new = mid + x if kind == "by" else round(mid * x)
    return new if LOW_TICKS <= new <= HIGH_TICKS else mid


def nonce(i: int, kind: str) -> int | None:
    "Rising, falling, 0 (none) or null."
    return {"up": 8 + i, "down": 5000 - i, "zero": 0, "null": None}[kind]


def moves():
    "How the mid goes on; rarely by a jump."
    return st.sampled_from([("by", x) for x in TICKS] * 3 + [("times", x) for x in JUMPS])


def counts(max_levels: int):
    "Number of levels of a side; sometimes hundreds where `max_levels` is at least 30, the default."
    usual = [n for n in COUNTS if n <= max_levels] or [1]
    return st.sampled_from(usual if max_levels < 30 else usual * 3 + list(DEEP))


def shapes(max_levels: int, exact: bool):
    "What makes up one book: kind, move, half of the spread, levels, gaps, sizes, their turn, lag, nonce."
    values = DYADIC if exact else SIZES
    size = st.sampled_from(values) if exact else st.one_of(st.sampled_from(values), st.floats(1e-6, 1e3))
    pattern = st.one_of(st.just((1.0,)), st.just((2.0, 1.0, 3.0)), st.lists(size, min_size=1, max_size=7).map(tuple))
    n = counts(max_levels)
    same = n.map(lambda k: (k, k))
    return st.tuples(st.sampled_from(KINDS), moves(), st.sampled_from(HALVES), st.one_of(same, st.tuples(n, n)),
                     st.sampled_from(GAPS), pattern, st.integers(0, 3), LAGS,
                     st.sampled_from(("up", "up", "up", "down", "zero", "null")))


def books_at(draw, at: list[int], clock: str, max_levels: int, exact: bool) -> list[dict]:
    "A book at each of the clocks; from one to the next half of them keep their gaps and number of levels."
    tick, mid = draw(st.sampled_from(GRIDS))
    drawn = draw(st.lists(st.tuples(shapes(max_levels, exact), st.booleans()), min_size=len(at), max_size=len(at)))
    rows, before = [], None
    for i, (c, ((kind, move, half, n, gaps, pattern, turn, lag, number), keep)) in enumerate(zip(at, drawn)):
        mid = moved(mid, move)
        if keep and before: half, n, gaps = before
        before = half, n, gaps
        bids, asks = book(kind, mid, tick, half, n, gaps, pattern, turn)
        rows.append(strategies.times(c, lag, clock) | {"nonce": nonce(i, number), "bids": bids, "asks": asks})
    return rows


@st.composite
def book_rows(draw, max_size=60, clock="capture_ts", max_levels=30, *, repeats=False, shuffled=False, exact=False):
    """Books of one stream. No two are duplicates unless `repeats` (for `dedup_books`); `exact` draws sizes whose sums
    are exact in any order, so that no digit hangs on the order of summation."""
    n = draw(sizes(max_size))
    rows = books_at(draw, draw(clocks(n, clock)), clock, max_levels, exact)
    if repeats and n:
        copied = [dict(rows[i]) for i in draw(st.lists(st.integers(0, n - 1), max_size=10))]
        return arrange(draw, rows + copied, clock, "nonce", shuffled)
    return arrange(draw, dedup_books(order(rows, clock, "nonce"))[0], clock, "nonce", shuffled)


def trades_at(draw, at: list[int], clock: str, exact: bool) -> list[dict]:
    "A trade at each of the clocks, none above 64 base units, so that few buckets of VPIN are filled at once."
    some = st.sampled_from(DYADIC_AMOUNTS if exact else AMOUNTS)
    amount = some if exact else st.one_of(some, st.floats(1e-6, 20))
    drawn = draw(st.lists(st.tuples(st.sampled_from(SIDES), amount, st.sampled_from((1.0, 1.0, 1.0001, 0.9999, 0.5)),
                                    LAGS), min_size=len(at), max_size=len(at)))
    rows, p = [], draw(strategies.PRICE0)
    for i, (c, (side, amount, move, lag)) in enumerate(zip(at, drawn)):
        p = walk(p, move)
        rows.append(strategies.times(c, lag, clock) | {"trade_id": trade_id(i, "up"), "side": side, "price": p,
                                                       "amount": amount, "cost": None})
    return rows


@st.composite
def books_and_trades(draw, max_size=60, clock="capture_ts", max_levels=30, *, exact=False):
    "(books, trades) of one stream and period, both in order: each clock holds a book, a trade, or several of them."
    n = draw(sizes(max_size))
    kinds = st.sampled_from(("book", "book", "trade", "both", "both", "trades"))
    at = list(zip(draw(clocks(n, clock)), draw(st.lists(kinds, min_size=n, max_size=n))))
    of_books = [c for c, kind in at if kind in ("book", "both")]
    of_trades = [c for c, kind in at for _ in range({"trade": 1, "both": 1, "trades": 3}.get(kind, 0))]
    books = order(books_at(draw, of_books, clock, max_levels, exact), clock, "nonce")
    trades = order(trades_at(draw, of_trades, clock, exact), clock, "trade_id")
    return dedup_books(books)[0], trades


# ---- the same every time, without hypothesis

def fixed_books(times, seed):
    "A book of 25 levels a side at each clock (microseconds), one in twenty of another kind, by `random.Random(seed)`."
    rng, mid, rows = random.Random(seed), 10_000, []
    for i, c in enumerate(times):
        mid = max(5000, mid + rng.choice((0, 0, 0, 1, -1, 2, -2)))
        kind = rng.choice(KINDS) if rng.random() < 0.05 else "ok"
        pattern = [round(rng.lognormvariate(3.5, 1), 4) + 0.0001 for _ in range(25)]
        half, turn = rng.choice((1, 1, 1, 2, 3)), rng.randrange(3)
        bids, asks = book(kind, mid, 0.01, half, (25, 25), (1, 1, 2, 8), pattern, turn)
        rows.append(strategies.times(c, rng.choice((0, 3, 20)), "capture_ts") | {"nonce": i + 1, "bids": bids,
                                                                               "asks": asks})
    return order(rows, tiebreak="nonce")


def fixed_trades(times, seed):
    "A trade at each clock (microseconds), one in fifty of an unknown side, by `random.Random(seed)`."
    rng, p, rows = random.Random(seed), 100.0, []
    for i, c in enumerate(times):
        p = round(max(50.0, p + rng.choice((0, 0, 0.01, -0.01))), 2)
        side, amount = rng.choice(("buy", "sell")) if rng.random() > 0.02 else "", round(rng.expovariate(3), 4) + 0.0001
        rows.append(strategies.times(c, rng.choice((0, 3, 20)), "capture_ts") | {
            "trade_id": str(i + 1), "side": side, "price": p, "amount": amount, "cost": p * amount})
    return order(rows)


def fixed_clocks(n, step_s=1.0, start=strategies.THURSDAY):
    "n clocks, a step apart."
    return [start + round(i * step_s * SECOND) for i in range(n)]
