"""Slow, obvious twins of the trade and ticker features and their time bars: the truth that the kernels must meet.

Written from the formulas alone with lists of dicts and `math`; nothing of the package is imported. A record is a dict
keyed like bronze, `capture_ts` an int of epoch microseconds, `timestamp` an int of epoch milliseconds or None. What is
undefined is None. Trades hold price > 0 and amount >= 0 (others are quarantined before); sums are `math.fsum`.
"""
import math
from datetime import UTC, datetime, timedelta

SECOND = 1_000_000                       # clock ticks (microseconds) per second
WINDOWS = (5, 15, 60, 300, 900)          # seconds
YEAR_S = 31_536_000                      # 365 days, as annualized_vol has it
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SIGN = {"buy": 1, "sell": -1}


# ---- conventions: clock, order, duplicates, streams, segments, windows

def clock_us(row, clock="capture_ts"):
    "The row's clock, epoch microseconds; `timestamp` is kept in milliseconds."
    return row["timestamp"] * 1000 if clock == "timestamp" else row[clock]


def null_first(value):
    "Sort key with None before every number."
    return (0, 0) if value is None else (1, value)


def sequence(row, tiebreak):
    "Sort key of nonce or trade id: what is null, nonce 0 or no number comes first, in input order."
    value = row.get(tiebreak) if tiebreak else None
    if tiebreak == "nonce": return null_first(value or None)
    text = "" if value is None else str(value)
    return null_first(int(text) if text.isascii() and text.isdigit() else None)


def order(rows, clock="capture_ts", tiebreak="trade_id"):
    "Rows of one stream by (clock, timestamp, nonce or numeric trade id, input order); ticker: `tiebreak=None`."
    return sorted(rows, key=lambda r: (clock_us(r, clock), null_first(r.get("timestamp")), sequence(r, tiebreak)))


def content(row):
    "What must agree for a repeated trade id to be the same trade."
    return tuple(row.get(k) for k in ("timestamp", "side", "price", "amount"))


def repeated(row, earlier, window_us, partition, clock):
    "Is one of `earlier` (rows with the id of `row`) in its partition or in the window (t - W, t]?"
    return any(partition(e) == partition(row) or clock_us(e, clock) > clock_us(row, clock) - window_us for e in earlier)


def dedup_trades(rows, window_s=900, partition=lambda row: row.get("partition"), clock="capture_ts"):
    "(kept, dropped, conflicting) of one ordered stream; an earlier row counts as seen whether it was kept or not."
    kept, dropped, conflicting, seen, first = [], [], [], {}, {}
    for row in rows:
        key = row.get("trade_id")
        if key in (None, ""):
            kept.append(row)
            continue
        if not repeated(row, seen.get(key, []), round(window_s * SECOND), partition, clock):
            kept.append(row)
            first[key] = row
        elif content(row) == content(first[key]): dropped.append(row)
        else: conflicting.append(row)
        seen.setdefault(key, []).append(row)
    return kept, dropped, conflicting


def streams(rows):
    "{(exchange, symbol): its rows}, in the order given."
    out = {}
    for row in rows: out.setdefault((row["exchange"], row["symbol"]), []).append(row)
    return out


def day(row):
    "A partition function for `dedup_trades`: the UTC day of `capture_ts`."
    return (EPOCH + timedelta(microseconds=row["capture_ts"])).date()


def segments(clocks, max_gap_s=300):
    "Per row the clock of its segment's first row; a jump of more than `max_gap_s` begins a new one."
    out = []
    for n, c in enumerate(clocks):
        new = n == 0 or c - clocks[n - 1] > round(max_gap_s * SECOND)
        out.append(c if new else out[-1])
    return out


def window(clocks, segs, n, window_s):
    "Rows of (t - W, t], t the clock of row n, that lie in its segment and not after it."
    left = clocks[n] - round(window_s * SECOND)
    return [i for i in range(n + 1) if segs[i] == segs[n] and clocks[i] > left]


def calendar(c):
    "UTC hour, ISO weekday and weekend of a clock."
    when = EPOCH + timedelta(microseconds=c)
    return {"hour": when.hour, "day_of_week": when.isoweekday(), "is_weekend": when.isoweekday() >= 6}


def ratio(a, b):
    "a / b; None if b is 0 or one of them None."
    return None if a is None or b is None or b == 0 else a / b


def log_ratio(a, b):
    "ln(a / b); None if one of them is None."
    return None if a is None or b is None else math.log(a / b)


def sum_of_squares(values):
    "Sum of the squares of the defined values; None if there is none."
    defined = [v for v in values if v is not None]
    return math.fsum(v * v for v in defined) if defined else None


# ---- trades, silver

def side_sign(row):
    "+1 taker buy, -1 taker sell in any case, None for all else."
    return SIGN.get((row.get("side") or "").lower())


