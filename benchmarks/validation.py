"""Row rules: `python benchmarks/validation.py` prints medians and ratios of one run, each case in a process of its own.

The same trade rules (finite price above 0, finite amount of at least 0, times in range and inside the day) by this
package's expressions, by dataframely and by pandera, over Parquet: good rows are counted, bad ones kept with their
reason. Inputs are made once, below --data, without a bad row and with one in ten thousand. CPU seconds hold on a loaded
machine; wall seconds do not."""
import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from run import measured

HERE = Path(__file__).resolve()
START = datetime(2024, 8, 8, tzinfo=UTC)
SPAN = START, START + timedelta(days=1)
FIRST, LAST = datetime(2009, 1, 3, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
MS = {k: int(t.timestamp() * 1000) for k, t in (("first", FIRST), ("last", LAST))}
BAD_EVERY = 10_000          # one row in so many is bad


def tape(n: int, bad: bool) -> pl.LazyFrame:
    "`n` trades of one day."
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
def case_ours(lf: pl.LazyFrame) -> tuple[int, int]:
    "The rules of the bronze contract, streaming; bad rows with number, reason and values."
    from daedalus_etl.core.unit import check_rows
    from daedalus_etl.storage.contract import contract_for
    found = check_rows(lf, contract_for("trades"), "x.parquet", span=SPAN)
    return found.rows.select(pl.len()).collect(engine="streaming").item(), 0 if found.bad is None else found.bad.height


def case_dataframely(lf: pl.LazyFrame) -> tuple[int, int]:
    "A dataframely schema; `filter` on a LazyFrame, bad rows with a column per rule."
    import dataframely as dy

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


def case_pandera(lf: pl.LazyFrame) -> tuple[int, int]:
    "A pandera schema; rows are looked at on a DataFrame only, bad ones in the error's failure cases."
    import pandera.polars as pa
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


CASES = {k.removeprefix("case_"): v for k, v in list(globals().items()) if k.startswith("case_")}


def alone(name: str, path: Path) -> dict:
    "One case in a process of its own, twice; the second pass, with the memory that it added to the imports."
    done = subprocess.run([sys.executable, HERE, "--case", name, "--path", str(path)], capture_output=True, text=True)
    if done.returncode: return {"failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def child(name: str, path: Path) -> None:
    if name.startswith("make:"):
        _, rows, bad = name.split(":")
        tape(int(rows), bad == "1").sink_parquet(path, row_group_size=131_072)
        return print("{}")
    found = []
    def work():
        found.append(CASES[name](pl.scan_parquet(path)))
        return sum(found[-1])
    measured(work)
    print(json.dumps(measured(work) | {"good": found[-1][0], "bad": found[-1][1]}))


def report(rows: int, bad: bool, path: Path, repeats: int) -> None:
    "Medians of interleaved repeats, and ratios to our own."
    runs = {n: [] for n in CASES}
    for _ in range(repeats):
        for n, done in runs.items(): done.append(alone(n, path))
    print(f"\n{rows / 1e6:g} M trades, {'one bad row in 10 000' if bad else 'no bad row'}")
    print("| rules | wall s | CPU s | peak MiB | CPU / ours | peak / ours | good | bad |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    base = None
    for n, done in runs.items():
        if "failed" in done[0]:
            print(f"| {n} | {done[0]['failed']} | | | | | | |")
            continue
        m = {k: statistics.median(d[k] for d in done) for k in ("wall", "cpu", "rss")}
        base = base or m
        print(f"| {n} | {m['wall']:.3f} | {m['cpu']:.3f} | {m['rss']:.0f} | {m['cpu'] / base['cpu']:.1f} "
              f"| {m['rss'] / base['rss']:.1f} | {done[0]['good']} | {done[0]['bad']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "daedalus_validation")
    parser.add_argument("--rows", type=float, nargs="*", default=[1e6, 1e7])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case"), parser.add_argument("--path", type=Path)
    args = parser.parse_args()
    if args.case: return child(args.case, args.path)
    print(f"{platform.platform()}, polars {pl.__version__}, medians of {args.repeats}")
    args.data.mkdir(parents=True, exist_ok=True)
    for rows in map(int, args.rows):
        for bad in (False, True):
            path = args.data / f"{rows}_{'bad' if bad else 'clean'}.parquet"
            # in a process of its own: a child's peak memory begins with that of its parent
            if not path.exists(): alone(f"make:{rows}:{int(bad)}", path)
            report(rows, bad, path, args.repeats)


if __name__ == "__main__": main()
