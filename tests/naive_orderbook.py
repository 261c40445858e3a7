"""Slow, obvious twins of the order-book features and their time bars: the truth that the kernels must meet.

As in `naive`: formulas alone, lists of dicts, `math`; nothing of the package is imported. A book is a dict keyed like
bronze (`capture_ts` int microseconds, `timestamp` int milliseconds or None, `nonce` int or None) with `bids` and `asks`
as lists of (price, size), best first. What is undefined is None. Sums are `math.fsum`, moments are centred.
"""
import math
from bisect import bisect_left
from itertools import pairwise
from types import SimpleNamespace

from naive import SECOND, bar_common, bar_held, bar_members, clock_us, held, last_defined, log_ratio
from naive import ratio, segments, side_sign, tw_mean, window

DAY = 86_400 * SECOND
OK = ("ok", "locked")                                   # the states whose rows are observations
STATES = ("ok", "locked", "crossed", "one_sided", "empty", "unsorted")
ALWAYS = ("book_state", "n_bid_levels", "n_ask_levels", "segment_id", "segment_age_s")
SLOPE_WINDOW = 60                                       # seconds of the fixed `_60s` columns
AUTO_BUCKETS = 50                                       # buckets per day that `vpin_bucket_size: auto` aims at

# The parameters, with their defaults.
CONFIG = SimpleNamespace(
    categories=("structural", "dynamic", "rolling"), depth_levels=20, ofi_levels=10, ofi_decay_alpha=0.5,
    ofi_per_level=False, bands_bps=(5, 10, 25, 50, 100), imbalance_levels=(1, 3, 5, 10),
    cost_notionals=(1000, 10_000, 100_000), smart_depth_decay=100, rolling_windows=(5, 15, 60, 300, 900),
    bar_durations=(60, 300, 900, 3600), kyle_lambda_window=300, kyle_interval_s=1, enable_vpin=True,
    vpin_bucket_size=1.0, vpin_window_buckets=50, use_dynamic_spread_regime=True, spread_regime_window=300,
    spread_tight_percentile=0.2, spread_wide_percentile=0.8, spread_tight_threshold_bps=5,
    spread_wide_threshold_bps=20, max_gap_s=300, dedup_window_s=900, clock="capture_ts", output_dtype="float64",
    max_levels=5000, max_bad_fraction=0.001, bars=(), drop_raw_book_arrays=True, features=(),
    resample_frequency=None, resample_max_staleness=None, normalize_quotes=False, overrides={})


def config(**changes):
    "The defaults with `changes`."
    unknown = set(changes) - set(vars(CONFIG))
    if unknown: raise TypeError(f"unknown parameters: {sorted(unknown)}")
    return SimpleNamespace(**{**vars(CONFIG), **changes})


# ---- arithmetic

def label(x):
    "A window or notional as it stands in a column's name: 300, 0.5."
    return f"{int(x)}" if x == int(x) else f"{x}"


def defined(values):
    return [v for v in values if v is not None]


def total(values):
    "Sum of the defined values; None if there is none."
    values = defined(values)
    return math.fsum(values) if values else None


def mean(values):
    "Mean of the defined values; None if there is none."
    values = defined(values)
    if not values: return None
    if min(values) == max(values): return values[0]                     # exact, not but for the last digit
    return math.fsum(values) / len(values)


def std(values):
    "Standard deviation (ddof 1) of the defined values; None below 2."
    values = defined(values)
    if len(values) < 2: return None
    m = mean(values)
    return math.sqrt(math.fsum((v - m) ** 2 for v in values) / (len(values) - 1))


def both(function, a, b):
    "function(a, b), None if either is: 'a mean of two sides is null if either is'."
    return None if a is None or b is None else function(a, b)


def imbalance(b, a):
    "(b - a) / (b + a), None if both are 0."
    return ratio(b - a, b + a)


