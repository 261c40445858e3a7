"""Order book kernels alone, the same features row by row in Python, and the live path."""
from __future__ import annotations

import statistics
import time
from collections import deque
from math import exp, log, sqrt

from benchmarks import inputs
from benchmarks.cases.silver import ALL, settings
from benchmarks.harness import OURS, Case, Env, Side

BATCH = 65_536
SNAPSHOTS, LIVE = 200_000, 20_000
STATEFUL = dict(categories=("dynamic", "rolling", "advanced"))


def books(depth: int):
    def make(env: Env): return inputs.books(env.data, env.rows, depth)
    return make


def arrays(env: Env, depth: int):
    "Batches of (clocks, bids, asks), and the trades, read once per process."
    import polars as pl
    from daedalus_etl.features.books import sides
    from daedalus_etl.features.stateful import trade_arrays
    source = books(depth)(env)
    rows = pl.scan_parquet(inputs.files(source, "orderbook"), hive_partitioning=False)
    batches = rows.select("capture_ts", "bids", "asks").collect_batches(chunk_size=BATCH, maintain_order=True)
    tape = pl.scan_parquet(inputs.files(source, "trades"), hive_partitioning=False)
    tape = tape.select("capture_ts", "side", "price", "amount").collect()
    return ([(b["capture_ts"].dt.epoch("us").to_numpy(), *sides(b.rechunk())) for b in batches],
            trade_arrays(tape, "capture_ts"))


def kernels(depth: int, said: dict, *, trades: bool = True):
    "Books in memory to arrays of columns: no Parquet, no frames."
    def work(env: Env) -> int:
        from daedalus_etl.core.catalog import Catalogue, select
        from daedalus_etl.features.stateful import StatefulFeatureProcessor
        batches, tape = env.once("books", lambda: arrays(env, depth))
        config = settings("orderbook", said)
        processor = StatefulFeatureProcessor(config, select(Catalogue("orderbook", config)), trades=trades)
        if trades: processor.add_trades(tape)
        for t, bids, asks in batches: processor.compute(t, bids, asks)
        return sum(t.size for t, _, _ in batches)
    return work


def python(env: Env) -> int:
    "A row-by-row processor of the stateful features in plain Python, on books that are lists already."
    (batches, trades), n = env.once("books", lambda: arrays(env, 20)), env.most
    t, bids, asks = batches[0]
    n = min(n, t.size)
    rows = env.once("lists", lambda: [(int(t[i]), book_side(bids, i), book_side(asks, i)) for i in range(n)])
    tape = env.once("tape", lambda: list(zip(*(a[:10 * n].tolist() for a in (trades.t, trades.sign, trades.amount)))))
    processor, at = RowByRow(), 0
    for clock, bid, ask in rows:
        while at < len(tape) and tape[at][0] <= clock:
            processor.trade(*tape[at])
            at += 1
        processor.book(clock, bid, ask)
    return n


def book_side(side, i: int) -> list[tuple[float, float]]:
    lo, hi = side.offset[i:i + 2]
    return list(zip(side.price[lo:hi].tolist(), side.size[lo:hi].tolist()))


class Trailing:
    "Trailing sums by adding and subtracting, the usual way in Python: a deque, and running totals."
    def __init__(self, seconds: int, k: int):
        self.us, self.rows, self.sums = seconds * 1_000_000, deque(), [0.0] * k

    def add(self, t: int, values: tuple) -> None:
        self.rows.append((t, values))
        sums = self.sums
        for k, v in enumerate(values): sums[k] += v

    def drop(self, t: int) -> None:
        rows, sums, edge = self.rows, self.sums, t - self.us
        while rows and rows[0][0] <= edge:
            for k, v in enumerate(rows.popleft()[1]): sums[k] -= v


