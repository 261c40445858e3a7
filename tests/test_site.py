"""tools/site.py finds each kind of fault of the site, and finds none in ours; the workflows are ones that can run."""
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TITLE = "# A page\n\n> What it is about."
QUARTO = """
website:
  navbar:
    left:
      - text: Home
        href: index.ipynb
  sidebar:
    contents:
      - index.ipynb
      - section: Parts
        contents: "10_part/*.ipynb"
"""
STUB = "metadata-files: [../_quarto.yml]\nbibliography: references.bib\n"


def module(name: str):
    "A tool of tools/ as a module."
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def tool():
    "tools/site.py, with nothing remembered."
    return module("site")


def md(source, id="pr05e000"):
    return dict(cell_type="markdown", id=id, metadata={}, source=source.splitlines(keepends=True))


def code(source, id="c0de0000", **data):
    out = [dict(output_type="execute_result", metadata={}, data={k.replace("__", "/"): v for k, v in data.items()})]
    return dict(cell_type="code", id=id, metadata={}, source=source.splitlines(keepends=True), execution_count=None,
                outputs=out if data else [])


def notebook(*cells):
    return json.dumps(dict(cells=list(cells), nbformat=4, nbformat_minor=5, metadata={}))


@pytest.fixture
def site(tool, tmp_path):
    "Faults of a small site: index, one part, and whatever a test adds or changes."
    files = {"_quarto.yml": QUARTO, "nbs/_quarto.yml": STUB, "nbs/references.bib": "@article{kyle1985,\n title={x}}\n",
             "nbs/10_part/00_one.ipynb": notebook(md(TITLE), md("## First things\n\nText.")),
             "nbs/index.ipynb": notebook(md(TITLE), md("See [one](10_part/00_one.ipynb#first-things)."))}

    def faults(*cells, **changed):
        made = files | ({"nbs/index.ipynb": notebook(md(TITLE), *cells)} if cells else {})
        for name, content in (made | changed.pop("files", {})).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content, encoding="utf-8")
        return tool.faults(tmp_path, quick=True)
    return faults


def only(faults: list[str]) -> str:
    "The one fault that there is."
    assert len(faults) == 1, faults
    return faults[0]


def test_a_sound_site_has_no_faults(site):
    assert site() == []


# titles

@pytest.mark.parametrize(("first", "why"), [
    ("Text.", "no title"), ("# A page", "no subtitle"), (f"{TITLE}\n\nAn introduction.", "lost on the site"),
    (f"{TITLE}\n\n- **Bold.** With a colon: like this", "lost on the site")])
def test_titles(site, first, why):
    assert why in only(site(files={"nbs/10_part/00_one.ipynb": notebook(md(first), md("## First things"))}))


def test_a_title_may_have_keys(site):
    page = notebook(md(f"{TITLE}\n\n- skip_showdoc: true"), md("## First things"))
    assert site(files={"nbs/10_part/00_one.ipynb": page}) == []


def test_imports_stand_alone(site):
    assert "imports stand beside" in only(site(code("import os\nos.getcwd()")))
    assert site(code("import os\nimport sys"), code("#| export\nimport os\nx = os.sep"), code("%time x"),
                code("import altair as alt\nalt.renderers.enable('svg');")) == []
    assert "imports stand beside" in only(site(code("def f():\n    import os\n    return os")))


# links

@pytest.mark.parametrize(("text", "why"), [
    ("[x](nowhere.ipynb)", "no such file"), ("[x](10_part/00_one.ipynb#second)", "#second"),
    ("[x](#nothing)", "#nothing"), ("[x](../README.md)", "outside of nbs/"), ("[x](10_part)", "no page"),
    ("[x](/index.html)", "absolute"), ('<a href="10_part/two.html">x</a>', "no such file"),
    ("[x]: gone.ipynb", "no such file"), ("[see [1]](gone.ipynb)", "no such file")])
def test_broken_links(site, text, why):
    assert why in only(site(md(text), files={"README.md": "text"}))


