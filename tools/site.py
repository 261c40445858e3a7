"""What can be wrong with the site, found without quarto: `python tools/site.py --check` (exit 1, one line per fault).

Titles, links and their anchors, citations, alt texts, docstrings, the sidebar, and whether nbdev can preprocess each
notebook. `--quick` leaves the preprocessing out, which executes code (a minute); `--fix` splits cells that nbdev would
cut short: text beside a title, imports beside other code."""
import argparse
import ast
import json
import os
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data_samples/README.md")
SHOWN_PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
CHART_MIME = re.compile(r"application/vnd\.vega(lite)?\.v\d")
REMOTE = re.compile(r"<script\b(?:(?!</script).)*?https?://", re.S)
DRAWING = re.compile(r"<svg\b|<canvas\b|vega-embed|vegaEmbed")
MIN_ALT = 12                     # characters: less says nothing about a picture
MIN_WORDS = 3                    # of a docstring: less says what the name says
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\n]*$|(`+)(?!`).+?(?<!`)\2(?!`)", re.S | re.M)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HREF = re.compile(r"""<(a|img|script|link)\b[^>]*?\b(?:href|src)=["']([^"']+)["'][^>]*>""", re.I | re.S)
CITED = re.compile(r"\[([^\[\]]*@[^\[\]]*)\](?!\()")
CITE_KEY = re.compile(r"(?<![\w.])-?@([A-Za-z0-9_][\w:.#$%&+?<>~/-]*[\w])")
DIRECTIVE = re.compile(r"^\s*#\|\s*(.*?)\s*$", re.M)
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$", re.M)
# state and tapes that all kernels share: explained once, in features.streaming
SHARED = {"s", "acc", "suffix", "rec", "w", "win", "rows", "p", "q", "d"}
# the shape of a result, in the first line
RESULT = re.compile(r"\([^()]*\b(?:n|hi - lo|hi-lo)\b[^()]*\)")
# a shape `(2, n)`, a unit `(bps)`, a part `x[:n]` or rows `lo .. hi`
SHAPE = re.compile(r"\([^()]*\b(?:n|k|L|m|hi|window|us|s|bps|base|quote|u?int\d+|bool|float\d+|lots|ticks|\d)\b[^()]*\)"
                   r"|`\w+\[|\w+ \.\. \w+|\[\w+, \w+\)|\b(?:us|bps|s|base|quote)\b"
                   r"|\b(?:level|row|book|trade)s?\b")


def text(value) -> str:
    "A notebook stores text whole or as a list of lines."
    return value if isinstance(value, str) else "".join(value)


@cache
def cells(nb: Path) -> list[dict]:
    "The cells of a notebook."
    return json.loads(nb.read_text(encoding="utf-8"))["cells"]


@cache
def pages(root: Path) -> tuple[Path, ...]:
    "The notebooks that nbdev takes for pages, in the order of their names."
    found = sorted((root / "nbs").rglob("*.ipynb"))
    return tuple(p for p in found if not any(part[0] in "._" for part in p.relative_to(root / "nbs").parts))


def marks(cell: dict) -> list[str]:
    "The directives of a cell, without `#|`."
    return DIRECTIVE.findall(text(cell["source"]))


def is_code(cell: dict) -> bool: return cell["cell_type"] == "code"

def words_of(mark: str) -> str: return mark.replace(":", " ").split()[0] if mark else ""

def on_site(cell: dict) -> bool:
    "Whether a code cell stands on its page at all; nbdev leaves exported and hidden ones out."
    said = marks(cell)
    return not {"hide", "export", "exporti", "default_exp"} & set(map(words_of, said)) and "include: false" not in said

def no_code(markdown: str) -> str:
    "Markdown without code, in which nothing is a link; lines stay where they are."
    return CODE.sub(lambda m: "\n" * m[0].count("\n"), markdown)


# pages and their anchors

def html_name(nb: Path) -> str:
    "The name of a notebook's page, as nbdev makes it: without the leading number."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", nb.stem.lower()) + ".html"

def slug(heading: str) -> str:
    "The anchor that pandoc gives a heading."
    if own := re.search(r"\{[^}]*#([\w.:-]+)[^}]*\}\s*$", heading): return own[1]
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    plain = re.sub(r"[^\w\s.-]", "", re.sub(r"\s*\{[^}]*\}\s*$", "", plain)).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", plain)) or "section"

def exported_names(cell: dict) -> list[str]:
    "The names for which nbdev puts a heading on the page."
    if not is_code(cell) or not {"export", "exports"} & set(map(words_of, marks(cell))): return []
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [n.name for n in ast.parse(text(cell["source"])).body if isinstance(n, kinds) and n.name[0] != "_"]

@cache
def anchors(path: Path) -> frozenset[str]:
    "The anchors of a page or markdown file; of equal headings the second is `x-1`."
    if path.suffix == ".md": parts, names = [path.read_text(encoding="utf-8")], []
    else:
        shown = [text(c["source"]) for c in cells(path) if c["cell_type"] == "markdown"]
        parts, names = shown, list(chain.from_iterable(map(exported_names, cells(path))))
    titles = [t for p in parts for _, t in HEADING.findall(re.sub(r"^```.*?^```", "", p, flags=re.S | re.M))]
    seen, found = Counter(), set()
    for s in map(slug, titles + names):
        found.add(f"{s}-{seen[s]}" if seen[s] else s)
        seen[s] += 1
    return frozenset(found | set(re.findall(r"""\bid=["']([\w.:-]+)["']""", "\n".join(parts))))


# faults, each a line `where: what`

def title_faults(nb: Path, where: str):
    "A page begins with a cell of `# Title` and `> Subtitle`, whose other text nbdev would drop."
    first = next((c for c in cells(nb) if c["cell_type"] != "raw"), None)
    lines = [line for line in text(first["source"]).splitlines() if line.strip()] if first else []
    if not lines or not lines[0].startswith("# "): yield f"{where}: the first cell is no title (`# Title`)"; return
    if not any(line.startswith("> ") for line in lines): yield f"{where}: no subtitle (`> ...`) below the title"
    rest = [line for line in lines[1:] if not re.match(r"> |- [\w-]+: \S", line)]
    if rest: yield f"{where}: text beside the title is lost on the site: {rest[0][:60]!r} (run with --fix)"

def import_faults(nb: Path, where: str):
    "nbdev executes cells with imports to make the pages, so other code beside them runs without what it needs."
    for c in filter(is_code, cells(nb)):
        if mixed(c): yield f"{where}: cell {c['id']}: imports stand beside other code (run with --fix)"

def mixed(cell: dict) -> bool:
    "Whether nbdev would execute more than the imports of a cell that is not exported."
    if {"export", "exports", "exporti"} & set(map(words_of, marks(cell))) or "eval: false" in marks(cell): return False
    try: tree = ast.parse(text(cell["source"]))
    except SyntaxError: return False           # a magic
    nodes = list(ast.walk(tree))
    return (any(isinstance(n, ast.Import | ast.ImportFrom) for n in nodes)
            and any(not isinstance(n, ast.Import | ast.ImportFrom) and not renders(n) for n in tree.body))

def renders(node: ast.stmt) -> bool:
    "Statements on a renderer or an option, which do no harm beside an import."
    return isinstance(node, ast.Expr) and bool(re.match(r"alt\.\w+\.(enable|disable_max_rows)\(", ast.unparse(node)))

def outputs(cell: dict) -> list[dict]:
    "What a cell shows, by MIME type."
    if not is_code(cell) or not on_site(cell) or "output: false" in marks(cell): return []
    return [o["data"] for o in cell["outputs"] if "data" in o]

def prose(path: Path):
    "Pieces of markdown of a page or file: cells, markdown outputs and (as `html`) HTML outputs."
    if path.suffix == ".md": yield "markdown", path.read_text(encoding="utf-8"); return
    for c in cells(path):
        if c["cell_type"] == "markdown": yield "markdown", text(c["source"])
        for data in outputs(c):
            if "text/markdown" in data: yield "markdown", text(data["text/markdown"])
            elif "text/html" in data: yield "html", text(data["text/html"])

def links(kind: str, piece: str):
    "Targets of the links and pictures in a piece."
    if kind == "markdown":
        piece = no_code(piece)
        yield from (m[3] for m in LINK.finditer(piece))
        yield from re.findall(r"^\[[^\]^]+\]:\s+(\S+)", piece, re.M)
    yield from (m[2] for m in HREF.finditer(piece))

def link_faults(path: Path, where: str, root: Path):
    "Links that lead nowhere."
    for kind, piece in prose(path):
        for to in links(kind, piece):
            if why := broken(path, to, root): yield f"{where}: link {to}: {why}"

def broken(path: Path, to: str, root: Path) -> str | None:
    "Why the link `to` of a page or file leads nowhere; None if it is good or leads out."
    url = urlsplit(to)
    if url.scheme or url.netloc: return None
    target = path if not url.path else (path.parent / unquote(url.path)).resolve()
    if url.path.startswith("/"): return "absolute: write it relative to the page"
    if target.suffix == ".html": target = page_of(target) or target
    if not target.exists(): return "no such file"
    if path.suffix == ".ipynb" and root / "nbs" not in target.parents: return "lies outside of nbs/, so not on the site"
    if path.suffix == ".ipynb" and target.is_dir(): return "a folder is no page"
    if url.fragment and target.suffix in (".ipynb", ".md") and url.fragment not in anchors(target):
        return f"no heading has the anchor #{url.fragment}"
    return None

def page_of(html: Path) -> Path | None:
    "The notebook of which nbdev makes the page `html`."
    return next((p for p in html.parent.glob("*.ipynb") if html_name(p) == html.name), None)

def bib_keys(root: Path) -> set[str]:
    "The keys of nbs/references.bib."
    bib = root / "nbs" / "references.bib"
    return set(re.findall(r"^\s*@\w+\s*\{\s*([^,\s]+)\s*,", bib.read_text("utf-8"), re.M)) if bib.exists() else set()

def cited(path: Path):
    "Keys that a page cites."
    for kind, piece in prose(path):
        if kind == "markdown":
            yield from (k for group in CITED.findall(no_code(piece)) for k in CITE_KEY.findall(group))

def cite_faults(path: Path, where: str, keys: set[str]):
    yield from (f"{where}: [@{k}] is not in nbs/references.bib" for k in dict.fromkeys(cited(path)) if k not in keys)

def is_picture(data: dict) -> bool:
    return any(m in SHOWN_PICTURES or CHART_MIME.match(m) for m in data) or (
        "text/html" in data and bool(DRAWING.search(text(data["text/html"]))))

def alt_faults(nb: Path, where: str):
    "Pictures without a text for those who do not see them."
    for c in cells(nb):
        if c["cell_type"] == "markdown":
            yield from (f"{where}: ![]({m[3]}) has no alt text" for m in LINK.finditer(no_code(text(c["source"])))
                        if m[1] and len(m[2]) < MIN_ALT)
        elif any(map(is_picture, outputs(c))):
            alt = next((m.split(":", 1)[1].strip(" \"'") for m in marks(c) if m.startswith("fig-alt:")), "")
            if len(alt) < MIN_ALT: yield f"{where}: cell {c['id']}: its picture has no `#| fig-alt:`"

def remote_faults(nb: Path, where: str):
    "Outputs whose scripts fetch from elsewhere: a page must be whole without a network."
    for c in filter(is_code, cells(nb)):
        shown = "".join(text(o.get("data", {}).get("text/html", "")) for o in c["outputs"])
        if REMOTE.search(shown): yield f"{where}: cell {c['id']}: its output loads a script from another host"


# docstrings

def public(tree: ast.Module) -> set[str]:
    "The names in `__all__`."
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return set(ast.literal_eval(lists[0])) if lists else set()

def documented(tree: ast.Module):
    "Public functions, classes and methods of a module, with their names."
    names = public(tree)
    for n in tree.body:
        if not isinstance(n, ast.FunctionDef | ast.ClassDef) or n.name not in names: continue
        yield n.name, n
        inner = n.body if isinstance(n, ast.ClassDef) else []
        yield from ((f"{n.name}.{m.name}", m) for m in inner if isinstance(m, ast.FunctionDef) and m.name[0] != "_")

def doc_faults(path: Path, where: str):
    "Public names whose docstring is missing or says too little, and kernels that do not say what they write."
    for name, node in documented(ast.parse(path.read_text(encoding="utf-8"))):
        doc = ast.get_docstring(node) or ""
        if len(doc.split()) < MIN_WORDS: yield f"{where}: {name} has no docstring worth the name"
        elif why := kernel_fault(node, doc): yield f"{where}: kernel {name}: {why}"

def touched(node: ast.FunctionDef) -> tuple[set[str], set[str]]:
    "Parameters of a kernel that it reads or writes by place, and those that it writes."
    names = {a.arg for a in node.args.args}
    by_place = [x for x in ast.walk(node) if isinstance(x, ast.Subscript) and isinstance(x.value, ast.Name)
                and x.value.id in names and not (isinstance(x.slice, ast.Constant) and isinstance(x.slice.value, str))]
    return {x.value.id for x in by_place}, {x.value.id for x in by_place if isinstance(x.ctx, ast.Store)}

def kernel_fault(node, doc: str) -> str | None:
    "A kernel over arrays says what it writes, by name or as a result with its shape, and a shape, unit or range."
    if not any("jit" in ast.unparse(d) for d in node.decorator_list): return None
    read, written = touched(node)
    silent = sorted(n for n in written - SHARED if not re.search(rf"\b{re.escape(n)}\b", doc, re.I))
    if silent and not RESULT.search(doc.split("\n\n")[0]):
        return f"the docstring does not name what is written: {', '.join(silent)}"
    if read and not SHAPE.search(doc): return "the docstring gives no shape, unit or range of its arrays"
    return None


# the sidebar

def merged(root: Path) -> dict:
    "The site's configuration: the stub in nbs/ with the root's file."
    stub = yaml.safe_load((root / "nbs" / "_quarto.yml").read_text(encoding="utf-8"))
    main = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    return main | stub | {"website": main.get("website", {})}

def entries(contents) -> list[str]:
    "Pages and patterns that a list of the sidebar names, those of its sections too."
    if isinstance(contents, str): return [contents]
    found = []
    for item in contents:
        if isinstance(item, str): found.append(item)
        else:
            found += [item[k] for k in ("href", "file", "auto") if isinstance(item.get(k), str)]
            found += entries(item.get("contents", []))
    return found

def sidebar_faults(root: Path):
    "Entries without a page, pages without an entry, pages of one name, and a bibliography that is not there."
    site, nbs = merged(root), root / "nbs"
    bars = site["website"]["sidebar"]
    named = [e for bar in (bars if isinstance(bars, list) else [bars]) for e in entries(bar["contents"])]
    reached = {p for e in named for p in nbs.glob(e)}
    menu = [e for side in ("left", "right") for e in entries(site["website"]["navbar"].get(side, []))]
    yield from (f"_quarto.yml: {e} names no page" for e in dict.fromkeys(named + menu)
                if "://" not in e and not list(nbs.glob(e)))
    yield from (f"_quarto.yml: {p.relative_to(nbs).as_posix()} is not in the sidebar"
                for p in pages(root) if p not in reached)
    twice = Counter(p.parent / html_name(p) for p in pages(root))
    yield from (f"nbs: two notebooks make the page {p.relative_to(nbs).as_posix()}" for p, n in twice.items() if n > 1)
    if (bib := site.get("bibliography")) and not (nbs / bib).exists(): yield f"_quarto.yml: nbs/{bib} is missing"


# nbdev's own preprocessing

def process(nb: str) -> str | None:
    "Preprocess one notebook as nbdev_docs does, into nothing; why it failed, or None."
    from execnb.nbio import read_nb
    from nbdev.processors import FilterDefaults
    os.environ["IN_TEST"] = "1"
    here = sys.modules["__main__"]       # where the pool looks for this function, and IPython puts a module of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FilterDefaults()(read_nb(nb))
    except Exception as e:      # whatever a cell raises is the fault that is reported
        said = str(e).splitlines()
        return f"{said[0] if said else type(e).__name__} {e.__cause__!r}"
    finally: sys.modules["__main__"] = here
    return None

def process_faults(root: Path, workers: int = 2):
    "Notebooks that nbdev cannot preprocess."
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for nb, why in zip(pages(root), pool.map(process, map(str, pages(root))), strict=True):
            if why: yield f"{nb.relative_to(root).as_posix()}: nbdev cannot preprocess it: {why}"


def faults(root: Path = ROOT, *, quick: bool = False) -> list[str]:
    "All faults of the site, page by page."
    for known in (cells, pages, anchors): known.cache_clear()
    keys, found = bib_keys(root), []
    for nb in pages(root):
        where = nb.relative_to(root).as_posix()
        found += chain(title_faults(nb, where), import_faults(nb, where), link_faults(nb, where, root),
                       cite_faults(nb, where, keys), alt_faults(nb, where), remote_faults(nb, where))
    for path in (root / m for m in MARKDOWN):
        if path.exists(): found += link_faults(path, path.relative_to(root).as_posix(), root)
    for path in sorted((root / "daedalus_etl").rglob("*.py")):
        found += doc_faults(path, path.relative_to(root).as_posix())
    return found + list(sidebar_faults(root)) + ([] if quick else list(process_faults(root)))


# mending what nbdev would cut short

def split_title(cell: dict) -> list[dict]:
    "The title cell, and a cell of its own for the text below the subtitle."
    lines = text(cell["source"]).splitlines(keepends=True)
    keep = [i for i, line in enumerate(lines) if re.match(r"# |> |- [\w-]+: \S", line)]
    head, rest = lines[:keep[-1] + 1], lines[keep[-1] + 1:]
    return pieces(cell, "".join(head).strip(), "".join(rest).strip())

def split_imports(cell: dict) -> list[dict]:
    "The imports at the head of a cell, with its directives, and the rest."
    source = text(cell["source"])
    body = ast.parse(source).body
    first = next((n for n in body if not isinstance(n, ast.Import | ast.ImportFrom)), None)
    if first is None or first is body[0]: return [cell]
    head, rest, at = source.splitlines(), source.splitlines(), body[body.index(first) - 1].end_lineno
    if ";" in head[at - 1]: return [cell]
    said = [line for line in head[:at] if DIRECTIVE.match(line)]
    kept = [line for line in said if words_of(DIRECTIVE.match(line)[1]) in ("hide", "eval", "slow", "echo")]
    return pieces(cell, "\n".join(kept + [h for h in head[:at] if h not in said]).strip(),
                  "\n".join([*said, "\n".join(rest[at:]).strip("\n")]).strip())

def pieces(cell: dict, first: str, second: str) -> list[dict]:
    "Two cells of one; the outputs stay with the second, which keeps the id."
    if not first or not second: return [cell]
    own = cell["id"]
    head = cell | {"id": f"{own[:6]}{len(first) % 100:02d}", "source": first.splitlines(keepends=True)}
    if is_code(cell): head |= {"outputs": [], "execution_count": None}
    return [head, cell | {"source": second.splitlines(keepends=True)}]

def fix(nb: Path) -> bool:
    "Split the cells of a notebook that need it; whether it changed."
    raw = json.loads(nb.read_text(encoding="utf-8"))
    first = next((i for i, c in enumerate(raw["cells"]) if c["cell_type"] == "markdown"), None)
    lost = any("text beside the title" in f for f in title_faults(nb, ""))
    made = [split_title(c) if i == first and lost else split_imports(c) if is_code(c) and mixed(c) else [c]
            for i, c in enumerate(raw["cells"])]
    if all(len(m) == 1 for m in made): return False
    raw["cells"] = list(chain.from_iterable(made))
    nb.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    cells.cache_clear()
    return True


def main(argv: list[str] | None = None) -> int:
    args = argparse.ArgumentParser(description="faults of the site, found without quarto")
    args.add_argument("--check", action="store_true", help="print the faults; exit 1 if there are any (the default)")
    args.add_argument("--quick", action="store_true", help="do not let nbdev preprocess the notebooks")
    args.add_argument("--fix", nargs="*", metavar="NOTEBOOK", help="split cells of these notebooks (default: all)")
    said = args.parse_args(argv)
    if said.fix is not None:
        return print(*(n for n in map(Path, said.fix or pages(ROOT)) if fix(n)), sep="\n") or 0
    found = faults(quick=said.quick)
    print(*found or ["the site has no faults"], sep="\n", file=sys.stderr if found else sys.stdout)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