class RowByRow:
    "OFI, MLOFI, five windows of flow, volatility and trades, OFI beta, spread rank and VPIN, one row at a time."
    def __init__(self):
        self.last, self.windows = None, [(Trailing(w, 5), Trailing(w, 4)) for w in (5, 15, 60, 300, 900)]
        self.beta, self.spreads, self.weights = Trailing(300, 6), deque(), [exp(-0.5 * i) for i in range(10)]
        self.buckets, self.bought, self.sold = deque(maxlen=50), 0.0, 0.0

    def trade(self, t: int, sign: int, amount: float) -> None:
        row = (amount if sign > 0 else 0.0, amount if sign < 0 else 0.0, amount, 1.0)
        for _, flow in self.windows: flow.add(t, row)
        while amount > 0:
            part = min(amount, 1.0 - self.bought - self.sold)
            if sign > 0: self.bought += part
            else: self.sold += part
            amount -= part
            if self.bought + self.sold >= 1.0 - 1e-12:
                self.buckets.append(abs(self.bought - self.sold))
                self.bought = self.sold = 0.0

    def book(self, t: int, bids: list, asks: list) -> dict:
        mid, spread, out = (bids[0][0] + asks[0][0]) / 2, asks[0][0] - bids[0][0], {}
        if self.last is not None:
            bids0, asks0, mid0 = self.last
            flows = [self.level(*rows) for rows in zip(bids[:10], asks[:10], bids0, asks0)]
            ofi, mlofi, r = flows[0], sum(w * e for w, e in zip(self.weights, flows)), log(mid / mid0)
            out |= {"ofi": ofi, "mlofi": mlofi, "log_return": r}
            for rows, _ in self.windows: rows.add(t, (ofi, mlofi, r * r, r, 1.0))
            self.beta.add(t, (1.0, ofi, r, ofi * ofi, ofi * r, r * r))
        self.last = bids[:10], asks[:10], mid
        for rows, flow in self.windows:
            rows.drop(t)
            flow.drop(t)
            e, m, r2, r, n = rows.sums
            b, s, v, count = flow.sums
            out[rows.us] = (e, m, sqrt(max(r2, 0.0)), sqrt(max(r2 - r * r / n, 0.0) / (n - 1)) if n > 1 else None,
                            (b - s) / (b + s) if b + s else None, v, count)
        self.beta.drop(t)
        n, x, y, xx, xy, _ = self.beta.sums
        out["ofi_beta"] = (n * xy - x * y) / (n * xx - x * x) if n > 2 and n * xx > x * x else None
        self.spreads.append((t, spread))
        while self.spreads[0][0] <= t - 300_000_000: self.spreads.popleft()
        out["spread_percentile"] = sum(s < spread for _, s in self.spreads) / len(self.spreads)
        out["vpin"] = sum(self.buckets) / 50 if len(self.buckets) == 50 else None
        return out

    @staticmethod
    def level(bid, ask, bid0, ask0) -> float:
        e = 0.0
        if bid[0] >= bid0[0]: e += bid[1]
        if bid[0] <= bid0[0]: e -= bid0[1]
        if ask[0] <= ask0[0]: e -= ask[1]
        if ask[0] >= ask0[0]: e += ask0[1]
        return e


def live(size: int):
    "Books pushed into `SymbolState` in micro-batches; latencies of the later nine tenths of the pushes."
    def work(env: Env) -> dict:
        import polars as pl
        from daedalus_etl.features.state import SymbolState
        source = inputs.files(books(20)(env), "orderbook")
        few = pl.scan_parquet(source, hive_partitioning=False).head(env.most)
        rows = env.once("records", lambda: few.collect().to_dicts())
        state, spent = SymbolState(settings("orderbook", dict(categories=ALL, levels=False)), trades=False), []
        for k in range(0, len(rows), size):
            began = time.perf_counter()
            state.push(rows[k:k + size])
            spent.append(time.perf_counter() - began)
        spent = sorted(spent[len(spent) // 10:])
        return {"rows": len(rows), "push_us": statistics.median(spent) * 1e6,
                "push_p99_us": spent[int(len(spent) * 0.99)] * 1e6}
    return work


def kernel_case(depth: int) -> Case:
    whole = dict(categories=ALL, levels=False)
    sides = (Side("all families", kernels(depth, whole), OURS),
             Side("structural + dynamic", kernels(depth, dict(categories=("structural", "dynamic"), levels=False),
                                                  trades=False), "variant"),
             Side("with per-level columns", kernels(depth, dict(categories=ALL)), "variant"))
    return Case(f"book_kernels_{depth}", f"Book kernels, {depth} levels", "Books in memory to arrays of columns: no "
                "Parquet, no frames.", "features", SNAPSHOTS if depth == 20 else SNAPSHOTS // 2, sides, books(depth),
                "snapshots", quick=3_000, rounds=2)


CASES = [
    kernel_case(20), kernel_case(50),
    Case("row_by_row", "Stateful book features, and Python row by row", "Order flow, five windows, the price impact's "
         "slope, spread rank and VPIN by the kernels, and by a plain Python class with deques and running sums.",
         "features", SNAPSHOTS,
         (Side("daedalus_etl", kernels(20, STATEFUL), OURS), Side("python", python, most=10_000)),
         books(20), "snapshots", quick=3_000),
    Case("live", "The live path", "Books pushed into `SymbolState` one at a time, by ten and by a hundred; all "
         "families, no trades.", "features", SNAPSHOTS,
         (Side("one at a time", live(1), OURS, most=LIVE), Side("by 10", live(10), "variant", most=LIVE),
          Side("by 100", live(100), "variant", most=LIVE)), books(20), "snapshots", quick=500,
         rounds=1),
]