def ols(points):
    "(slope, r2, n) of y on x with intercept over [(x, y)]: both None if n < 3 or all x equal, r2 also if all y equal."
    n, xs, ys = len(points), [x for x, _ in points], [y for _, y in points]
    if n < 3 or min(xs) == max(xs): return None, None, n
    if min(ys) == max(ys): return 0.0, None, n
    mx, my = mean(xs), mean(ys)
    sxx, syy = math.fsum((x - mx) ** 2 for x in xs), math.fsum((y - my) ** 2 for y in ys)
    sxy = math.fsum((x - mx) * (y - my) for x, y in points)
    r2 = ratio(sxy / sxx * sxy, syy) if sxx else None
    return ratio(sxy, sxx), None if r2 is None else min(1.0, r2), n


# ---- duplicates and the state of a book (5, preamble)

def dedup_books(rows):
    "(kept, dropped) of one ordered stream: the same (`capture_ts`, `nonce`, levels) as a row before; nonce 0 is none."
    kept, dropped, seen = [], [], []
    for row in rows:
        key = (row["capture_ts"], row.get("nonce") or None, *([tuple(level) for level in row[side] or ()]
                                                              for side in ("bids", "asks")))
        (dropped if key in seen else kept).append(row)
        seen.append(key)
    return kept, dropped


def levels(side):
    "The levels of a side: 'levels with size 0 are dropped first'."
    return [(p, q) for p, q in side or () if q != 0]


def book_state(bids, asks):
    "Precedence: empty, one_sided, unsorted (equal prices on a side included), crossed, locked, ok."
    if not bids and not asks: return "empty"
    if not bids or not asks: return "one_sided"
    if any(p <= after for (p, _), (after, _) in pairwise(bids)): return "unsorted"
    if any(p >= after for (p, _), (after, _) in pairwise(asks)): return "unsorted"
    if bids[0][0] > asks[0][0]: return "crossed"
    return "locked" if bids[0][0] == asks[0][0] else "ok"


# ---- 5.1 columns of one side that need no mid

def size(side): return math.fsum(q for _, q in side)


def notional(side): return math.fsum(p * q for p, q in side)


def half_depth(sizes):
    "First level at which the cumulative size is at least half of the side's total."
    half = math.fsum(sizes) / 2
    return next(i for i in range(len(sizes)) if math.fsum(sizes[:i + 1]) >= half)


def entropy(sizes):
    "-sum w ln w / ln n, n >= 2."
    if len(sizes) < 2: return None
    shares = [q / math.fsum(sizes) for q in sizes]
    return -math.fsum(w * math.log(w) for w in shares if w > 0) / math.log(len(sizes))


def gini(sizes):
    "sum_i sum_j abs(Q_i - Q_j) / (2 n sum Q), n >= 2."
    if len(sizes) < 2: return None
    return math.fsum(abs(a - b) for a in sizes for b in sizes) / (2 * len(sizes) * math.fsum(sizes))


def side_columns(name, side, cfg):
    "Written on ok, locked, one_sided and crossed books; `name` is bid or ask. Sums are over the first depth_levels."
    out, top = {}, side[:cfg.depth_levels]
    for i in range(cfg.depth_levels):                                   # a missing level is null in price and size
        out[f"{name}_price_L{i}"], out[f"{name}_size_L{i}"] = side[i] if i < len(side) else (None, None)
    if not side: return out                                             # null if the side is empty
    sizes, five = [q for _, q in top], side[:5]
    wall = sizes.index(max(sizes))                                      # first if tied
    return out | {
        f"best_{name}": side[0][0], f"total_{name}_depth": size(top), f"vwap_{name}_5": notional(five) / size(five),
        f"{name}_slope_simple": abs(five[0][0] - five[4][0]) / size(five) if len(five) == 5 else None,
        f"{name}_depth_decay_5": five[4][1] / five[0][1] if len(five) == 5 else None,
        f"{name}_concentration": math.fsum((q / size(top)) ** 2 for q in sizes),
        f"{name}_entropy": entropy(sizes), f"{name}_gini": gini(sizes),
        f"{name}_50pct_depth_levels": half_depth(sizes),
        f"{name}_wall_level": wall, f"{name}_wall_share": sizes[wall] / size(top)}


