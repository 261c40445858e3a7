"What the package's objects show in a notebook: the content, no tag of a stranger, no secret, never much."
import time
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import pytest
from IPython.core.formatters import DisplayFormatter

from daedalus_etl.core import catalog
from daedalus_etl.core.base import TransformContext
from daedalus_etl.core.catalog import Catalogue, Column, declare
from daedalus_etl.core.config import (
    DaedalusConfig,
    FeatureConfig,
    FilterSpec,
    InputConfig,
    OutputConfig,
    StorageConfig,
    TransformConfig,
)
from daedalus_etl.core.enums import FeatureCategory
from daedalus_etl.core.plan import Unit
from daedalus_etl.core.render import MAX_CELL, clip, html, html_table, md, md_code, md_formula, md_settings, md_table
from daedalus_etl.core.report import FOLDED, RunReport, UnitReport
from daedalus_etl.features import orderbook  # noqa: F401  declares the channel's columns
from daedalus_etl.storage.partitions import FileInfo, Partition, PartitionFiles

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a|b", "a\nb\r\nc\u2028d", "</td></table><b>x",
    "`x`", "``` | `", "$x$ $$y$$", "[a](javascript:alert(1))", "![a](http://x/y.png)", '" onmouseover="alert(1)',
    "' x='",
    "&lt;b&gt;", "@cite {{< include x >}}", "\\| \\", "\x1b[31m\x00", "\u202eevil", "**b** _i_ ~s~ # h",
    "\ud800", "--x--"]
SECRET = "s3://me:hunter22@lake/trades"
TAGS = {"table", "thead", "tbody", "tr", "th", "td", "br", "div", "details", "summary", "ul", "li", "b", "code",
        "small", "style", "script", "label", "input", "output", "span"}


def shown(obj) -> dict[str, str]:
    "What IPython's display formatter, which JupyterLab's kernel asks as well, makes of `obj`, by type."
    return DisplayFormatter().format(obj)[0]


