"""Ingest: order books as JSON lines, by our reader and by `polars.scan_ndjson`, each in a process of its own.

    python benchmarks/ingest.py [--books books.ndjson] [--rows 4000] [--again 1]

The file has CCXT's records of two venues in turn: one gives 20 levels with its numbers as text, the other 1000 levels
with numbers, as the recorded file does that the tests read; `--books` takes a file of your own, `--rows` how many
records are made otherwise. Four ways are measured:

- `polars floats`: `scan_ndjson` with `List[List[Float64]]` over the lines of the venue that gives numbers, alone: with
  the other venue's lines among them it stops at the first text. The frame is collected by the streaming engine.
- `polars text`: `scan_ndjson` with text for all numbers over the whole file, cast to floats and to levels.
- `read`: our reader over the whole file, batch by batch, with its times, levels and rows that are set aside.
- `import`: our reader and the bronze it makes: rows checked, dealt to days, compressed, committed.

Prints MB of JSON per second of wall and of CPU time, and the peak memory of the process. On a machine that does other
work look at the CPU time."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CHILD = """
import resource, sys, time
from pathlib import Path
import polars as pl
way, path, out = sys.argv[1:]
def polars(number):
    side = pl.List(pl.List(number))
    rows = pl.scan_ndjson(path, schema={"timestamp": pl.Float64, "exchange": pl.String, "bids": side, "asks": side})
    if number == pl.String:
        from daedalus_etl.core.levels import to_levels
        rows = rows.with_columns(to_levels(pl.col(s), side)[0] for s in ("bids", "asks"))
    return rows.collect(engine="streaming").height
def batches():
    from daedalus_etl.sources.ccxt_json import read
    from daedalus_etl.sources.source import Options
    return read(Path(path), "orderbook", Options(symbol="BTC-BRL"))
def imported():
    from daedalus_etl.sources.bronze import BronzeWriter
    from daedalus_etl.sources.source import Options
    with BronzeWriter(out, path, Options(symbol="BTC-BRL")) as writer:
        for batch in batches(): writer.add(batch)
        return writer.publish().rows["orderbook"]
ways = {"polars floats": lambda: polars(pl.Float64), "polars text": lambda: polars(pl.String),
        "read": lambda: sum(b.frame.height for b in batches()), "import": imported}
if way in ("read", "import"):      # compile, or load what is compiled
    from daedalus_etl.sources import ccxt_json
    small = Path(out + ".small")
    small.write_text('{"timestamp": 1592726829, "exchange": "x", "bids": [[1, "2"]], "asks": []}\\n')
    path, whole = str(small), path
    next(batches())
    path = whole
start = time.perf_counter(), time.process_time()
rows = ways[way]()
wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
print(rows, wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def make_books(path: Path, rows: int) -> None:
    "A market's books of two venues in turn, one every two seconds, a few levels changed from one to the next."
    rng = np.random.default_rng(1)
    sides = {n: [[50_000 - (i + 1) * 0.5, round(rng.exponential(), 8)] for i in range(n)] for n in (20, 1000)}
    with open(path, "w") as f:
        for k in range(rows):
            n = 20 if k % 2 else 1000
            for i in rng.integers(0, n, 5): sides[n][i] = [sides[n][i][0], round(rng.exponential(), 8)]
            asks = [[round(100_000.5 - p, 2), q] for p, q in sides[n]]
            book = {"timestamp": 1592726829.5 + 2 * k, "exchange": f"EX{1 + (n == 1000)}"}
            book |= {"bids": sides[n], "asks": asks}
            if n == 20: book |= {s: [[str(p), str(q)] for p, q in book[s]] for s in ("bids", "asks")}
            f.write(json.dumps(book) + "\n")


def only_numbers(path: Path, target: Path) -> Path:
    "The lines of `path` whose levels are numbers."
    with open(path, "rb") as f, open(target, "wb") as out: out.writelines(line for line in f if b'["' not in line)
    return target


def measure(way: str, path: Path, out: Path) -> None:
    "Run one way in a process of its own, and print its line of the table."
    done = subprocess.run([sys.executable, "-c", CHILD, way, str(path), str(out)], capture_output=True, text=True)
    if done.returncode:
        print(f"| {way} | failed: {done.stderr.strip().splitlines()[-1][:100]} |", flush=True)
        return
    rows, wall, cpu, peak = map(float, done.stdout.split())
    mb = path.stat().st_size / 1e6
    cells = [f"{rows:,.0f}", f"{mb:,.0f}", f"{wall:.2f}", f"{cpu:.2f}", f"{mb / wall:,.0f}", f"{mb / cpu:,.0f}",
             f"{peak:,.0f}"]
    print(f"| {way} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="a file of JSON lines that is there")
    parser.add_argument("--rows", type=int, default=4000, help="records to make if there is none")
    parser.add_argument("--again", type=int, default=1, help="measure so often")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        books = args.books or Path(folder) / "books.ndjson"
        if args.books is None: make_books(books, args.rows)
        numbers = only_numbers(books, Path(folder) / "numbers.ndjson")
        print("| way | books | MB | wall s | CPU s | MB/s wall | MB/s CPU | peak MiB |\n" + "|---" * 8 + "|")
        for k in range(args.again):
            measure("polars floats", numbers, Path(folder))
            for way in ("polars text", "read", "import"): measure(way, books, Path(folder) / f"bronze{k}")


if __name__ == "__main__": main()
