"""Make the sample data again: `python data_samples/make.py`. The same seed gives the same bytes."""
import shutil
from datetime import UTC, datetime
from pathlib import Path
from daedalus_etl.sources.simulated import write_bronze
from daedalus_etl.sources.simulator import SimulatorConfig

HERE = Path(__file__).parent
SYMBOLS = {
    "BTC-USDT": SimulatorConfig(),
    "ETH-USDT": SimulatorConfig(price=3_000.0, tick=0.01, lot=0.01, market_rate=0.6, excite=1.5, limit_rate=0.5)}

if __name__ == "__main__":
    shutil.rmtree(HERE / "bronze", ignore_errors=True)
    start = datetime(2026, 1, 14, 23, 30, tzinfo=UTC)
    for path in write_bronze(HERE / "bronze", SYMBOLS, start, duration_s=3600.0, seed=14):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(HERE)}")