class Page(HTMLParser):
    "Tags with their attributes, and text, of HTML."
    def __init__(self, source: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text += data


def harmless(source: str) -> None:
    "Only our own tags, no handlers, no addresses."
    for tag, attrs in Page(source).tags:
        assert tag in TAGS, tag
        assert not [a for a in attrs if a.startswith("on") or a in ("src", "href")], attrs


def cells(table: str) -> list[int]:
    "Cells of each row of the Markdown tables in `table`: bars that no backslash goes before, less one."
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [line.replace("\\\\", "").replace("\\|", "").count("|") - 1 for line in lines]


def report(*units: UnitReport, dry_run: bool = False, **targets: str) -> RunReport:
    "A report of the transform `t`."
    return RunReport("t", "x", dry_run, targets, list(units), 1.5)


# ---- the pieces

@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_text_stays_text(text):
    "In HTML it comes out of a parser as it was, in Markdown it has no tag, no bar and no line end of its own."
    page = Page(html_table([(text,)], "a"))
    harmless(html_table([(text,)], "a", find=[text]))
    visible = "".join(c for line in text.splitlines() for c in (line if line.isprintable() else ""))
    assert not visible or visible in page.text
    for markdown in (md(text), md_code(text)):
        assert "\n" not in markdown and "<script" not in markdown and "<img" not in markdown
        assert set(cells(md_table([(markdown, 1)], "ab"))) == {2}
    assert md(text).encode() and html(text).encode()


@pytest.mark.parametrize("text", [t for t in HOSTILE if t != "\ud800"])
def test_a_markdown_renderer_gives_the_text_back(text):
    "nbconvert's renderer, with tags allowed, makes of it one table with the text in a cell."
    render = pytest.importorskip("mistune").create_markdown(escape=False, plugins=["table"])
    for cell in (md(text), md_code(text)):
        page = Page(render(md_table([(cell, 1)], "ab")))
        assert {tag for tag, _ in page.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "br", "code"}
        assert all(line.strip() in page.text for line in text.splitlines() if line.isprintable())


@pytest.mark.parametrize("sign", "\\`*_[]|$~^#@")
def test_signs_of_markdown_are_escaped(sign):
    assert md(f"a{sign}b") == f"a\\{sign}b"


def test_formulas_survive():
    "LaTeX stays LaTeX but for what would end a cell or begin a tag; a lone dollar is money."
    assert md_formula(r"$\sum_{i<5} |x_i|$ <b> $5") == r"$\sum_{i\lt 5} \vert x_i\vert$ &lt;b&gt; \$5"
    assert md_formula(r"$\|x\|$") == r"$\Vert x\Vert$"


# ---- configuration

def test_settings_say_what_differs_and_what_it_means():
    table = shown(FeatureConfig(depth_levels=10))["text/markdown"].splitlines()
    assert table[0] == "**FeatureConfig**: 1 setting differs from the default"
    assert "| `depth_levels` | **10** | 20 | levels per side |" in table
    assert len(table) == 4 + len(FeatureConfig.model_fields)
    assert [line for line in table if "**" in line][1:] == [line for line in table if "`depth_levels`" in line]


@pytest.mark.parametrize("model", [FeatureConfig, InputConfig, OutputConfig, StorageConfig, FilterSpec, TransformConfig,
                                   DaedalusConfig, TransformContext])
def test_every_setting_has_a_meaning(model):
    "The comment beside the field is found; a field without one has nothing to show."
    from daedalus_etl.core.render import meanings
    fields = getattr(model, "model_fields", None) or model.__dataclass_fields__
    assert [name for name in fields if not meanings(model).get(name)] == []


def test_nested_settings_have_the_path_that_errors_name():
    config = DaedalusConfig(features=FeatureConfig(max_gap_s=60), storage=StorageConfig(compression="gzip"))
    table = shown(config)["text/markdown"]
    assert "| `features.max_gap_s` | **60** | 300 |" in table and "| `storage.compression` | **gzip** | zstd |" in table
    assert "`features.depth_levels`" not in table
    assert f"`features.…` | {len(FeatureConfig.model_fields) - 1} more" in table


def test_no_secret_in_any_form():
    "Neither in the table, nor in the plain text that a saved notebook keeps beside it."
    source, out = InputConfig(name="trades", path=SECRET), OutputConfig(name="silver", path=f"{SECRET}/silver/x")
    config = TransformConfig(name="t", inputs={"trades": source}, outputs={"silver": out})
    storage = StorageConfig(input_root=SECRET)
    run = report(UnitReport("p", "failed", f"no access to {SECRET}"), silver=SECRET)
    for obj in (source, out, config, storage, DaedalusConfig(storage=storage), run):
        for kind, text in shown(obj).items(): assert "hunter22" not in text, (type(obj), kind)
    assert "hunter22" not in str(source) and source.path == SECRET


def test_secrets_are_found_by_name_variable_and_before_the_cut(monkeypatch):
    @dataclass
    class Account:
        api_key: str
        note: str = ""
    monkeypatch.setenv("EXCHANGE_API_SECRET", "correct horse")
    table = md_settings(Account("abc", "x" * (MAX_CELL - 8) + "correct horse"))
    assert "abc" not in table and "correct" not in table and r"\*\*\*" in table


def test_long_values_are_cut():
    config = FeatureConfig(rolling_windows=range(1, 1001), features=["f" * 5000])
    table = shown(config)["text/markdown"]
    assert "… (1000 in all)" in table and len(table) < 6000 and clip("x" * 999, 5) == "xxxx…"


@pytest.mark.parametrize("text", [t for t in HOSTILE if t.isprintable()])
def test_hostile_settings(text):
    config = TransformConfig(name=text, description=text, outputs={},
                             inputs={text: InputConfig(name=text, path=text, channel=text)})
    for obj in (config, FilterSpec(symbol=text), TransformContext(stream=(text, text), execution_id=text)):
        table = shown(obj)["text/markdown"]
        assert set(cells(table)) == {4} and "<script" not in table and "<img" not in table


# ---- the catalogue

@pytest.fixture
def demo():
    "A channel that is declared for one test."
    yield "repr_demo"
    for key in [k for k in catalog._COLUMNS if k[0] == "repr_demo"]: del catalog._COLUMNS[key]


def test_catalogue_shows_families():
    "A row for each declaration that has columns; every column's name is found by the search."
    books = Catalogue("orderbook", FeatureConfig())
    out = shown(books)
    rows = [attrs.get("data-find", "") for tag, attrs in Page(out["text/html"]).tags if tag == "tr"][1:]
    assert len(rows) == len(books.families) < len(books) / 2
    assert {n for f in rows for n in f.split()} | set(books.families) >= set(books)
    assert len(out["text/markdown"].splitlines()) == 4 + len(rows) and set(cells(out["text/markdown"])) == {7}
    assert "`bid_price_L{W}`<br>W = 0 … 19" in out["text/markdown"]
    assert sum(map(len, out.values())) < 60_000 and out["text/plain"] == "Catalogue('orderbook', 228 columns)"
    harmless(out["text/html"])


def test_catalogue_without_scripts_is_a_plain_table():
    "The box is hidden until the script shows it, has a label, and nothing is fetched."
    source = shown(Catalogue("orderbook", FeatureConfig()))["text/html"]
    tags = Page(source).tags
    assert [attrs for tag, attrs in tags if tag == "label"] == [{"hidden": None}]
    assert "Find:" in source.split("<input")[0] and "//" not in source.replace("</", "")
    assert not any("display" in attrs.get("style", "") for _, attrs in tags)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_declarations(demo, text):
    declare(Column(name=f"a{text.replace('{', '')}", channel=demo, unit=text, citation=text, formula=text,
                   category=FeatureCategory.ROLLING, inputs=(text,)))
    catalogue = Catalogue(demo, FeatureConfig())
    harmless(shown(catalogue)["text/html"])
    assert set(cells(shown(catalogue)["text/markdown"])) == {7}
    card = shown(next(iter(catalogue.values())))["text/markdown"]
    assert set(cells(card)) == {2} and "<script" not in card and "<img" not in card


def test_a_columns_card(demo):
    col = Column(name="rv_{W}s", channel=demo, unit="1", category=FeatureCategory.ROLLING, formula="$|r|$", lo=0,
                 warmup=2, per="rolling_windows", citation="A 2001")
    assert "| columns | one for each of `rolling_windows` |" in shown(col)["text/markdown"]
    card = shown(col.bind(FeatureConfig(rolling_windows=[60]))[0])["text/markdown"].splitlines()
    assert card == [
        "| `rv_60s` | repr\\_demo, rolling |", "|---|---|", "| definition | $\\vert r\\vert$ |", "| unit | 1 |",
        "| type | Float64 |", "| bounds | \\[0, \\] |", "| warm-up | 2 observations |", "| source | A 2001 |"]


# ---- reports and plans

def test_plan_and_run_have_their_own_columns():
    unit = UnitReport("p", "new", "no output yet")
    plan = shown(report(unit, dry_run=True, silver="lake/silver/t"))
    assert "plan, nothing is computed. 1 new" in plan["text/markdown"] and "rows" not in plan["text/markdown"]
    assert "- `silver` in `lake/silver/t`" in plan["text/markdown"]
    done = replace(unit, status="written", rows_in=1234, rows={"silver": 1200}, bytes={"silver": 5_000_000},
                   duplicates=34)
    run = shown(report(done))["text/markdown"]
    assert "1 written; 1,234 rows in, 34 repeats dropped; 1.5 s" in run
    assert "| p | written | 1,234 | 1,200 | 5.00 | 0.00 | no output yet |" in run
    assert shown(report())["text/markdown"].startswith("**t**: no partition")


def test_what_failed_comes_first_and_whole():
    reason = "BadDataError: " + "x" * 400
    units = [UnitReport(f"p{i}", "written") for i in range(50)] + [UnitReport("late", "failed", reason)]
    out = shown(report(*units))
    table = [line for line in out["text/markdown"].splitlines() if line.startswith(("| late", "| p"))]
    assert table[1].startswith("| late | failed") and reason in table[1] and reason in out["text/html"]


@pytest.mark.parametrize("status", ["new", "done", "failed"])
def test_ten_thousand_units_stay_small(status):
    folder = "exchange=binance/symbol=BTC-USDT/year=2026/month=01/day=01"
    units = [UnitReport(f"{folder}/hour={i}", status, f"{'r' * 90}{i}") for i in range(10_000)]
    plan = report(*units, dry_run=True, silver="lake/silver/t")
    formatter, took = DisplayFormatter(), []
    for _ in range(5):
        start = time.process_time()
        out = formatter.format(plan)[0]
        took.append(time.process_time() - start)
    assert sum(map(len, out.values())) < 100_000 and len(out["text/plain"]) < 200
    assert min(took) < 0.1            # 10 to 40 ms; the bound leaves room for a slow machine
    assert "10,000" in out["text/markdown"] and f"the first {FOLDED} of them" in out["text/html"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_reports(text):
    units = [UnitReport(text, status, text) for status in ("new", "failed", "done") for _ in range(30)]
    for dry_run, n in ((True, 3), (False, 7)):
        run = RunReport(text, "x", dry_run, {text: text}, units)
        out = shown(run)
        harmless(out["text/html"])
        assert set(cells(out["text/markdown"])) <= {3, n}
        assert "<script>alert" not in out["text/markdown"] and "<img" not in out["text/markdown"]


def test_a_unit_shows_what_it_reads():
    day = Partition.of(exchange="binance", symbol="A|B", year=2026, month=1, day=2)
    files = PartitionFiles(day, (FileInfo("/r/a.parquet", "a.parquet", 1_200_000, 0, 0),) * 2, "/r")
    unit = Unit(day, {"trades": files}, ("ticker",))
    assert repr(unit) == f"Unit({day.path!r}, files of trades: 2)"
    text = shown(unit)["text/markdown"]
    assert "| `trades` | 2 | 2,400,000 | 0 |" in text and "| `ticker` | none |" in text
    assert "the first of its stream" in text