@pytest.mark.parametrize("text", [
    "[x](https://example.com/y#z)", "[x](10_part/one.html#first-things)", "`[x](nowhere.ipynb)`",
    "```\n[x](nowhere.ipynb)\n```", "[x](#here)\n\n## Here", "[x](#own) \n\n## Here {#own}", "[x](mailto:a@b.c)"])
def test_good_links(site, text):
    assert site(md(text)) == []


def test_links_of_outputs_and_files(site):
    assert "gone.html" in only(site(code("table", text__html="<a href='gone.html'>x</a>")))
    assert "gone.ipynb" in only(site(code("show", text__markdown=["[x](gone.ipynb)"])))
    assert site(code("#| hide\ntable", text__html="<a href='gone.html'>x</a>")) == []
    assert "README.md: link gone" in only(site(files={"README.md": "[x](gone)"}))


def test_exported_names_are_anchors(site):
    page = notebook(md(TITLE), code("#| export\nclass Welford:\n    pass"), md("## First things"))
    assert site(md("[x](10_part/00_one.ipynb#welford)"), files={"nbs/10_part/00_one.ipynb": page}) == []


@pytest.mark.parametrize(("heading", "anchor"), [
    ("First things", "first-things"), ("`daedalus run`: all of it", "daedalus-run-all-of-it"), ("2. Next", "next"),
    ("Kyle's *lambda*", "kyles-lambda"), ("[A link](x) here", "a-link-here"), ("Named {#so}", "so"),
    ("123", "section")])
def test_slug(tool, heading, anchor):
    "As pandoc's auto_identifiers makes them."
    assert tool.slug(heading) == anchor


def test_equal_headings_are_numbered(site):
    assert site(md("[x](#same-1)\n\n## Same\n\n## Same")) == []


# citations

def test_citations(site):
    assert "@hasbrouck1991" in only(site(md("So it is [@kyle1985; see @hasbrouck1991, p. 3].")))
    assert site(md("`[@nobody]` [mail](mailto:x@y.z) [-@kyle1985]")) == []


def test_the_bibliography_exists(tool, site, tmp_path):
    site()
    (tmp_path / "nbs" / "references.bib").unlink()
    assert "references.bib is missing" in only(tool.faults(tmp_path, quick=True))


# pictures

def test_scripts_from_elsewhere(site):
    chart = '<div></div><script>load("https://cdn.example.org/vega")</script>'
    assert "another host" in only(site(code('#| fig-alt: "The mid over a day"\nchart', text__html=chart)))
    assert site(code("table", text__html='<a href="https://x.org">x</a><script>filter()</script>')) == []


def test_pictures_have_words(site):
    assert "no alt text" in only(site(md("![](data.png)"), files={"nbs/data.png": ""}))
    assert site(md("![A chart of the mid](data.png)"), files={"nbs/data.png": ""}) == []
    assert "fig-alt" in only(site(code("chart", image__png="x")))
    assert "fig-alt" in only(site(code("chart", text__html="<div><svg></svg></div>")))
    assert "fig-alt" in only(site(code("#| fig-alt: Chart\nchart", image__png="x")))
    assert site(code('#| fig-alt: "The mid over a day"\nchart', image__png="x"), code("#| hide\nchart", image__png="x"),
                code("#| output: false\nchart", image__png="x"), code("frame", text__html="<table></table>")) == []


# docstrings

@pytest.mark.parametrize(("source", "why"), [
    ("def f(): return 1", "f has no docstring"), ('def f():\n    "Does f."', "f has no docstring"),
    ('class f:\n    "A class of things."\n    def g(self): pass', "f.g has no docstring"),
    ('@jit\ndef f(x, out):\n    "Sums of the values `x` (us)."\n    out[0] = x[0]', "what is written: out"),
    ('@jit\ndef f(x, out):\n    "Write sums into `out`, at last."\n    out[0] = x[0]', "no shape, unit or range")])
def test_docstrings(site, source, why):
    assert why in only(site(files={"daedalus_etl/m.py": f"__all__ = ['f']\n{source}\n"}))


