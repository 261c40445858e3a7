"""Row rules by this package's expressions, by dataframely and by pandera, over Parquet.

They are the same for all: finite price above 0, finite amount of at least 0, times in range and inside the day. Good
rows are counted, bad ones kept with their reason; there is none, or one in ten thousand."""
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import inputs
from benchmarks.harness import OURS, Case, Env, Side

if TYPE_CHECKING: import polars as pl

START = datetime(2024, 8, 8, tzinfo=UTC)
SPAN = START, START + timedelta(days=1)
FIRST, LAST = datetime(2009, 1, 3, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
MS = {k: int(t.timestamp() * 1000) for k, t in (("first", FIRST), ("last", LAST))}
BAD_EVERY = 10_000          # one row in so many is bad


def tape(n: int, bad: bool) -> pl.LazyFrame:
    "`n` trades of one day."
    import polars as pl
    i = pl.int_range(n, eager=False)
    us = i * (86_400_000_000 // n)
    price = 60_000 + (i % 1000) / 10
    frame = pl.select(
        capture_ts=pl.lit(START).cast(pl.Datetime("us", "UTC")) + pl.duration(microseconds=us),
        timestamp=us // 1000 + int(START.timestamp() * 1000), trade_id=i.cast(pl.String),
        side=pl.when(i % 2 == 0).then(pl.lit("buy")).otherwise(pl.lit("sell")), amount=(i % 997 + 1) / 1000,
        price=pl.when(i % BAD_EVERY == 7).then(-1.0).otherwise(price) if bad else price)
    return frame.lazy()


# ---- cases: (good rows, bad rows with a reason)
def ours(lf: pl.LazyFrame) -> tuple[int, int]:
    "The rules of the bronze contract, streaming; bad rows with number, reason and values."
    import polars as pl
    from daedalus_etl.core.unit import check_rows
    from daedalus_etl.storage.contract import contract_for
    found = check_rows(lf, contract_for("trades"), "x.parquet", span=SPAN)
    return found.rows.select(pl.len()).collect(engine="streaming").item(), 0 if found.bad is None else found.bad.height


def dataframely(lf: pl.LazyFrame) -> tuple[int, int]:
    "A dataframely schema; `filter` on a LazyFrame, bad rows with a column per rule."
    import dataframely as dy
    import polars as pl

    class Trade(dy.Schema):
        capture_ts = dy.Datetime(time_unit="us", time_zone="UTC", min=SPAN[0], max_exclusive=SPAN[1])
        timestamp = dy.Int64(nullable=True, min=MS["first"], max=MS["last"])
        trade_id = dy.String(nullable=True)
        side = dy.String(nullable=True)
        amount = dy.Float64(min=0.0, allow_inf=False, allow_nan=False)
        price = dy.Float64(min_exclusive=0.0, allow_inf=False, allow_nan=False)

    found = Trade.filter(lf)
    good = found.result.select(pl.len()).collect(engine="streaming").item()
    return good, found.failure.invalid().height


def pandera(lf: pl.LazyFrame) -> tuple[int, int]:
    "A pandera schema; rows are looked at on a DataFrame only, bad ones in the error's failure cases."
    import pandera.polars as pa
    import polars as pl
    check, column = pa.Check, pa.Column
    finite = check(lambda d: d.lazyframe.select(pl.col(d.key).is_finite()))
    schema = pa.DataFrameSchema({
        "capture_ts": column(pl.Datetime("us", "UTC"), [check.ge(SPAN[0]), check.lt(SPAN[1])]),
        "timestamp": column(pl.Int64, [check.ge(MS["first"]), check.le(MS["last"])], nullable=True),
        "trade_id": column(pl.String, nullable=True), "side": column(pl.String, nullable=True),
        "amount": column(pl.Float64, [check.ge(0.0), finite]), "price": column(pl.Float64, [check.gt(0.0), finite])})
    frame = lf.collect()
    try: return schema.validate(frame, lazy=True).height, 0
    except pa.errors.SchemaErrors as e:
        rows = e.failure_cases["index"].unique()
        return frame.height - rows.len(), rows.len()


def source(env: Env, bad: bool) -> Path:
    def make(folder: Path) -> None: tape(env.rows, bad).sink_parquet(folder / "tape.parquet", row_group_size=131_072)
    return inputs.made(env.data / f"rules-{env.rows}-{'bad' if bad else 'clean'}", make) / "tape.parquet"


def side(rules, bad: bool, *needs: str, role: str = "peer") -> Side:
    def work(env: Env) -> dict:
        import polars as pl
        good, found = rules(pl.scan_parquet(source(env, bad)))
        return {"rows": good + found, "bad": found}
    return Side("daedalus_etl" if role == OURS else rules.__name__, work, role, needs)


def case(bad: bool) -> Case:
    title = f"Row rules, {'one bad row in 10 000' if bad else 'no bad row'}"
    return Case(f"rules_{'bad' if bad else 'clean'}", title, "Rows are checked and counted, bad ones kept with their "
                "reason.", "quality", 2_000_000,
                (side(ours, bad, role=OURS), side(dataframely, bad, "dataframely"), side(pandera, bad, "pandera")),
                lambda env: source(env, bad), "trades")


CASES = [case(False), case(True)]
