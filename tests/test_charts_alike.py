"What all charts have in common: UTC on 24-hour axes, one number format, one error for a name that is not there."
import json
import re

import polars as pl
import pytest
import test_charts_book as book
import test_charts_series as series

from daedalus_etl.core.errors import UnknownFeatureError
from daedalus_etl.explore import charts
from daedalus_etl.explore.pictures import inline, utc_axis

CHARTS = book.CHARTS | series.CHARTS
FORMS = [utc_axis().to_dict()["format"], "%d %b", "%d %b %Y"]       # the last two are of days


def nodes(spec) -> list[dict]:
    "All objects in a chart, however deep."
    inner = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else []
    return [spec] * isinstance(spec, dict) + [n for part in inner for n in nodes(part)]


def texts(spec) -> str:
    return " ".join(json.dumps(n["title"], ensure_ascii=False) for n in nodes(spec) if "title" in n)


def axes(spec) -> list[dict]:
    "The time axes of a chart that have labels."
    times = [n["x"] for n in nodes(spec) if isinstance(n.get("x"), dict) and n["x"].get("type") == "temporal"]
    assert all(x["scale"]["type"] == "utc" for x in times)
    return [x["axis"] for x in times if x.get("axis", {}).get("labels", True) and "axis" in x]


def test_times_are_utc_and_count_to_twenty_four():
    found = {name: axes(draw(theme=None).to_dict()) for name, draw in CHARTS.items()}
    assert all(a["format"] in FORMS for of in found.values() for a in of)
    assert {name for name, of in found.items() if of} == {
        "book_heatmap", "candles", "joined", "series", "series_one_row", "series_window", "coverage_calendar",
        "gap_map", "null_map"}


@pytest.mark.parametrize("name", CHARTS)
def test_thousands_are_set_off_by_commas(name):
    spec = CHARTS[name](theme=None).to_dict()
    assert not re.search(r"(?<![\d:.-])\d{1,3}[ \u2009\u202f]\d{3}(?!\d)", texts(spec))
    assert not re.search(r"(?<![\d.])\d{5,}(?!\d)", texts(spec))
    rows = [n for n in nodes(spec) if n.get("field") == "rows" and "title" in n and "scale" not in n]
    assert all(n["format"] == "," for n in rows)


DAY = series.DAY.with_columns(mid_price=pl.col("x") + 1000)
MISSPELT = {
    "histogram": lambda: charts.histogram(DAY, "mid_prise"),
    "ecdf": lambda: charts.ecdf(DAY, "mid_prise"),
    "box_by_hour": lambda: charts.box_by_hour(DAY, "mid_prise"),
    "series": lambda: charts.series(DAY, "mid_prise"),
    "downsample": lambda: charts.downsample(DAY, "mid_prise"),
    "null_map": lambda: charts.null_map(DAY, ["mid_prise"]),
    "decile_plot": lambda: charts.decile_plot(DAY, "mid_prise", 10),
    "future_return": lambda: charts.future_return(DAY, 10, price="mid_prise"),
    "correlation": lambda: charts.correlation(DAY, ["x", "mid_prise"]),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_name_gets_the_nearest_one(name):
    with pytest.raises(UnknownFeatureError, match="no column 'mid_prise'.*Did you mean 'mid_price'"): MISSPELT[name]()


@pytest.mark.parametrize("draw, lack", [
    (lambda: charts.candles(book.bars_of().drop("close")), "'close'"),
    (lambda: charts.book_heatmap(book.random_books(3).drop("capture_ts")), "'capture_ts'"),
    (lambda: charts.book_heatmap(book.random_books(3).drop("bids")), "no books"),
    (lambda: charts.book_heatmap(book.random_books(), book.trades_of(3).drop("side")), "'side'"),
    (lambda: charts.coverage_calendar(series.DAYS.drop("rows")), "'rows'"),
    (lambda: charts.future_return(DAY.drop("mid_price"), 10), "price="),
    (lambda: charts.gap_map(DAY.drop("capture_ts")), "clock=")])
def test_a_frame_without_what_a_chart_is_of(draw, lack):
    with pytest.raises(UnknownFeatureError, match=lack): draw()


def test_a_table_comes_back_from_the_chart_as_it_was():
    table = pl.DataFrame({"t": [series.T0, None], "x": [0.1 + 0.2, None], "n": [None, 2**53], "ok": [True, False],
                          "text": ['a "b", c\nd', "e"]})
    data = inline(table)
    back = pl.read_csv(data.values.encode(), infer_schema_length=None)
    assert back.drop("t").equals(table.drop("t")) and back["t"].to_list() == [int(series.T0.timestamp() * 1000), None]
    assert data.format.parse == {"t": "number", "x": "number", "n": "number", "ok": "boolean"}
