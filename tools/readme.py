"""README.md from nbs/index.ipynb, without quarto: `python tools/readme.py` writes it, `--check` only compares (exit 1).

Prose is taken over as it stands, with links that are relative to nbs/ made right for the root. Code becomes a fence
without its `#|` lines; its output is a plain fence, or a picture below nbs/images/. A cell marked `#| hide` is left
out, one marked `#| echo: false` shows only its output."""
import argparse
import base64
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "<!-- Made from {nb} by tools/readme.py: edit the notebook. -->\n\n"
IMAGES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# links in code are no links
CODE = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", re.S | re.M)
# [a](x), [a]: x, src="x", href="x"
LINK = re.compile(r"""(\]\(|^\[[^\]]+\]:[ ]+|(?:src|href)=["'])([^)\s"']+)""", re.M)
DIRECTIVE = re.compile(r"^\s*#\|\s*(.*?)\s*$", re.M)


def text(value) -> str:
    "A notebook stores text whole or as a list of lines."
    return value if isinstance(value, str) else "".join(value)


def rebase(markdown: str, folder: str) -> str:
    "Relative link targets, seen from `folder`, as seen from the root."
    def moved(m):
        to = m[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|[#/]", to, re.I): return m[0]
        path, mark, anchor = to.partition("#")
        return m[1] + posixpath.normpath(posixpath.join(folder, path)) + mark + anchor
    parts = CODE.split(markdown)
    return "".join(p if i % 2 else LINK.sub(moved, p) for i, p in enumerate(parts))


def fence(body: str, lang: str = "") -> str:
    "A code fence longer than any run of backticks in `body`."
    ticks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", body)), default=0))
    return f"{ticks}{lang}\n{body.strip(chr(10))}\n{ticks}"


def alt_text(marks: list[str]) -> str:
    "What the mark `fig-alt` of a cell says of its picture."
    found = next((m.split(":", 1)[1] for m in marks if m.startswith("fig-alt:")), "")
    return found.strip().strip('"')


def picture(data: dict, name: str, folder: str, files: dict, alt: str) -> str | None:
    "Markdown for the picture in an output, whose bytes go to `files`; None if it has none."
    mime = next((m for m in IMAGES if m in data), None)
    if mime is None: return None
    path = f"{folder}/images/{name}.{IMAGES[mime]}"
    raw = text(data[mime])
    files[path] = raw.encode() if mime == "image/svg+xml" else base64.b64decode(raw)
    return f"![{alt}]({path})"


def output(out: dict, name: str, folder: str, files: dict, alt: str = "") -> str | None:
    "One output as markdown: picture, markdown, else plain text (a frame's text, not its HTML)."
    if out["output_type"] == "stream":
        return fence(ANSI.sub("", text(out["text"]))) if out["name"] == "stdout" else None
    data = out.get("data", {})
    if shown := picture(data, name, folder, files, alt): return shown
    if "text/markdown" in data: return rebase(text(data["text/markdown"]), folder).strip()
    if "text/plain" in data: return fence(ANSI.sub("", text(data["text/plain"])))
    return text(data["text/html"]).strip() if "text/html" in data else None


def cell_blocks(cell: dict, stem: str, folder: str, files: dict) -> list[str]:
    "What a cell contributes, block by block."
    source = text(cell["source"])
    if cell["cell_type"] == "markdown": return [rebase(source, folder).strip()]
    if cell["cell_type"] != "code": return []                     # raw cells hold front matter
    marks = DIRECTIVE.findall(source)
    if "hide" in marks: return []
    code = DIRECTIVE.sub("", source).strip("\n")
    blocks = [fence(code, "python")] if code.strip() and "echo: false" not in marks else []
    names = (f"{stem}-{cell['id']}-{i}" for i in range(len(cell["outputs"])))
    alt, shown = alt_text(marks), zip(cell["outputs"], names, strict=True)
    return blocks + [b for o, n in shown if (b := output(o, n, folder, files, alt))]


def render(nb: Path, root: Path = ROOT) -> dict[str, bytes]:
    "The files that `nb` makes, by their path from `root`: README.md and its pictures."
    rel = nb.relative_to(root)
    files: dict[str, bytes] = {}
    cells = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    blocks = [b for c in cells for b in cell_blocks(c, rel.stem, rel.parent.as_posix(), files)]
    readme = HEAD.format(nb=rel.as_posix()) + "\n\n".join(b for b in blocks if b) + "\n"
    return {"README.md": readme.encode(), **files}


def differences(files: dict[str, bytes], root: Path = ROOT) -> list[str]:
    "Paths whose content on disk is not the one in `files`."
    return [p for p, b in files.items() if not (root / p).is_file() or (root / p).read_bytes() != b]


def main(argv: list[str] | None = None) -> int:
    args = argparse.ArgumentParser(description="README.md from nbs/index.ipynb")
    args.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md is out of date")
    check = args.parse_args(argv).check
    files = render(ROOT / "nbs" / "index.ipynb")
    wrong = differences(files)
    if check and wrong: print(f"not what nbs/index.ipynb makes: {', '.join(wrong)} (run: make readme)", file=sys.stderr)
    if check: return int(bool(wrong))
    for path in wrong:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_bytes(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