def trade_sums(rows):
    "Volumes, counts and ratios over trades that carry `side_sign`: what windows and bars share."
    volume, dollars = math.fsum(r["amount"] for r in rows), math.fsum(r["price"] * r["amount"] for r in rows)
    buys, sells = ([r["amount"] for r in rows if r["side_sign"] == s] for s in (1, -1))
    buy, sell = math.fsum(buys), math.fsum(sells)
    return {"volume": volume, "dollar_volume": dollars, "trade_count": len(rows), "buy_volume": buy,
            "sell_volume": sell, "vwap": ratio(dollars, volume), "imbalance": ratio(buy - sell, buy + sell),
            "buy_ratio": ratio(len(buys), len(buys) + len(sells))}


def trade_row(rows, clocks, segs, n):
    "The columns of one trade and of it and the one before."
    row, c = rows[n], clocks[n]
    sign, same = side_sign(row), n > 0 and segs[n - 1] == segs[n]
    return {**row, "segment_id": segs[n], "segment_age_s": (c - segs[n]) / SECOND,
            "is_buy": None if sign is None else int(sign > 0), "side_sign": sign,
            "dollar_volume": row["price"] * row["amount"],
            "signed_volume": None if sign is None else sign * row["amount"],
            "log_return": log_ratio(row["price"], rows[n - 1]["price"]) if same else None,
            "dt_s": (c - clocks[n - 1]) / SECOND if same else None, **calendar(c)}


def trades(rows, windows=WINDOWS, max_gap_s=300, clock="capture_ts"):
    "Silver rows of one stream of trades, ordered and without duplicates."
    clocks = [clock_us(r, clock) for r in rows]
    segs = segments(clocks, max_gap_s)
    out = [trade_row(rows, clocks, segs, n) for n in range(len(rows))]
    for n, row in enumerate(out):
        for w in windows:
            seen = [out[i] for i in window(clocks, segs, n, w)]
            sums = trade_sums(seen)
            row |= {f"{k}_{w}s": sums[k] for k in ("vwap", "volume", "dollar_volume", "trade_count", "buy_ratio")}
            row[f"tfi_{w}s"] = sums["imbalance"]
            row[f"realized_var_{w}s"] = sum_of_squares(r["log_return"] for r in seen)
    return out


# ---- ticker, silver

def quote(row):
    "The columns of one quote: those of the prices need a valid mid, the volumes' imbalance the volumes alone."
    bid, ask, bv, av = (row.get(k) for k in ("bid", "ask", "bid_volume", "ask_volume"))
    valid = bid is not None and ask is not None and bid > 0 and ask > 0 and bid <= ask
    sized = bv is not None and av is not None and bv + av != 0
    mid, spread = ((bid + ask) / 2, ask - bid) if valid else (None, None)
    return {"mid_price": mid, "spread": spread, "relative_spread": ratio(spread, mid),
            "spread_bps": 10_000 * spread / mid if valid else None,
            "microprice": (bid * av + ask * bv) / (bv + av) if valid and sized else None,
            "volume_imbalance": (bv - av) / (bv + av) if sized else None}


def last_defined(values):
    "The last value that is not None, or None."
    return next((v for v in reversed(values) if v is not None), None)


def held(values, clocks, segs, n, window_s):
    "[(microseconds, value)] over which the rows before n held, in [max(c_n - W, segment start), c_n], nulls left out."
    left, out = max(clocks[n] - round(window_s * SECOND), segs[n]), []
    for i in range(n):
        if segs[i] != segs[n] or values[i] is None: continue
        since, until = max(clocks[i], left), min(clocks[i + 1], clocks[n])
        if until > since: out.append((until - since, values[i]))
    return out


def tw_mean(pairs, otherwise):
    "Mean of [(weight, value)]; `otherwise` where no time is left."
    if not pairs: return otherwise
    if len({x for _, x in pairs}) == 1: return pairs[0][1]              # exact, not but for the last digit
    return math.fsum(w * x for w, x in pairs) / sum(w for w, _ in pairs)


def tw_std(pairs):
    "Standard deviation of [(weight, value)]; None where no time is left."
    if not pairs: return None
    mean = tw_mean(pairs, None)
    return math.sqrt(math.fsum(w * (x - mean) ** 2 for w, x in pairs) / sum(w for w, _ in pairs))


def ticker_row(rows, quotes, clocks, segs, n):
    "The columns of one quote and of it and the last defined mid before it in the segment."
    before = [quotes[i]["mid_price"] for i in range(n) if segs[i] == segs[n]]
    return {**rows[n], "segment_id": segs[n], "segment_age_s": (clocks[n] - segs[n]) / SECOND, **quotes[n],
            "log_return": log_ratio(quotes[n]["mid_price"], last_defined(before)), **calendar(clocks[n])}


