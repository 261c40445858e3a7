"""A format of plain trades and quotes for tests of imports; as a program it imports: `plain_source.py FILES LAKE`."""
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from lakes import day_start

from daedalus_etl.sources.importer import import_files
from daedalus_etl.sources.source import FORMATS, Batch, Format, Head, Options, csv_batches, guard_unit, side_of, time_us

FORMATS["plain"] = "plain_source:FORMAT"
HEADER = "time,symbol,id,side,price,size"
SCHEMA = {"time": pl.Int64, "symbol": pl.String, "id": pl.String, "side": pl.String, "price": pl.Float64,
          "size": pl.Float64}
BINANCE = Options(exchange="binance", max_bad=0.2, batch_rows=7)


def looks_like(head: Head) -> str | None: return "plain" if ",".join(head.columns) == HEADER else None


def read(path: Path, kind: str, options: Options):
    "Trades; lines with the side `quote` are quotes, one below and one above the price."
    for _, good, bad in csv_batches(path, SCHEMA, batch_rows=options.batch_rows):
        guard_unit(good["time"], "ms", path)
        rows = good.with_columns(capture_ts=time_us(pl.col("time"), "ms"), timestamp="time")
        quotes = pl.col("side") == "quote"
        yield Batch("trades", rows.filter(~quotes.fill_null(False)).select(
            "row", "capture_ts", "timestamp", "symbol", "price", trade_id="id", side=side_of(pl.col("side")),
            amount="size"), bad)
        yield Batch("ticker", rows.filter(quotes).select(
            "row", "capture_ts", "timestamp", "symbol", bid=pl.col("price") - 1, ask=pl.col("price") + 1))


FORMAT = Format("plain", "Plain trades and quotes", looks_like, read)


def ms(t: datetime) -> int: return round(t.timestamp() * 1000)


def line(i: int, symbol: str = "BTC/USDT", day: int = 8, **change) -> str:
    "Line `i`: one each half hour from midnight of the `day`-th of August 2024, every fifth a quote."
    values = {"time": ms(day_start(day) + timedelta(minutes=30 * i)), "symbol": symbol, "id": f"{symbol[:3]}{day}-{i}",
              "side": "quote" if i % 5 == 4 else ("buy", "SELL")[i % 2], "price": 60_000 + i % 7,
              "size": 0.1 * (1 + i % 3)}
    return ",".join(str(v) for v in (values | change).values())


def write(path: Path, lines, header: str = HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def sources(folder: Path) -> Path:
    "Three files: two that overlap, over two days and two symbols, one with bad lines and rows."
    write(folder / "a.csv", [line(i) for i in range(60)])
    write(folder / "b.csv", [line(i) for i in range(40, 90)] + [line(i, "ETH/USDT") for i in range(50)])
    bad = ["1,2", line(1, price="12;5"), line(2, price=-1), line(3, time="")]
    write(folder / "c.csv", [line(i, "XRP/USDT") for i in range(30)] + bad + [line(31, "XRP/USDT")])
    return folder


def main(files: str, lake: str) -> None:
    print("ready", flush=True)
    assert sys.stdin.readline()
    time.sleep(0)
    report = import_files(files, lake, options=BINANCE)
    print("done" if report.success else [str(f.error) for f in report.failed], flush=True)


if __name__ == "__main__":
    sys.modules["plain_source"] = sys.modules["__main__"]
    main(*sys.argv[1:])