# ---- 5.1 columns that need the mid

def distance(price, m):
    "d_i, bps, in the contract's floating order."
    return abs(price - m) / m * 1e4


def depth_within(side, m, low, high):
    "Size of all stored levels with low <= d_i < high."
    return math.fsum(q for p, q in side if low <= distance(p, m) < high)


def near(bids, asks, m, x):
    "Both sides' depth nearer than x bps."
    return math.fsum((depth_within(bids, m, 0, x), depth_within(asks, m, 0, x)))


def band_edges(cfg):
    "[(lo, hi)]: 'bands from bands_bps starting at 0'."
    return list(pairwise((0, *cfg.bands_bps)))


def band_name(low, high): return f"band_{low:g}_{high:g}bps"


def cost(side, n, m):
    "Walk all stored levels until sum P Q = n quote, the last in part; null if the depth sums to less than n(1 - 1e-9)."
    if notional(side) < n * (1 - 1e-9): return None
    left, taken = n, []
    for p, q in side:
        if p * q >= left:
            taken.append(left / p)
            break
        taken.append(q)
        left -= p * q
    return abs(n / math.fsum(taken) - m) / m * 1e4


def side_columns_of_mid(name, side, m, cfg):
    "Columns of one side that need the mid."
    top, ten, d = side[:cfg.depth_levels], side[:10], [distance(p, m) for p, _ in side]
    cumulative = [size(side[:i + 1]) for i in range(len(ten))]
    slope, _, _ = ols(list(zip(d, cumulative)))                         # ols is None below n = 3
    decay, _, _ = ols([(x, math.log(q)) for x, (_, q) in zip(d, ten)])
    k = cfg.smart_depth_decay
    return {
        f"smart_{name}_depth": math.fsum(q * math.exp(-k * abs(p - m) / m) for p, q in top),
        f"{name}_slope_regression": slope, f"{name}_exp_decay_rate": None if decay is None else 0.0 - decay,
        f"{name}_cog_bps": math.fsum(q * distance(p, m) for p, q in top) / size(top),
        **{f"{name}_vol_{band_name(lo, hi)}": depth_within(side, m, lo, hi) for lo, hi in band_edges(cfg)}}


def quote_columns(bids, asks):
    "Columns of the best levels."
    (pb, qb), (pa, qa) = bids[0], asks[0]
    m, s, micro = (pb + pa) / 2, pa - pb, (pb * qa + pa * qb) / (qb + qa)
    return {"mid_price": m, "spread": s, "relative_spread": s / m, "spread_bps": 1e4 * s / m, "microprice": micro,
            "micro_minus_mid": micro - m, "micro_minus_mid_bps": (micro - m) / m * 1e4}


