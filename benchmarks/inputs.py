"""What cases read: simulated once, kept below the data folder, the same for every side."""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

DAY = datetime(2026, 1, 14, tzinfo=UTC)
DAY_S = 86_400.0
ARRAYS = ("t", "price", "amount", "sign")
WRITER = dict(compression="zstd", compression_level=3, row_group_size=131_072)        # as the executor's defaults


def made(folder: Path, make: Callable[[Path], object]) -> Path:
    "`folder`, made by `make` if it is not there; half of one is never left behind."
    if folder.exists(): return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        make(stage)
        try: os.replace(stage, folder)
        except OSError:
            if not folder.exists(): raise               # else another process was first, with the same
    finally: shutil.rmtree(stage, ignore_errors=True)
    return folder


def trades(data: Path, rows: int) -> Path:
    "Bronze with about `rows` trades of one symbol and day."
    def make(folder: Path) -> None:
        from daedalus_etl.sources.simulated import write_trades
        write_trades(folder, rows)
    return made(data / f"trades-{rows}", make)


def books(data: Path, rows: int, depth: int = 20) -> Path:
    "Bronze with `rows` snapshots of `depth` levels of one symbol and day, and trades and quotes beside them."
    def make(folder: Path) -> None:
        from daedalus_etl.sources.simulated import write_bronze
        from daedalus_etl.sources.simulator import SimulatorConfig
        lasts = min(rows, DAY_S - 1.0)                  # one a second, more only if the day is full
        write_bronze(folder, {"BTC-USDT": SimulatorConfig(depth=depth, snapshot_s=lasts / rows)}, DAY, lasts)
    return made(data / f"books-{rows}x{depth}", make)


def files(folder: Path, channel: str) -> list[str]:
    "The files of a channel, in order."
    return sorted(map(str, (folder / channel).glob("**/*.parquet")))


def tape(data: Path, rows: int) -> Path:
    "The trades as silver holds them for bars (`tape.parquet`), and as arrays for those who know no Parquet."
    source = trades(data, rows)
    def make(folder: Path) -> None:
        import numpy as np
        import polars as pl
        bronze = pl.scan_parquet(files(source, "trades"), hive_partitioning=False)
        sign = pl.when(pl.col("side") == "buy").then(1).otherwise(-1).cast(pl.Int8).alias("side_sign")
        frame = bronze.select("capture_ts", "price", "amount", sign, pl.lit(0, pl.Int64).alias("segment_id")).collect()
        frame.write_parquet(folder / "tape.parquet", **WRITER)
        values = (frame["capture_ts"].dt.epoch("us"), frame["price"], frame["amount"], frame["side_sign"])
        for name, column in zip(ARRAYS, values, strict=True): np.save(folder / f"{name}.npy", column.to_numpy())
    return made(data / f"tape-{rows}", make)


def arrays(folder: Path) -> dict:
    "The arrays of a tape: clocks (us), prices, amounts, signs."
    import numpy as np
    return {n: np.load(folder / f"{n}.npy") for n in ARRAYS}


def silver_books(data: Path, rows: int) -> Path:
    "A lake with the silver of `books`."
    source = books(data, rows)
    return made(data / f"silver-books-{rows}", lambda folder: silver(source, "orderbook", folder))


def silver(source: Path, channel: str, lake: Path, features=None) -> dict:
    "The executor over the bronze of `source`: rows, and bytes read and written."
    from daedalus_etl.core.config import StorageConfig
    from daedalus_etl.core.executor import TransformExecutor
    from daedalus_etl.core.registry import create_transform
    from daedalus_etl.runners.jobs import features_config
    config = features_config(channel, StorageConfig(output_root=str(lake)), str(source / channel))
    report = TransformExecutor(features, progress=False).execute(create_transform(config.name, config))
    return {"rows": report["write_stats"]["silver"]["rows"], "bytes_out": report["write_stats"]["silver"]["bytes"],
            "bytes_in": sum(os.path.getsize(f) for name in config.inputs for f in files(source, name))}


def copied(rows, sample, target: Path) -> int:
    "The floor: all of `rows` read batch by batch, and as many rows of `sample` written, nothing computed."
    import polars as pl
    from daedalus_etl.core.lazy import lazy_source

    def batches(columns):
        at = 0
        for batch in rows.collect_batches(chunk_size=131_072, maintain_order=True):
            for lo in range(0, batch.height, sample.height):
                n = min(sample.height, batch.height - lo)
                at = 0 if at + n > sample.height else at
                yield sample[at:at + n]
                at += n

    lazy_source(dict(sample.schema), batches).sink_parquet(target, **WRITER, sync_on_close="all")
    return pl.scan_parquet(target).select(pl.len()).collect().item()