@pytest.mark.parametrize("source", [
    'def f():\n    "What is returned: one."', "def _f(): return 1", "def g(): return 1",
    '@jit\ndef f(x, out):\n    "Write sums into `out` (n) of `x` (n)."\n    out[0] = x[0]',
    '@jit\ndef f(x, out):\n    "Columns `SUMS` (2, n) of all rows."\n    out[0] = x[0]',
    '@jit\ndef f(s):\n    "Take one event in."\n    s["n"] += 1'])
def test_sound_docstrings(site, source):
    assert site(files={"daedalus_etl/m.py": f"__all__ = ['f']\n{source}\n"}) == []


# the sidebar

def test_sidebar(site):
    assert "gone.ipynb names no page" in only(site(files={"_quarto.yml": QUARTO + "      - gone.ipynb\n"}))
    none = QUARTO + "      - auto: '20_more/*.ipynb'\n"        # quarto itself fails on a pattern without a page
    assert "20_more/*.ipynb names no page" in only(site(files={"_quarto.yml": none}))
    extra = {"nbs/extra.ipynb": notebook(md(TITLE))}
    assert "extra.ipynb is not in the sidebar" in only(site(files=extra))


def test_two_notebooks_cannot_make_one_page(site):
    found = site(files={"nbs/10_part/01a_one.ipynb": notebook(md(TITLE))})
    assert "two notebooks make the page 10_part/one.html" in only(found)


def test_our_sections():
    "The sidebar's parts, in the order of reading."
    contents = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    assert [c["section"] for c in contents] == [
        "Start", "Tutorials", "Feature families", "Bars and transforms", "Explore", "Research", "Storage", "Running",
        "Core", "Reference"]


# nbdev

def test_preprocessing(tool, tmp_path):
    "What nbdev does before quarto: an exported annotation that is not defined, code without what it needs."
    def faults(*cells):
        nb = tmp_path / "x.ipynb"
        nb.write_text(notebook(md(TITLE), *cells), encoding="utf-8")
        return tool.process(str(nb))

    assert faults(code("#| default_exp x"), code("#| export\ndef f(): 'One thing.'")) is None
    assert "NameError" in faults(code("#| default_exp x"), code("#| export\ndef f(x: Missing): 'One thing.'"))
    assert "NameError" in faults(code("missing = 1"), code("import os\nmissing + 1"), code("#| export\nx = 1"))


def test_fix_splits_what_nbdev_would_cut(tool, tmp_path):
    nb = tmp_path / "x.ipynb"
    nb.write_text(notebook(
        md(f"{TITLE}\n\nAn introduction."),
        code("#| hide\nimport os\nfrom sys import path\n\nos.sep", text__plain="'/'"),
        code("def f():\n    import os\n    return os", id="c0de0001")), encoding="utf-8")
    assert tool.fix(nb)
    cells = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    assert ["".join(c["source"]) for c in cells[:4]] == [
        TITLE, "An introduction.", "#| hide\nimport os\nfrom sys import path", "#| hide\nos.sep"]
    assert [len(c.get("outputs", [])) for c in cells] == [0, 0, 0, 1, 0]
    assert len({c["id"] for c in cells}) == 5
    assert not tool.fix(nb)                                  # the rest needs a hand


# ours

def test_our_site_has_no_faults(tool):
    assert tool.faults(ROOT, quick=True) == []


def test_check_says_so(monkeypatch, capsys):
    tool = module("site")
    monkeypatch.setattr(tool, "faults", lambda **kw: ["nbs/x.ipynb: one", "nbs/y.ipynb: two"])
    assert tool.main(["--check", "--quick"]) == 1
    assert capsys.readouterr().err == "nbs/x.ipynb: one\nnbs/y.ipynb: two\n"
    monkeypatch.setattr(tool, "faults", lambda **kw: [])
    assert tool.main(["--check"]) == 0