def two_sided_columns(bids, asks, row, cfg):
    "Columns that compare or join the sides; `row` holds those of each side."
    m, s, tops = row["mid_price"], row["spread"], bids[:cfg.depth_levels] + asks[:cfg.depth_levels]
    cog, hi = notional(tops) / size(tops), cfg.bands_bps[-1]
    slopes = row["bid_slope_regression"], row["ask_slope_regression"]
    out = {
        "total_imbalance": imbalance(row["total_bid_depth"], row["total_ask_depth"]),
        "vwap_spread": row["vwap_ask_5"] - row["vwap_bid_5"],
        "smart_depth_imbalance": imbalance(row["smart_bid_depth"], row["smart_ask_depth"]),
        "slope_asymmetry": math.log(slopes[0] / slopes[1]) if all(x is not None and x > 0 for x in slopes) else None,
        "center_of_gravity": cog, "cog_vs_mid": (cog - m) / m * 1e4,
        "avg_depth_decay_5": both(lambda b, a: (b + a) / 2, row["bid_depth_decay_5"], row["ask_depth_decay_5"]),
        "band_truncated": any(distance(side[-1][0], m) < hi for side in (bids, asks)),
        "book_convexity": ratio(near(bids, asks, m, 5), near(bids, asks, m, 50)),
        "spread_to_depth_5bps": ratio(s, near(bids, asks, m, 5)),
        "spread_to_depth_10bps": ratio(s, near(bids, asks, m, 10))}
    for n in cfg.imbalance_levels: out[f"imbalance_L{n}"] = imbalance(size(bids[:n]), size(asks[:n]))
    for lo, hi in band_edges(cfg):
        band = band_name(lo, hi)
        out[f"imb_{band}"] = imbalance(row[f"bid_vol_{band}"], row[f"ask_vol_{band}"])
    for n in cfg.cost_notionals:
        out[f"cost_to_buy_{label(n)}_bps"] = cost(asks, n, m)
        out[f"cost_to_sell_{label(n)}_bps"] = cost(bids, n, m)
    return out


def structural(bids, asks, cfg):
    "All columns of one snapshot that its state allows."
    state = book_state(bids, asks)
    out = {"book_state": state, "n_bid_levels": len(bids), "n_ask_levels": len(asks)}
    if state in ("empty", "unsorted"): return out                       # state and counts only
    out |= side_columns("bid", bids, cfg) | side_columns("ask", asks, cfg)
    if state not in OK: return out                                      # the columns that need no mid
    out |= quote_columns(bids, asks)
    for name, side in (("bid", bids), ("ask", asks)): out |= side_columns_of_mid(name, side, out["mid_price"], cfg)
    return out | two_sided_columns(bids, asks, out, cfg)


# ---- 5.2 dynamic

def level(side, i, beyond):
    "Level i; a missing one counts as size 0 at a price beyond the deepest."
    return side[i] if i < len(side) else (beyond, 0.0)


def ofi_terms(now, before, i):
    "The four terms of e_i between two books (bids, asks)."
    (pb, qb), (pb0, qb0) = (level(book[0], i, -math.inf) for book in (now, before))
    (pa, qa), (pa0, qa0) = (level(book[1], i, math.inf) for book in (now, before))
    return [(pb >= pb0) * qb, -(pb <= pb0) * qb0, -(pa <= pa0) * qa, (pa >= pa0) * qa0]


def ofi_level(now, before, i):
    "e_i; None where neither book has the level on either side."
    if all(i >= len(side) for side in (*now, *before)): return None
    return math.fsum(ofi_terms(now, before, i))


def mlofi(now, before, cfg):
    "sum exp(-alpha i) e_i, i < ofi_levels."
    return total(None if e is None else math.exp(-cfg.ofi_decay_alpha * i) * e
                 for i, e in ((i, ofi_level(now, before, i)) for i in range(cfg.ofi_levels)))


def dynamic(out, books, clocks, n, cfg):
    "An ok or locked row against the last such row of the segment."
    row, p = out[n], previous(out, n)
    if p is None: return {}
    before, dt = out[p], (clocks[n] - clocks[p]) / SECOND
    per_level = range(cfg.ofi_levels if cfg.ofi_per_level else 0)
    v = ratio(row["mid_price"] - before["mid_price"], dt)               # None if dt = 0
    return {"log_return": log_ratio(row["mid_price"], before["mid_price"]),
            "ofi": ofi_level(books[n], books[p], 0), "mlofi": mlofi(books[n], books[p], cfg),
            **{f"ofi_L{i}": ofi_level(books[n], books[p], i) for i in per_level},
            "mid_velocity": v, "mid_accel": acceleration(out, clocks, p, v, dt)}


def previous(out, n):
    "Number of the last ok or locked row before n in its segment."
    rows = [i for i in range(n) if out[i]["segment_id"] == out[n]["segment_id"] and out[i]["book_state"] in OK]
    return rows[-1] if rows else None


