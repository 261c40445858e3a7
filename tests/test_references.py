"""Every source that is named has an entry in nbs/references.bib, and every entry is cited on a page."""
import json
import re
import unicodedata
from pathlib import Path
from typing import get_args

import pytest

import daedalus_etl.features.bars  # noqa: F401  declares the bars' columns
import daedalus_etl.features.orderbook  # noqa: F401
import daedalus_etl.features.ticker  # noqa: F401
import daedalus_etl.features.trades  # noqa: F401
import daedalus_etl.labels.columns  # noqa: F401
from daedalus_etl.core import catalog
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.feature_config import BarBlock

EVERYTHING = FeatureConfig(bar_blocks=get_args(BarBlock))
NBS = Path(__file__).resolve().parents[1] / "nbs"
BIB = NBS / "references.bib"
NEEDED = {
    "article": {"author", "title", "journal", "year", "volume", "pages"},
    "book": {"author", "title", "publisher", "year"},
    "phdthesis": {"author", "title", "school", "year"}, "mastersthesis": {"author", "title", "school", "year"},
    "techreport": {"author", "title", "institution", "year"}, "misc": {"author", "title", "year"}}
CITED = re.compile(r"(?<![\w.])-?@([a-z]+[0-9]{4}[a-z]*)\b")
ACCENT = re.compile(r"""\\(?:['`"^~=.]|[cHuv](?=[{\s]))\s*\{?\\?([A-Za-z])\}?""")
LETTERS = {r"\ae": "ae", r"\AE": "AE", r"\o": "o", r"\O": "O", r"\ss": "ss", r"\aa": "a", r"\l": "l"}


def folded(text: str) -> str:
    "Text as plain ASCII lower case: TeX accents and braces gone, `Næs` and `N{\\ae}s` both `naes`."
    for tex, plain in LETTERS.items(): text = re.sub(re.escape(tex) + r"(?![A-Za-z])", plain, text)
    text = ACCENT.sub(r"\1", text).replace("{", "").replace("}", "")
    text = text.translate(str.maketrans({"æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ß": "ss", "ł": "l"}))
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(text.split()).lower()


def braced(text: str, at: int) -> tuple[str, int]:
    "What stands between the brace at `at` and the one that closes it, and the place after that."
    depth = 0
    for i in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0: return text[at + 1:i], i + 1
    raise ValueError(f"brace at {at} is never closed: {text[at:at + 60]!r}")


def fields_of(body: str, key: str) -> dict[str, str]:
    "`name = {value}, ...` as a dict; anything else between the fields is an error."
    fields, at = {}, 0
    while m := re.compile(r"\s*([a-z]+)\s*=\s*(?=\{)").match(body, at):
        value, at = braced(body, m.end())
        if m[1] in fields: raise ValueError(f"{key}: {m[1]} is given twice")
        if not value.strip(): raise ValueError(f"{key}: {m[1]} is empty")
        fields[m[1]] = value
        comma = re.compile(r"\s*,").match(body, at)
        if not comma: break
        at = comma.end()
    if body[at:].strip(): raise ValueError(f"{key}: cannot read {body[at:].strip()[:60]!r}")
    return fields


def parse_bib(text: str) -> dict[str, dict[str, str]]:
    "Entries by key, each with its fields and its `type`. Strict: what is neither an entry nor a comment is an error."
    text, entries, at = re.sub(r"(?m)^%.*$", "", text), {}, 0
    while m := re.compile(r"\s*@([a-z]+)(?=\{)").match(text, at):
        body, at = braced(text, m.end())
        key, comma, rest = body.partition(",")
        if not comma or not re.fullmatch(r"[a-z0-9]+", key): raise ValueError(f"bad key {key[:40]!r}")
        if key in entries: raise ValueError(f"{key} stands twice")
        entries[key] = fields_of(rest, key) | {"type": m[1]}
    if text[at:].strip(): raise ValueError(f"cannot read {text[at:].strip()[:60]!r}")
    return entries


def family(entry: dict[str, str]) -> str:
    "The first author's family name, folded."
    first = re.split(r"\s+and\s+", entry["author"])[0]
    return folded(first.split(",")[0] if "," in first else first)


def works(citation: str) -> list[str]:
    return [w.strip() for w in citation.split(";") if w.strip()]


def resolved(work: str, entries: dict) -> list[str]:
    "Keys of the entries that `work` (`Cont, Kukanov, Stoikov 2014`, or a standard's number) names."
    if standard := [k for k, e in entries.items() if e.get("number") == work]: return standard
    m = re.fullmatch(r"(.+) (\d{4})", work)
    if not m: return []
    names, year = m.groups()
    first = folded(re.split(r",| & | and ", names)[0])
    return [k for k, e in entries.items() if e["year"] == year and family(e) == first]