def test_the_table_lists_every_column():
    "The page as it is committed, against the catalogue as it is: run the notebook again if a declaration changed."
    probe = ("import json\n"
             "from daedalus_etl.features import bars, orderbook, ticker, trades\n"
             "from daedalus_etl.labels import columns\n"
             "from daedalus_etl.core.catalog import Catalogue, channels\n"
             "from daedalus_etl.core.config import FeatureConfig\n"
             "c = FeatureConfig(ofi_per_level=True)\n"
             "print(json.dumps({ch: [[x.name, x.citation] for x in Catalogue(ch, c).values()] for ch in channels()}))")
    said = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    cells = json.loads((ROOT / "nbs" / "feature_table.ipynb").read_text(encoding="utf-8"))["cells"]
    html = "".join("".join(o["data"].get("text/html", "")) for c in cells for o in c.get("outputs", []))
    assert "https://" not in html and "http://" not in html and 'label for="columns-find"' in html
    parts = dict(zip(*[iter(re.split(r'<tbody id="columns-(\w+)">', html)[1:])] * 2, strict=True))
    declared = json.loads(said)
    assert sorted(parts) == sorted(declared)
    for channel, columns in declared.items():
        rows = [(set(names.split()), row) for names, row in
                re.findall(r'<tr data-names="([^"]*)">(.*?)</tr>', parts[channel], re.S)]
        for name, citation in columns:
            (row,) = [row for names, row in rows if name in names]
            assert citation.replace("&", "&amp;").replace("'", "&#x27;") in row, (channel, name)


def test_the_reference_lists_every_name(tool):
    "The page as it is committed: run the notebook again if a public name came, went, or says something else."
    cells = json.loads((ROOT / "nbs" / "reference.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = "".join("".join(o["data"].get("text/markdown", "")) for c in cells for o in c.get("outputs", []))
    parts = dict(zip(*[iter(re.split(r"^### (\S+)$", shown, flags=re.M)[1:])] * 2, strict=True))
    for path in sorted((ROOT / "daedalus_etl").rglob("*.py")):
        names = tool.public(tool.ast.parse(path.read_text(encoding="utf-8")))
        module = ".".join(p for p in path.relative_to(ROOT / "daedalus_etl").with_suffix("").parts if p != "__init__")
        listed = set(re.findall(r"^\| \[(\w+)\]", parts.get(module, ""), re.M))
        assert listed == names, f"{module}: {sorted(listed ^ names)}"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_table_is_searched(tmp_path):
    "In a browser: the box is found by its label, hides rows and empty groups, and nothing is fetched."
    playwright = pytest.importorskip("playwright.sync_api")
    cells = json.loads((ROOT / "nbs" / "feature_table.ipynb").read_text(encoding="utf-8"))["cells"]
    html = next(h for c in cells for o in c.get("outputs", []) if "<table" in (h := "".join(o["data"]["text/html"])))
    page_file = tmp_path / "table.html"
    page_file.write_text(f"<!doctype html><meta charset='utf-8'><body>{html}</body>", encoding="utf-8")
    asked = []
    with playwright.sync_playwright() as run:
        browser = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.goto(page_file.as_uri())
        rows, groups = page.locator("tr[data-names]:visible"), page.locator("tbody:visible")
        everything = rows.count()
        page.get_by_label("Find columns").fill("VWAP_60s")
        found = (rows.count(), groups.count(), page.get_by_role("status").inner_text())
        page.get_by_label("Find columns").fill("bid_price_L7")
        level = rows.locator("th").all_inner_texts()
        page.get_by_label("Find columns").fill("")
        again = rows.count()
        browser.close()
    assert found == (1, 1, f"1 of {everything} rows") and everything == again > 200
    assert level == ["bid_price_L{0 .. 19}"] and asked == [page_file.as_uri()]


@pytest.mark.parametrize("name", ["test", "docs"])
def test_workflows(name):
    "They parse, pin each action to a major version, and name files and targets that exist."
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    flow = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [s for job in flow["jobs"].values() for s in job["steps"]]
    assert all(re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", s["uses"]) for s in steps if "uses" in s)
    assert flow["permissions"] == {"contents": "read"}
    commands = "\n".join(s.get("run", "") for s in steps)
    for file in re.findall(r"(?:\.ci/\w+|tools/\w+\.py)", commands): assert (ROOT / file).is_file(), file


def test_workflow_covers_the_supported_pythons():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert flow["jobs"]["test"]["strategy"]["matrix"]["python"] == re.findall(r'"(3\.\d+)"', setup)