def acceleration(out, clocks, p, v, dt):
    "(v_n - v_{n-1}) / ((dt_n + dt_{n-1}) / 2), None without both velocities."
    before = out[p].get("mid_velocity")
    if v is None or before is None: return None
    return (v - before) / ((dt + (clocks[p] - clocks[previous(out, p)]) / SECOND) / 2)


# ---- 5.3 rolling

def column(out, rows, name): return [out[i].get(name) for i in rows]


def observations(out, clocks, segs, n, w):
    "Rows of (t - W, t] in the segment, up to n, that are ok or locked."
    return [i for i in window(clocks, segs, n, w) if out[i]["book_state"] in OK]


def tw(out, clocks, segs, n, w, values):
    "tw mean over W of `values` (per row, None on rows that are no observation)."
    return tw_mean(held(values, clocks, segs, n, w), values[n])


def rolling(out, clocks, segs, n, cfg):
    "The windows over the book's own rows."
    row, spreads = {}, [r.get("relative_spread") for r in out]
    for w in cfg.rolling_windows:
        seen, s = observations(out, clocks, segs, n, w), label(w)
        r = defined(column(out, seen, "log_return"))
        row |= {f"ofi_sum_{s}s": total(column(out, seen, "ofi")), f"mlofi_sum_{s}s": total(column(out, seen, "mlofi")),
                f"rv_{s}s": math.sqrt(math.fsum(x * x for x in r)) if r else None,
                f"ret_std_{s}s": std(r), f"mean_return_{s}s": mean(r),
                f"mean_spread_{s}s": tw(out, clocks, segs, n, w, spreads)}
    seen = observations(out, clocks, segs, n, SLOPE_WINDOW)
    named = {"bid_slope": "bid_slope_regression", "ask_slope": "ask_slope_regression", "cog_vs_mid": "cog_vs_mid"}
    for name, source in named.items():
        row[f"{name}_mean_60s"], row[f"{name}_std_60s"] = (f(column(out, seen, source)) for f in (mean, std))
    seen = observations(out, clocks, segs, n, cfg.spread_regime_window)
    return row | {"depth_0_5bps_sigma": std(column(out, seen, "_near_5"))}


def trade_windows(trades, t, cfg):
    "The stream's trades with clock in (t - W, t], whatever the book's segments."
    row = {}
    for w in cfg.rolling_windows:
        seen = [x for x in trades if t - round(w * SECOND) < clock_us(x, cfg.clock) <= t]
        buy, sell = (math.fsum(x["amount"] for x in seen if side_sign(x) == s) for s in (1, -1))
        row |= {f"tfi_{label(w)}s": imbalance(buy, sell), f"trade_count_{label(w)}s": len(seen),
                f"trade_vol_{label(w)}s": math.fsum(x["amount"] for x in seen)}
    return row


# ---- 5.4 advanced: spread, lambdas

def rounded(s): return float(f"{s:.6g}")                                # 6 significant digits


def percentile(values):
    "Mid-rank of the last of `values` among them: (#below + #equal / 2) / n."
    own = values[-1]
    return (sum(v < own for v in values) + sum(v == own for v in values) / 2) / len(values)


def regime(rank, bps, cfg):
    "tight, normal or wide, by percentile or by fixed thresholds."
    value, tight, wide = (rank, cfg.spread_tight_percentile, cfg.spread_wide_percentile)
    if not cfg.use_dynamic_spread_regime:
        value, tight, wide = bps, cfg.spread_tight_threshold_bps, cfg.spread_wide_threshold_bps
    return "tight" if value <= tight else "wide" if value >= wide else "normal"


def spread_columns(out, clocks, segs, n, cfg):
    "Percentile and regime of the spread."
    seen = observations(out, clocks, segs, n, cfg.spread_regime_window)
    rank = percentile([rounded(s) for s in column(out, seen, "spread")])
    return {"spread_percentile": rank, "spread_regime": regime(rank, out[n]["spread_bps"], cfg)}


