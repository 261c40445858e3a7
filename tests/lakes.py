"""Small bronze lakes for tests: made-up tapes and quotes, where they lie, and what a folder holds afterwards."""
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from daedalus_etl.core.config import FeatureConfig, InputConfig, OutputConfig, StorageConfig, TransformConfig
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.registry import create_transform
from daedalus_etl.runners.jobs import features_config
from daedalus_etl.storage.commit import read_footer

UTC_US = pl.Datetime("us", "UTC")
BTC, ETH = ("binance", "BTC-USDT"), ("binance", "ETH-USDT")
SMALL = FeatureConfig(rolling_windows=(5, 60, 900))
TAPE_TYPES = {"collected_at": pl.Int64, "capture_ts": UTC_US, "exchange": pl.String, "symbol": pl.String,
              "timestamp": pl.Int64, "trade_id": pl.String, "side": pl.String, "price": pl.Float64,
              "amount": pl.Float64, "cost": pl.Float64}


def day_start(day: int) -> datetime:
    "Midnight of the `day`-th of August 2024, a Thursday for day 8."
    return datetime(2024, 8, 1, tzinfo=UTC) + timedelta(days=day - 1)


def seconds_of(n: int, rng) -> np.ndarray:
    "`n` clocks in seconds, over the whole day with bursts in its first and last minutes, ascending."
    sparse = np.linspace(30.0, 86_370.0, n)            # closer than a gap, so that a stream is one segment
    edge = np.concatenate([rng.uniform(0, 120, 20), rng.uniform(86_280, 86_400, 20)])
    return np.sort(np.round(np.concatenate([sparse, edge]), 3))


def tape(day: int = 8, n: int = 440, stream=BTC, seconds=None, lag_ms: int = 7) -> pl.DataFrame:
    "Trades of one day (n sparse ones and 40 near midnight, or one at each of `seconds`), in order, ids ascending."
    return _tape(day, n, stream, None if seconds is None else tuple(seconds), lag_ms)