def notebooks() -> list[Path]:
    "The sources of pages: all notebooks but those below hidden or made folders."
    return sorted(p for p in NBS.rglob("*.ipynb") if not any(q[0] in "._" for q in p.relative_to(NBS).parts))


def markdown(nb: Path) -> list[str]:
    cells = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]


def cited(nb: Path) -> set[str]:
    return {k for cell in markdown(nb) for k in CITED.findall(cell)}


@pytest.fixture(scope="module")
def entries():
    return parse_bib(BIB.read_text(encoding="utf-8"))


def catalogue_works() -> list[tuple[str, str]]:
    return sorted({
        (work, f"{channel}.{column.name}") for channel in catalog.channels()
        for column in catalog.Catalogue(channel, EVERYTHING).values() for work in works(column.citation)})


def test_every_entry_is_complete(entries):
    assert len(entries) > 40
    for key, e in entries.items():
        assert NEEDED[e["type"]] <= e.keys(), f"{key} lacks {NEEDED[e['type']] - e.keys()}"
        assert re.fullmatch(r"1[89]\d\d|20\d\d", e["year"]), key
        assert "doi" not in e or re.fullmatch(r"10\.\d{4,5}/\S+", e["doi"]), f"{key}: {e['doi']} is no DOI"
        assert "pages" not in e or re.fullmatch(r"\d+(--\d+)?", e["pages"]), f"{key}: pages {e['pages']}"
        assert "url" not in e or e["url"].startswith("https://"), key


def test_keys_say_who_and_when(entries):
    for key, e in entries.items():
        if key == "iso8601": continue
        start = re.sub(r"[^a-z]", "", family(e)) + e["year"]
        title = re.sub(r"^((a|an|the|on) )+", "", folded(e["title"]))
        assert key == start + re.findall(r"[a-z]+", title)[0], f"{key}: expected {start} and a word of {title!r}"


def test_a_doi_stands_once(entries):
    dois = [e["doi"].lower() for e in entries.values() if "doi" in e]
    assert len(dois) == len(set(dois))


def test_every_work_of_the_catalogue_has_one_entry(entries):
    named = catalogue_works()
    assert len(named) > 25
    missing = {f"{work} ({where})": found for work, where in named if len(found := resolved(work, entries)) != 1}
    assert not missing


def test_every_key_of_a_notebook_has_an_entry(entries):
    unknown = {f"{nb.relative_to(NBS)}: {key}" for nb in notebooks() for key in cited(nb) - entries.keys()}
    assert not unknown


def test_every_entry_is_cited_on_a_page(entries):
    assert not entries.keys() - {key for nb in notebooks() for key in cited(nb)}


def test_a_page_that_cites_lists_its_references():
    for nb in notebooks():
        cells = markdown(nb)
        lists = [c for c in cells if re.search(r"(?m)^## References$", c) and "::: {#refs}\n:::" in c]
        assert len(lists) == bool(cited(nb)), f"{nb.relative_to(NBS)}: expected a last cell with '## References'"
        if lists: assert cells[-1] == lists[0], f"{nb.relative_to(NBS)}: the references stand last"


def test_the_site_knows_the_file():
    assert re.search(r"(?m)^bibliography: references\.bib$", (NBS / "_quarto.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text, why", [
    ("@article{a2000b, title = {x}", "never closed"), ("@article{a2000b, title = {x} year = {1}}", "cannot read"),
    ("@article{a2000b, title = {}}", "empty"), ("@article{A b, title = {x}}", "bad key"),
    ("@book{a2000b, title = {x}}\n@book{a2000b, title = {x}}", "twice"), ("stray", "cannot read"),
    ("@book{a2000b, title = {x}, title = {y}}", "given twice")])
def test_a_broken_file_is_found(text, why):
    with pytest.raises(ValueError, match=why): parse_bib(text)


def test_names_are_folded():
    assert folded(r"N{\ae}s") == folded("Næs") == folded("Naes")
    assert folded(r"M{\'e}zard") == folded("Mézard") and folded(r"A{\"\i}t-Sahalia") == folded("Aït-Sahalia")
    some = parse_bib("@book{ohara1995market, author = {O'Hara, Maureen}, title = {x}, year = {1995}}")
    assert resolved("O'Hara 1995", some) == ["ohara1995market"] and resolved("O'Hara 1996", some) == []
    assert CITED.findall("as [Lee -@lee1991inferring; @cont2014price] and a@b2000c say") == [
        "lee1991inferring", "cont2014price"]