def regime_fractions(out, clocks, segs, n, cfg):
    "tw mean of the regime's indicator."
    named = [r.get("spread_regime") for r in out]
    return {f"spread_regime_{kind}_frac":
            tw(out, clocks, segs, n, cfg.spread_regime_window, [None if x is None else float(x == kind) for x in named])
            for kind in ("tight", "wide")}


def ofi_regression(out, clocks, segs, n, cfg):
    "OLS of log_return on ofi over the rows of the window where both are defined."
    seen = observations(out, clocks, segs, n, cfg.kyle_lambda_window)
    pairs = zip(column(out, seen, "ofi"), column(out, seen, "log_return"))
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    return dict(zip(("ofi_beta", "ofi_r2", "ofi_n"), ols(points)))


def signed_flow(trades, cfg):
    "{start of the interval: sum side_sign * amount}; an unknown side adds 0."
    step, parts = round(cfg.kyle_interval_s * SECOND), {}
    for x in trades:
        parts.setdefault(clock_us(x, cfg.clock) // step * step, []).append((side_sign(x) or 0) * x["amount"])
    return {start: math.fsum(v) for start, v in parts.items()}


def segment_mids(out, clocks, segs):
    "{segment: (clocks, mids)} of the rows with a mid."
    parts = {}
    for row, c, s in zip(out, clocks, segs):
        times, mids = parts.setdefault(s, ([], []))
        if row.get("mid_price") is not None: times.append(c); mids.append(row["mid_price"])
    return parts


def mid_before(mids, edge):
    "Last defined mid of the segment with clock < edge, or None."
    i = bisect_left(mids[0], edge)
    return mids[1][i - 1] if i else None


def kyle_points(flow, mids, t, cfg):
    "[(flow, return)] of the intervals [start, end) with t - window < end <= t of which both mids are in the segment."
    step, points = round(cfg.kyle_interval_s * SECOND), []
    for end in range(t // step * step, t - round(cfg.kyle_lambda_window * SECOND), -step):
        first, last = mid_before(mids, end - step), mid_before(mids, end)
        if first is None: break                                         # all earlier ones have no mid either
        points.append((flow.get(end - step, 0.0), log_ratio(last, first)))
    return points


def kyle(flow, mids, t, cfg):
    "OLS of return on flow."
    points = kyle_points(flow, mids, t, cfg)
    return dict(zip(("kyle_lambda", "kyle_lambda_r2", "kyle_lambda_n"), ols(points)))


# ---- 5.4 advanced: VPIN

def bucket_sizes(trades, cfg):
    """Per trade the size of a bucket that begins with it. `auto`: at the first trade of a UTC day it becomes a fiftieth
    of the volume of the last earlier day that had any; before, None."""
    if cfg.vpin_bucket_size != "auto": return [cfg.vpin_bucket_size] * len(trades)
    days, volume, out = [clock_us(x, cfg.clock) // DAY for x in trades], {}, []
    for d in days: volume[d] = math.fsum(x["amount"] for x, own in zip(trades, days) if own == d)
    for d in days:
        earlier = [volume[e] for e in sorted(volume) if e < d and volume[e] > 0]
        out.append(earlier[-1] / AUTO_BUCKETS if earlier else None)
    return out


def fill_buckets(trades, sizes):
    "(abs(V_buy - V_sell) / V of each complete bucket, how many are complete after each trade)."
    closed, counts, v = [], [], None
    for x, in_force in zip(trades, sizes):
        left, sign = x["amount"], side_sign(x)
        while left > 0 and in_force is not None:
            if v is None: v, fill, buy, sell = in_force, 0.0, 0.0, 0.0  # a bucket keeps the size it was begun with
            part = min(left, v - fill)                                  # a trade is split
            buy += part if sign == 1 else part / 2 if sign is None else 0.0
            sell += part if sign == -1 else part / 2 if sign is None else 0.0
            fill += part
            left -= part
            if v - fill <= 1e-12 * v:
                closed.append(abs(buy - sell) / v)
                v = None
        counts.append(len(closed))
    return closed, counts


def vpin_columns(trades, t, buckets, cfg):
    "State of the volume clock after all trades with clock <= t."
    sizes, closed, counts = buckets
    done = sum(clock_us(x, cfg.clock) <= t for x in trades)
    complete, k = counts[done - 1] if done else 0, cfg.vpin_window_buckets
    last = closed[complete - k:complete] if complete >= k else []
    fixed = None if cfg.vpin_bucket_size == "auto" else cfg.vpin_bucket_size
    return {"vpin": mean(last), "vpin_bucket_count": complete, "vpin_bucket_size": sizes[done - 1] if done else fixed}


# ---- the whole row

def columns(cfg=CONFIG):
    "Names of all columns of section 5 (`vpin_bucket_size` beside them), the bronze ones aside."
    sides, two = [], ["mid_price", "spread", "relative_spread", "spread_bps", "microprice", "micro_minus_mid",
                      "micro_minus_mid_bps", "total_imbalance", "vwap_spread", "smart_depth_imbalance",
                      "slope_asymmetry", "center_of_gravity", "cog_vs_mid", "avg_depth_decay_5", "band_truncated",
                      "book_convexity", "spread_to_depth_5bps", "spread_to_depth_10bps", "log_return", "ofi", "mlofi",
                      "mid_velocity", "mid_accel", "depth_0_5bps_sigma", "spread_percentile", "spread_regime",
                      "spread_regime_tight_frac", "spread_regime_wide_frac", "ofi_beta", "ofi_r2", "ofi_n",
                      "kyle_lambda", "kyle_lambda_r2", "kyle_lambda_n", "vpin", "vpin_bucket_count",
                      "vpin_bucket_size"]
    for x in ("bid", "ask"):
        sides += [f"{x}_{kind}_L{i}" for i in range(cfg.depth_levels) for kind in ("price", "size")]
        sides += [f"best_{x}", f"total_{x}_depth", f"vwap_{x}_5", f"smart_{x}_depth"]
        sides += [f"{x}_{name}" for name in (
            "slope_simple", "slope_regression", "cog_bps", "depth_decay_5", "concentration", "entropy", "gini",
            "50pct_depth_levels", "wall_level", "wall_share", "exp_decay_rate")]
        sides += [f"{x}_vol_{band_name(*edges)}" for edges in band_edges(cfg)]
    two += [f"imb_{band_name(*edges)}" for edges in band_edges(cfg)]
    two += [f"imbalance_L{n}" for n in cfg.imbalance_levels]
    two += [f"cost_to_{way}_{label(n)}_bps" for n in cfg.cost_notionals for way in ("buy", "sell")]
    two += [f"ofi_L{i}" for i in range(cfg.ofi_levels if cfg.ofi_per_level else 0)]
    two += [f"{name}_{label(w)}s" for w in cfg.rolling_windows for name in (
        "ofi_sum", "mlofi_sum", "rv", "ret_std", "mean_return", "mean_spread", "tfi", "trade_vol", "trade_count")]
    two += [f"{x}_{f}_60s" for x in ("bid_slope", "ask_slope", "cog_vs_mid") for f in ("mean", "std")]
    return [*ALWAYS, *sides, *two]


def first_pass(books, clocks, segs, cfg):
    "Columns of each snapshot, `_near_5` (the depth within 5 bps, not written) among them."
    out = []
    for (bids, asks), c, s in zip(books, clocks, segs):
        row = structural(bids, asks, cfg) | {"segment_id": s, "segment_age_s": (c - s) / SECOND}
        if row["book_state"] in OK: row["_near_5"] = near(bids, asks, row["mid_price"], 5)
        out.append(row)
    return out


def of_trades(out, clocks, segs, trades, cfg):
    "Adds the columns that need the trades to the ok and locked rows."
    flow, mids = signed_flow(trades, cfg), segment_mids(out, clocks, segs)
    sizes = bucket_sizes(trades, cfg) if cfg.enable_vpin else []
    buckets = (sizes, *fill_buckets(trades, sizes)) if cfg.enable_vpin else None
    for n, row in enumerate(out):
        if row["book_state"] not in OK: continue
        row |= trade_windows(trades, clocks[n], cfg) | kyle(flow, mids[segs[n]], clocks[n], cfg)
        if cfg.enable_vpin: row |= vpin_columns(trades, clocks[n], buckets, cfg)


def orderbook(rows, trades=None, cfg=CONFIG):
    """Silver rows of one stream of books, ordered and without duplicates; `trades` are its trades likewise, None if no
    trades input was given. `cfg` is anything with the parameters as attributes, or a dict of those that differ."""
    if isinstance(cfg, dict): cfg = config(**cfg)
    clocks, books = [clock_us(r, cfg.clock) for r in rows], [(levels(r["bids"]), levels(r["asks"])) for r in rows]
    segs = segments(clocks, cfg.max_gap_s)
    out = first_pass(books, clocks, segs, cfg)
    seen = [n for n, row in enumerate(out) if row["book_state"] in OK]  # on all other rows the rest is null
    for n in seen: out[n] |= dynamic(out, books, clocks, n, cfg)
    for step in (rolling, spread_columns, regime_fractions, ofi_regression):
        for n in seen: out[n] |= step(out, clocks, segs, n, cfg)
    if trades is not None: of_trades(out, clocks, segs, trades, cfg)
    bronze = [{k: v for k, v in r.items() if k not in ("bids", "asks")} for r in rows]
    return [b | {k: row.get(k) for k in columns(cfg)} for b, row in zip(bronze, out)]


# ---- time bars, gold (6)

BAR_MEANS = {"mean_spread": "spread", "mean_relative_spread": "relative_spread", "mean_microprice": "microprice",
             "mean_micro_minus_mid": "micro_minus_mid", "mean_l1_imbalance": "imbalance_L1",
             "mean_total_imbalance": "total_imbalance", "mean_bid_depth": "total_bid_depth",
             "mean_ask_depth": "total_ask_depth", "mean_smart_depth_imbalance": "smart_depth_imbalance"}


def mid_returns(silver_rows, segs):
    "ln(m_n / m_{n-1}) per row, m_{n-1} the last defined mid before in the segment."
    out = []
    for n, row in enumerate(silver_rows):
        before = last_defined([silver_rows[i]["mid_price"] for i in range(n) if segs[i] == segs[n]])
        out.append(log_ratio(row["mid_price"], before))
    return out


def orderbook_bars(silver_rows, width_s, max_gap_s=300, clock="capture_ts"):
    "Time bars of the silver rows of one stream of books; each mean leaves out the time of that column's null rows."
    clocks, out = [clock_us(r, clock) for r in silver_rows], []
    segs = segments(clocks, max_gap_s)
    silver = [row | {"segment_id": s, "log_return": r}
              for row, s, r in zip(silver_rows, segs, mid_returns(silver_rows, segs))]
    for start, members in bar_members(clocks, width_s).items():
        own, bar = [silver[i] for i in members], (start, start + round(width_s * SECOND))
        row = {"snapshot_count": len(own)}
        for name, source in BAR_MEANS.items():
            pairs = bar_held(silver, clocks, members, source, bar, max_gap_s)
            row[name] = tw_mean(pairs, last_defined([r[source] for r in own]))
        row |= {f"sum_{name}": total(r[name] for r in own) for name in ("ofi", "mlofi")}
        out.append(bar_common(own, start, width_s, clocks[-1], "mid_price") | row)
    return out
