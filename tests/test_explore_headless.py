"""The explorer without a browser: widgets are set, and what the panels tell is read."""
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date

import polars as pl
import pytest
from lakes import ETH, leaf, put, tape

from daedalus_etl.core.errors import ConfigError, InputNotFoundError
from daedalus_etl.explore import serve
from daedalus_etl.explore.browse import LakeView, Pick
from daedalus_etl.explore.panels import books_of
from daedalus_etl.explore.widgets import PartitionExplorer

TABS = ("Distribution", "Series", "Returns", "Drift", "Book", "Quality")


def show(explorer, title) -> str:
    "What the tab tells as a fault, once it is in front."
    explorer.tabs.selected_index = TABS.index(title)
    return explorer.panel.fault.value


def faults(explorer, without=("Book",)) -> dict:
    "The faults of all tabs but some."
    return {t: f for t in TABS if t not in without and (f := show(explorer, t))}


@pytest.fixture
def lake(tmp_path):
    "Two days of two streams, as silver trades."
    for day in (8, 9):
        for stream in (("binance", "BTC-USDT"), ETH):
            rows = tape(day, 200, stream).with_columns(log_return=pl.col("price").log().diff(), late=pl.lit(1.0))
            put(tmp_path / "silver" / "trades", rows.drop("late") if day == 8 else rows, day, stream, "part-0.parquet")
    return tmp_path


def test_every_tab_of_days_that_differ_in_columns(lake):
    explorer = PartitionExplorer(lake)
    assert faults(explorer) == {}
    explorer.controls.days.value = (date(2024, 8, 8), date(2024, 8, 9))
    explorer.controls.features.value = ("late",)
    assert faults(explorer) == {}
    late = explorer.view.frame(explorer.controls.pick, ["late"])
    assert late["late"].null_count() == 240 and late.height == 480


def test_a_replaced_partition_is_never_mixed_with_what_is_kept(lake):
    explorer, there = PartitionExplorer(lake), lake / "silver" / "trades"
    pick = explorer.controls.pick
    explorer.view.frame(pick, ["price"])
    put(there, tape(9, 300).with_columns(price=pl.lit(1.0), log_return=pl.lit(0.5)), 9, name="part-0.parquet")
    both = explorer.view.frame(pick, ["price", "log_return"])
    assert both.height == 340 and both["price"].unique().to_list() == [1.0]
    shutil.rmtree(there / leaf(9))
    explorer.controls.features.value = ("amount",)
    assert set(faults(explorer)) == {"Distribution", "Series", "Returns", "Drift", "Quality"}
    assert "traceback" not in "".join(faults(explorer).values())
    explorer.controls.reload()
    assert faults(explorer, ("Book", "Drift")) == {}
    assert "no day before" in show(explorer, "Drift")


def test_a_dataset_that_cannot_be_read_does_not_keep_from_the_others(lake):
    put(lake / "silver" / "orderbook", b"PAR1 cut", 8, name="part-0.parquet")
    explorer = PartitionExplorer(lake)                      # begins with the order books
    assert "CorruptFileError" in explorer.fault.value
    explorer.controls.dataset.value = "trades"
    assert explorer.fault.value == "" and faults(explorer, ("Book", "Drift")) == {}


def test_a_picture_of_something_else_is_not_left_under_a_fault(lake):
    explorer = PartitionExplorer(lake)
    assert explorer.panel.canvas.layout.display is None
    explorer.controls.features.value = ()
    assert "no feature is chosen" in explorer.panel.fault.value and explorer.panel.canvas.layout.display == "none"
    explorer.controls.features.value = ("price",)
    assert explorer.panel.fault.value == "" and explorer.panel.canvas.layout.display is None


def test_names_are_text_and_not_markup(tmp_path):
    odd = ("a&b", "<b>X/Y</b>")
    for day in (8, 9):
        stream = "silver/trades/exchange=a%26b/symbol=%3Cb%3EX%2FY%3C%2Fb%3E"
        path = tmp_path / stream / "year=2024/month=08" / f"day={day:02}"
        path.mkdir(parents=True)
        tape(day, 50, odd).write_parquet(path / "part-0.parquet")
    explorer = PartitionExplorer(tmp_path)
    assert faults(explorer) == {} and "&lt;b&gt;X/Y" in explorer.status.value and "<b>" not in explorer.status.value


def test_layouts_without_days_or_streams(tmp_path):
    (tmp_path / "silver" / "trades").mkdir(parents=True)
    tape(8, 50).write_parquet(tmp_path / "silver" / "trades" / "part-0.parquet")
    told = faults(PartitionExplorer(tmp_path))
    assert set(told) == {"Drift"} and "no day before" in told["Drift"]


