"Progress as a terminal is sent it, and as a file is not; what a notebook is sent has the same words."
import io
import re
import sys

import lakes
import pytest
from lakes import BTC, ETH, SMALL, put, tape

from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.progress import Pace
from daedalus_etl.core.report import UnitReport


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.fixture
def bronze(tmp_path):
    for stream in (BTC, ETH):
        for day in (8, 9, 10): put(tmp_path / "bronze", tape(day, n=20, stream=stream), day, stream)
    return tmp_path / "bronze"


def shown(monkeypatch, where, bronze, lake, **kwargs) -> str:
    "What a run writes to stderr."
    monkeypatch.setattr(sys, "stderr", where)
    TransformExecutor(SMALL, **{"workers": 2} | kwargs).execute(lakes.trades(bronze, lake))
    return where.getvalue()


def test_a_terminal_sees_the_total_and_the_chains(monkeypatch, bronze, tmp_path):
    text = shown(monkeypatch, Terminal(), bronze, tmp_path / "lake")
    assert "trades_features: 100%" in text and "6/6" in text
    assert re.search(r"[\d.]+ MB/s, [\d,]+ rows/s, 0:00:0\d left", text)
    for symbol in ("BTC-USDT", "ETH-USDT"): assert re.search(rf"binance {symbol}: \d/3", text)
    assert "\x1b[A" in text                                     # the lines of the chains stand below the total


def test_lines_are_bounded_by_the_workers(monkeypatch, bronze, tmp_path):
    text = shown(monkeypatch, Terminal(), bronze, tmp_path / "lake", workers=1)
    assert "\n\n" not in text.replace("\r", "")                 # one line below the total at a time
    assert "BTC-USDT: 0/3" in text and "ETH-USDT: 0/3" in text


def test_up_to_date_costs_nothing_and_has_no_rate(monkeypatch, bronze, tmp_path):
    shown(monkeypatch, io.StringIO(), bronze, tmp_path / "lake")
    text = shown(monkeypatch, Terminal(), bronze, tmp_path / "lake")
    assert "6/6" in text and "rows/s" not in text


def test_a_notebook_sees_them_too(monkeypatch, bronze, tmp_path):
    notebook, made = pytest.importorskip("tqdm.notebook"), []

    class Bar(notebook.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, display=False, **kwargs)
            made.append((self, self.disable))      # when it is closed it is disabled, too

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    shown(monkeypatch, io.StringIO(), bronze, tmp_path / "lake")
    assert [(off, b.n, b.total) for b, off in made] == [(False, 6, 6), (False, 3, 3), (False, 3, 3)]
    assert "left" in made[0][0].container.children[-1].value


@pytest.mark.parametrize(("where", "progress"), [(io.StringIO, True), (Terminal, False)])
def test_silent_where_nobody_looks(monkeypatch, bronze, tmp_path, where, progress):
    assert shown(monkeypatch, where(), bronze, tmp_path / "lake", progress=progress) == ""


def test_time_left_is_judged_by_bytes():
    pace = Pace(100 + 900 + 9000)
    pace.begin(10.0)
    pace.add(100, UnitReport("a", "done"))
    pace.add(900, UnitReport("b", "written", rows_in=50))
    assert pace.words(19.0) == "0.0 MB/s, 6 rows/s, 0:01:30 left"