@cache
def _tape(day, n, stream, seconds, lag_ms):
    rng = np.random.default_rng([day, sum(map(ord, stream[1]))])
    at = seconds_of(n, rng) if seconds is None else np.asarray(seconds, float)
    us = [round(s * 1e6) for s in at]
    price = np.round(60_000 * np.exp(np.cumsum(rng.normal(0, 1e-4, at.size))), 2)
    amount = np.round(rng.exponential(0.3, at.size) + 1e-5, 5)
    times = [day_start(day) + timedelta(microseconds=u) for u in us]
    ms = [int(t.timestamp()) * 1000 + t.microsecond // 1000 for t in times]
    return pl.DataFrame({
        "collected_at": ms, "capture_ts": times, "exchange": stream[0], "symbol": stream[1],
        "timestamp": [m - lag_ms for m in ms], "trade_id": [str(day * 100_000 + i) for i in range(at.size)],
        "side": rng.choice(["buy", "sell"], at.size), "price": price, "amount": amount,
        "cost": price * amount}, schema_overrides=TAPE_TYPES)


def quotes(day: int = 8, n: int = 440, stream=BTC, seconds=None) -> pl.DataFrame:
    "Best quotes at the clocks of `tape`."
    base = tape(day, n, stream, seconds)
    rng = np.random.default_rng([day, 1])
    half = np.round(rng.uniform(0.01, 3.0, base.height), 2)
    return base.select("collected_at", "capture_ts", "exchange", "symbol", pl.lit(None, pl.Int64).alias("timestamp"),
                       (pl.col("price") - half).alias("bid"), (pl.col("price") + half).alias("ask"),
                       pl.Series("bid_volume", np.round(rng.exponential(1, base.height), 4)),
                       pl.Series("ask_volume", np.round(rng.exponential(1, base.height), 4)))


def leaf(day: int = 8, stream=BTC, hour: int | None = None, symbol: str | None = None) -> str:
    "Relative folder of a partition; `symbol` where the folder's spelling is another."
    d = day_start(day)
    path = f"exchange={stream[0]}/symbol={symbol or stream[1]}/year={d.year}/month={d.month:02}/day={d.day:02}"
    return path if hour is None else f"{path}/hour={hour:02}"


def put(root: Path, data: pl.DataFrame | bytes, day: int = 8, stream=BTC, name: str = "data.parquet", **where) -> Path:
    "Write `data` (by the suffix of `name`) into its partition under `root`; the file is replaced, not rewritten."
    path = Path(root) / leaf(day, stream, **where) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{name}.part")
    if isinstance(data, bytes): part.write_bytes(data)
    elif name.endswith(".parquet"): data.write_parquet(part)
    elif name.endswith(".ndjson"): iso(data).write_ndjson(part)
    else: iso(data).write_csv(part)
    os.replace(part, path)
    return path


def iso(frame: pl.DataFrame) -> pl.DataFrame:
    "`capture_ts` as ISO text with its zone, for text formats."
    return frame.with_columns(pl.col("capture_ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00"))


def config(name: str, source: Path, lake: Path, *, output: str, fmt: str = "parquet", **written) -> TransformConfig:
    "Configuration of the transform `name`: its one input at `source`, its output dataset in `lake`."
    key = {"trades_features": "trades", "ticker_features": "ticker"}.get(name, "silver")
    out = "gold" if name == "bars" else "silver"
    return TransformConfig(name=name, inputs={key: InputConfig(name=key, path=source, format=fmt)},
                           outputs={out: OutputConfig(name=out, path=f"{lake}/{output}", **written)})


def trades(source: Path, lake: Path, **kwargs):
    "The trades transform."
    return create_transform(
        "trades_features", config("trades_features", source, lake, output="silver/trades", **kwargs)
    )


def ticker(source: Path, lake: Path, **kwargs):
    "The ticker transform."
    return create_transform(
        "ticker_features", config("ticker_features", source, lake, output="silver/ticker", **kwargs)
    )


def orderbook(source: Path, lake: Path, trades: str | None = None, **kwargs):
    "The order book transform; `trades` as in `features_config`: the folder beside the books, or \"\" for none."
    storage = StorageConfig(output_root=str(lake), **kwargs)
    return create_transform("orderbook_features", features_config("orderbook", storage, str(source), trades=trades))


def bars(source: Path, lake: Path, channel: str = "trades", **kwargs):
    "The bars transform."
    return create_transform("bars", config("bars", source, lake, output=f"gold/{channel}_bars", **kwargs))


def run(transform, spec=None, features: FeatureConfig = SMALL, workers: int = 2, **kwargs):
    "Execute without a progress bar."
    return TransformExecutor(features, workers=workers, progress=False).execute(transform, spec, **kwargs)


def statuses(report) -> list[str]:
    "What happened to the units, in order."
    return [u.status for u in report.units]


def dataset(root: Path) -> pl.DataFrame:
    "All rows below a dataset's root, files in order of their paths, no columns from the paths."
    return pl.concat([pl.read_parquet(p, hive_partitioning=False) for p in sorted(Path(root).rglob("*.parquet"))])


def footer(root: Path, day: int = 8, stream=BTC, **where) -> dict[str, str]:
    "Our footer keys of a partition."
    return read_footer(Path(root) / leaf(day, stream, **where) / "part-0.parquet")


def places(root: Path) -> dict[str, tuple]:
    "Every path below `root` with its inode, size and time of last change."
    found = {}
    for p in sorted(Path(root).rglob("*")):
        s = p.lstat()
        found[p.relative_to(root).as_posix()] = (s.st_ino, s.st_size, s.st_mtime_ns)
    return found


def contents(root: Path) -> dict[str, str]:
    "Every file below `root` with the hash of its bytes."
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(Path(root).rglob("*")) if p.is_file()}


def leftovers(lake: Path) -> list[str]:
    "What a run may not leave behind: files in a stage, hidden or partial files, anything but Parquet in a dataset."
    lake = Path(lake)
    files = [p.relative_to(lake) for p in lake.rglob("*") if p.is_file()]
    def bad(p):
        if p.parts[0] != ".daedalus": return p.suffix != ".parquet" or p.name[0] in "._"
        return "stage" in p.parts or p.name[0] == "." or p.name.endswith((".part", ".tmp"))
    return sorted(str(p) for p in files if bad(p))


def leftovers_in_meta(lake: Path) -> list[str]:
    "What a run may not leave behind beside its datasets, whatever their format."
    return [p for p in leftovers(lake) if p.startswith(".daedalus")]


def cli(*args, module: str = "daedalus_etl.cli", cwd=None, **env) -> subprocess.CompletedProcess:
    "Run `python -m module args`; the configuration of the checkout is out of sight unless `cwd` has one."
    env = {k: v for k, v in os.environ.items() if k != "DAEDALUS_CONFIG"} | env
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True
    )


def demo_lake(folder: Path) -> tuple[Path, Path]:
    "A lake with all that the sample data give, silver and gold, and the bronze that it was made of."
    bronze = Path(__file__).resolve().parents[1] / "data_samples" / "bronze"
    done = cli("run", "--input", bronze, "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder, bronze