def test_returns_of_bars_and_of_classes_among_numbers(tmp_path):
    bars = pl.DataFrame({"bar_start": pl.datetime_range(date(2024, 8, 8), date(2024, 8, 9), "5m", closed="left",
                                                        time_unit="us", time_zone="UTC", eager=True)})
    end = pl.col("bar_start").dt.offset_by("5m")
    bars = bars.with_columns(bar_end=end, available_at=end,
                             close=pl.int_range(pl.len()) + 100.0, kind=pl.lit("u").cast(pl.Enum(["u", "d"])),
                             log_return=pl.int_range(pl.len()).sin())
    put(tmp_path / "gold" / "trades_bars" / "300s", bars, 8, name="part-0.parquet")
    explorer = PartitionExplorer(tmp_path)
    explorer.controls.features.value = ("log_return", "close", "kind")
    assert faults(explorer, ("Book", "Drift")) == {}


def test_books_are_looked_for_where_they_are(lake):
    view = LakeView(lake)
    pick = Pick("silver", "trades", "binance", "BTC-USDT", (date(2024, 8, 8),))
    put(lake / "silver" / "orderbook", tape(8, 50), 8, name="part-0.parquet")           # features without levels
    with pytest.raises(Exception, match="Say where bronze lies"): books_of(view, pick)
    levels = [f"{side}_{what}_L0" for side in ("bid", "ask") for what in ("price", "size")]
    books = tape(8, 50).with_columns(pl.lit(1.0).alias(name) for name in levels)
    put(lake / "silver" / "orderbook", books, 8, name="part-0.parquet")
    view.refresh()
    for days in (pick.days, ()): assert books_of(view, replace(pick, days=days))[0].collect().height == 90
    put(lake / "silver" / "orderbook", books[:0], 8, name="part-0.parquet")
    told = show(PartitionExplorer(lake), "Book")
    assert "no order book with a time" in told and "traceback" not in told


def test_more_than_fits_is_refused_and_footers_are_read_once(lake, monkeypatch):
    view = LakeView(lake, memory_mb=0.01)
    pick = Pick("silver", "trades", "binance", "BTC-USDT", (date(2024, 8, 8), date(2024, 8, 9)))
    with pytest.raises(ConfigError, match="memory_mb"): view.frame(pick, ["price", "amount", "cost"])
    monkeypatch.setattr("daedalus_etl.explore.browse.scan_files", None)
    assert "price" in view.features(pick)


def test_a_long_table_is_cut_and_says_so():
    from daedalus_etl.explore.panels import _table
    assert "the first 500 of 600 rows" in _table(pl.DataFrame({"x": range(600)}))


def test_serve_refuses_what_is_no_lake(tmp_path):
    with pytest.raises(InputNotFoundError, match="no dataset"): serve.serve(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve_leaves_no_server_behind(lake, tmp_path, how):
    "The server of this test sleeps, and hears of no interrupt: whoever ends us alone ends it as well."
    code = ("import signal, sys; from daedalus_etl.explore import serve as s\n"
            "s.importlib.util.find_spec = lambda name: True\n"
            "s.GRACE_S = (0.1, 10)\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"       # ignored where tests run behind a shell
            "sleeper = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
            "s.command = lambda *a, **k: [sys.executable, '-c', sleeper]\n"
            f"s.serve({str(lake)!r})")
    room = tmp_path / "temporary"
    room.mkdir()
    ours = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"TMPDIR": str(room)})
    server = int(ours.stdout.readline())
    ours.send_signal(how)
    ours.wait(20)
    for _ in range(50):
        if not os.path.exists(f"/proc/{server}"): break
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{server}") and list(room.iterdir()) == []


def test_bronze_that_lies_elsewhere_is_not_written_to(lake, tmp_path_factory):
    bronze = tmp_path_factory.mktemp("bronze")
    for day in (8, 9): put(bronze / "trades", tape(day, 50), day)
    explorer = PartitionExplorer(lake, bronze)
    explorer.controls.tier.value = "bronze"
    assert faults(explorer) == {}
    assert not (bronze / ".daedalus").exists()
    explorer.controls.tier.value = "silver"
    assert faults(explorer) == {}
    assert (lake / ".daedalus").exists()


def test_a_window_of_numbers_while_a_class_is_in_focus(tmp_path):
    rows = tape(8, 200).with_columns(mood=pl.lit("calm").cast(pl.Enum(["calm", "wild"])))
    put(tmp_path / "silver" / "trades", rows)
    explorer = PartitionExplorer(tmp_path)
    explorer.controls.features.value = ("mood", "price")
    assert "mood" in explorer.choice.features
    assert show(explorer, "Series") == ""
    first, last = rows["capture_ts"].min(), rows["capture_ts"].max()
    explorer.panel.zoom((first, first + (last - first) / 2))
    assert explorer.panel.fault.value == "" and explorer.panel.window is not None
