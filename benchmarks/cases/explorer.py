"""How long a click in the explorer takes, on a day of 864 000 rows.

The kernel's side alone, from the click to the chart's specification: the first click on a tab, and the median of five
different ones that follow. What the browser takes to draw comes on top."""
from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import inputs
from benchmarks.harness import OURS, Case, Env, Side

if TYPE_CHECKING:
    import polars as pl
    from daedalus_etl.explore.widgets import PartitionExplorer

ROWS, COLUMNS, LEVELS_A_SIDE, REPEATS = 864_000, 60, 20, 5
START = inputs.DAY


def clock(n: int, day: int) -> pl.Series:
    import numpy as np
    import polars as pl
    at = (START + timedelta(days=day)).timestamp() * 1e6 + np.arange(n) * (86_400e6 / n)
    return pl.Series("capture_ts", at.astype(np.int64)).cast(pl.Datetime("us", "UTC"))


def silver(n: int, day: int, rng) -> pl.DataFrame:
    "A price and features at random, some with nulls."
    import numpy as np
    import polars as pl
    windows = [f"{name}_{w}s" for w in (5, 15, 60, 300, 900) for name in
               ("vwap", "volume", "dollar_volume", "trade_count", "buy_ratio", "tfi", "realized_var")]
    names = [*windows, *(f"own_{i}" for i in range(COLUMNS - len(windows)))]
    values = {name: rng.normal(size=n) for name in names}
    frame = pl.DataFrame({"capture_ts": clock(n, day), "price": 100 + np.cumsum(rng.normal(0, 1e-3, n)), **values})
    return frame.with_columns(tfi_5s=pl.when(pl.col("tfi_5s") > -2).then("tfi_5s"))


def books(n: int, day: int, rng) -> pl.DataFrame:
    "Books of `LEVELS_A_SIDE` levels around a price that wanders."
    import numpy as np
    import polars as pl
    from daedalus_etl.core.levels import LEVELS
    mid = np.round(100 + np.cumsum(rng.normal(0, 1e-3, n)), 2)
    steps = 0.01 * (1 + np.arange(LEVELS_A_SIDE))
    def side(sign):
        price, size = mid[:, None] + sign * steps, rng.exponential(1.0, (n, LEVELS_A_SIDE))
        flat = pl.DataFrame({"price": price.ravel(), "size": size.ravel()}).to_struct("level")
        return flat.reshape((n, LEVELS_A_SIDE)).cast(pl.Array(LEVELS.inner, LEVELS_A_SIDE)).arr.to_list()
    return pl.DataFrame({"capture_ts": clock(n, day), "bids": side(-1), "asks": side(1)})


def lake(env: Env) -> Path:
    "Two days of silver trades features and of bronze books."
    def make(folder: Path) -> None:
        import numpy as np
        rng = np.random.default_rng(7)
        for day in (0, 1):
            leaf = f"exchange=simulated/symbol=BTC-USDT/year=2026/month=01/day={14 + day}"
            parts = {"silver/trades": silver(env.rows, day, rng), "bronze/orderbook": books(env.rows, day, rng)}
            for dataset, frame in parts.items():
                path = folder / dataset / leaf / "part-0.parquet"
                path.parent.mkdir(parents=True)
                frame.write_parquet(path, row_group_size=100_000)
    return inputs.made(env.data / f"explorer-{env.rows}", make)


def timed(explorer: PartitionExplorer, title: str, clicks: list) -> tuple[float, float]:
    "First click on a tab, and the median of those that follow, in seconds."
    took = []
    for click in [lambda: setattr(explorer.tabs, "selected_index", titles(explorer).index(title)), *clicks]:
        began = time.perf_counter()
        click()
        took.append(time.perf_counter() - began)
        if explorer.panel.fault.value: raise RuntimeError(explorer.panel.fault.value)
    return took[0], median(took[1:])


def titles(explorer: PartitionExplorer) -> list[str]: return [p.title for p in explorer.panels]


def clicks_of(explorer: PartitionExplorer) -> dict[tuple[str, str], list]:
    "(tab, what is clicked) -> clicks."
    control, panels = explorer.controls, dict(zip(titles(explorer), explorer.panels))
    def sets(widget, *values, name="value"): return [lambda v=v: setattr(widget, name, v) for v in values]
    features = sets(control.features, *((f,) for f in control.features.options[3:3 + REPEATS]))
    day = START + timedelta(days=1)
    windows = [(day + timedelta(hours=i), day + timedelta(hours=i + 2)) for i in range(REPEATS)]
    return {
        ("Distribution", "another feature"): features,
        ("Distribution", "with a reference"): [
            *sets(control.reference, control.reference.options[1][1]), *features[1:]],
        ("Series", "another feature"): features,
        ("Series", "a window"): [lambda x=x: panels["Series"].zoom(x) for x in windows],
        ("Returns", "another feature"): features,
        ("Drift", "ranked otherwise"): sets(panels["Drift"].rank, "ks", "mean_shift", "null_change", "psi"),
        ("Book", "another five minutes"): sets(panels["Book"].start, *range(10, 60, 10), name="index"),
        ("Quality", "another feature"): features}


def click(env: Env) -> dict:
    "All clicks, each kind as a part with its first and its later ones."
    from daedalus_etl.explore.widgets import PartitionExplorer
    explorer, parts = PartitionExplorer(lake(env)), {}
    for (title, what), clicks in clicks_of(explorer).items():
        first, then = timed(explorer, title, clicks)
        parts[f"{title}: {what}"] = {"wall": then, "first": first}
    return {"rows": env.rows, "parts": parts}


CASES = [Case("explorer", "Clicks in the explorer", "From the click to the chart's specification, on a day of 864 000 "
              "rows and 62 columns with books of 20 levels.", "look", ROWS,
              (Side("daedalus_etl", click, OURS, passes=1),), lake, quick=20_000, rounds=1)]
