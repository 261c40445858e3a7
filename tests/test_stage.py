"A write that fails leaves no file in the stage, however late polars' writer notices."
import time

import polars as pl
import pytest

from daedalus_etl.core.config import OutputConfig
from daedalus_etl.storage.commit import Dataset, stage
from daedalus_etl.storage.delta_dataset import DeltaDataset
from daedalus_etl.storage.partitions import Partition

TIMES = 60        # given a path, the writer made the file after the clean-up in two of three attempts
PART = Partition.of(exchange="a", symbol="b", year=2026, month=1, day=1)


class Refused(Exception): pass


def refused() -> pl.LazyFrame:
    "A frame that fails while it is written."
    def fail(batch): raise Refused
    return pl.LazyFrame({"value": [1, 2]}).map_batches(fail, schema={"value": pl.Int64}, streamable=True)


def plain(dataset: Dataset, output: OutputConfig): stage(dataset, refused(), output)
def delta(dataset: Dataset, output: OutputConfig): DeltaDataset(dataset).stage(PART, refused(), dict, output)


@pytest.mark.parametrize("write", [plain, delta])
def test_a_failed_write_leaves_nothing(tmp_path, write):
    if write is delta: pytest.importorskip("deltalake")
    output = OutputConfig(name="silver", path=str(tmp_path / "silver" / "x"))
    dataset = Dataset.of(output)
    for _ in range(TIMES):
        with pytest.raises((Refused, pl.exceptions.ComputeError)): write(dataset, output)
    time.sleep(0.2)         # a late writer has had its chance
    assert [p.name for p in (dataset.meta / "stage").iterdir()] == []
