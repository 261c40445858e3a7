"""A page of a feature family has a formula, a picture that can be heard, and a table of edge cases that is asserted."""
import ast
import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "nbs" / "20_features"
FAMILIES = ["03_trades", "04_ticker", "05_books", "06_depth", "07_bands", "08_shape", "09_cost", "11_order_flow",
            "12_volatility", "13_trade_flow", "14_regime", "15_impact", "16_vpin", "19_bars", "19a_bar_clocks",
            "19c_bar_flow", "19d_bar_sizes", "19e_bar_ranges", "20_cleaning", "21_resample", "23a_estimators",
            "26_grid", "26a_slices", "27_joins"]
ALT = re.compile(r'\A(?:#\| hide\n)?#\| fig-alt: "([^"]{30,110}\.)"\n')
TOO_LARGE = 150_000                                   # characters of one picture
MODULES = sorted(p for d in ("features", "transforms") for p in (ROOT / "daedalus_etl" / d).glob("*.py"))


def cells(page: str) -> list[dict]:
    found = json.loads((PAGES / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in found]


def pictures(page: str) -> list[tuple[str, str]]:
    "Source and SVG of each cell whose output is a picture."
    return [(c["source"], "".join(o["data"]["image/svg+xml"])) for c in cells(page) if c["cell_type"] == "code"
            for o in c["outputs"] if "image/svg+xml" in o.get("data", {})]


@pytest.mark.parametrize("page", FAMILIES)
def test_family_page(page):
    found = cells(page)
    text = "\n".join(c["source"] for c in found if c["cell_type"] == "markdown")
    assert re.search(r"\A# .+\n\n> .+", text), "a title and a subtitle"
    assert re.search(r"\$[^$]+\$", text), "a formula"
    assert pictures(page), "a picture"
    at = [i for i, c in enumerate(found) if c["source"].startswith("## Edge cases")]
    assert len(at) == 1, "one section of edge cases"
    rows = [r for r in found[at[0]]["source"].splitlines() if r.startswith("|")]
    assert re.fullmatch(r"\| case \| (value|what happens) \| why \|", rows[0])
    assert len(rows) >= 2 + 7
    for row in rows: assert len(re.split(r"(?<!\\)\|", row.strip("|"))) == 3, f"three columns: {row}"
    after = list(itertools.takewhile(lambda c: c["cell_type"] == "code", found[at[0] + 1:]))
    held = "\n".join(c["source"] for c in after if not c["source"].startswith("#| hide\nfrom "))     # not the imports
    assert held.count("test_") + held.count("assert ") >= 5


@pytest.mark.parametrize("page", sorted(p.stem for p in PAGES.glob("*.ipynb")))
def test_pictures_can_be_heard_and_are_small(page):
    texts = []
    for source, svg in pictures(page):
        assert (found := ALT.match(source)), f"no alt text, or not one sentence of 30 to 110 letters: {source[:90]!r}"
        texts.append(found[1])
        assert len(svg) < TOO_LARGE, f"{len(svg)} characters: draw fewer marks"
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_public_names_say_what_they_do(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = {e.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
              for e in n.value.elts}
    defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in public]
    methods = [m for n in defined if isinstance(n, ast.ClassDef) for m in n.body
               if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
    assert [n.name for n in (*defined, *methods) if not ast.get_docstring(n)] == []