def ticker(rows, windows=WINDOWS, max_gap_s=300, clock="capture_ts"):
    "Silver rows of one ordered stream of tickers."
    clocks, quotes = [clock_us(r, clock) for r in rows], [quote(r) for r in rows]
    segs = segments(clocks, max_gap_s)
    out = [ticker_row(rows, quotes, clocks, segs, n) for n in range(len(rows))]
    columns = {k: [r[k] for r in out] for k in ("mid_price", "spread", "volume_imbalance")}
    named = {"mid_price": "mid_price_mean", "spread": "spread_mean", "volume_imbalance": "vol_imbalance_mean"}
    for n, row in enumerate(out):
        for w in windows:
            spans = {k: held(v, clocks, segs, n, w) for k, v in columns.items()}
            for k, name in named.items(): row[f"{name}_{w}s"] = tw_mean(spans[k], row[k])
            row[f"mid_price_std_{w}s"] = tw_std(spans["mid_price"])
    return out


# ---- time bars, gold

def bar_members(clocks, duration_s):
    "{bar_start: its row numbers} of the bars [k D, (k+1) D) that hold a row."
    out, d = {}, round(duration_s * SECOND)
    for n, c in enumerate(clocks): out.setdefault(c // d * d, []).append(n)
    return out


def ohlc(prices):
    "Open, high, low, close and the moves of the defined prices of a bar; all None without any."
    names = ("open", "high", "low", "close", "return", "log_return", "range")
    if not prices: return dict.fromkeys(names)
    o, h, l, c = prices[0], max(prices), min(prices), prices[-1]
    return dict(zip(names, (o, h, l, c, (c - o) / o, math.log(c / o), (h - l) / o)))


def bar_common(silver, start, duration_s, last_clock, price):
    "What bars of both channels have; `silver` are the bar's rows, `last_clock` how far the stream has been seen."
    end = start + round(duration_s * SECOND)
    rv = sum_of_squares(r["log_return"] for r in silver)
    return {"exchange": silver[0].get("exchange"), "symbol": silver[0].get("symbol"), "bar_start": start,
            "bar_end": end, "available_at": end, "is_complete": last_clock >= end, "n_obs": len(silver),
            "bar_duration_sec": duration_s, **ohlc([r[price] for r in silver if r[price] is not None]),
            "realized_variance": rv, "realized_vol": None if rv is None else math.sqrt(rv),
            "annualized_vol": None if rv is None else math.sqrt(rv * YEAR_S / duration_s)}


def trade_bars(rows, duration_s, max_gap_s=300, clock="capture_ts"):
    "Time bars of one stream of trades, ordered and without duplicates."
    silver, clocks = trades(rows, (), max_gap_s, clock), [clock_us(r, clock) for r in rows]
    out = []
    for start, members in bar_members(clocks, duration_s).items():
        own = [silver[i] for i in members]
        sums = trade_sums(own)
        sums["trade_imbalance"] = sums.pop("imbalance")
        out.append({**bar_common(own, start, duration_s, clocks[-1], "price"), **sums})
    return out


def bar_held(silver, clocks, members, column, bar, max_gap_s):
    """[(microseconds, value)] of a bar [start, end): the row before it if of one segment with the bar's first row, then
    its own rows, each until the next row, the bar's end or its clock + max_gap_s; nulls left out."""
    (start, end), first, out = bar, members[0], []
    carried = first > 0 and silver[first - 1]["segment_id"] == silver[first]["segment_id"]
    for i in [first - 1] * carried + members:
        following = clocks[i + 1] if i + 1 < len(clocks) else end
        since, until = max(clocks[i], start), min(following, end, clocks[i] + round(max_gap_s * SECOND))
        if silver[i][column] is not None and until > since: out.append((until - since, silver[i][column]))
    return out


def ticker_bars(rows, duration_s, max_gap_s=300, clock="capture_ts"):
    "Time bars of one ordered stream of tickers."
    silver, clocks = ticker(rows, (), max_gap_s, clock), [clock_us(r, clock) for r in rows]
    out = []
    for start, members in bar_members(clocks, duration_s).items():
        own, row = [silver[i] for i in members], {}
        for column in ("spread", "relative_spread"):
            pairs = bar_held(silver, clocks, members, column, (start, start + round(duration_s * SECOND)), max_gap_s)
            row[f"mean_{column}"] = tw_mean(pairs, last_defined([r[column] for r in own]))
        spreads = [r["spread"] for r in own if r["spread"] is not None]
        row |= {"min_spread": min(spreads, default=None), "max_spread": max(spreads, default=None)}
        row["tick_count"] = len(own)
        out.append({**bar_common(own, start, duration_s, clocks[-1], "mid_price"), **row})
    return out
