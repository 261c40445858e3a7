"""README.md is what nbs/index.ipynb makes, and the tool that makes it does what it says."""
import base64
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n\x1a\n fake"


@pytest.fixture(scope="module")
def tool():
    "tools/readme.py as a module."
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(source, *outputs, id="c0de"):
    return dict(cell_type="code", id=id, source=source.splitlines(keepends=True), outputs=list(outputs))


def shows(**data):
    return dict(output_type="execute_result", data={k.replace("_", "/"): v for k, v in data.items()})


def prose(source):
    return dict(cell_type="markdown", id="pr0e", source=source.splitlines(keepends=True))


@pytest.fixture
def made(tool, tmp_path):
    "Render cells as nbs/index.ipynb of an empty project."
    def render(*cells):
        nb = tmp_path / "nbs" / "index.ipynb"
        nb.parent.mkdir(exist_ok=True)
        nb.write_text(json.dumps(dict(cells=list(cells))))
        return tool.render(nb, tmp_path)
    return render


def body(files):
    return files["README.md"].decode().split("-->\n\n", 1)[1]


def test_readme_in_sync(tool):
    assert tool.differences(tool.render(ROOT / "nbs" / "index.ipynb")) == []


def test_front_matter_and_hidden_cells_stay_out(made):
    raw = dict(cell_type="raw", id="raw0", source=["---\n", "title: x\n", "---"])
    assert body(made(raw, prose("# Title"), code("#| hide\nsecret()"))) == "# Title\n"


def test_code_loses_directives_and_shows_plain_frames(made):
    frame = shows(text_html="<table>", text_plain="shape: (1, 1)")
    assert body(made(code("#| eval: true\ndf", frame))) == "```python\ndf\n```\n\n```\nshape: (1, 1)\n```\n"


def test_echo_false_shows_only_output(made):
    assert body(made(code("#| echo: false\nx", shows(text_markdown="**3**", text_plain="3")))) == "**3**\n"


def test_streams(made):
    out = dict(output_type="stream", name="stdout", text=["\x1b[31mred\x1b[0m\n"])
    err = dict(output_type="stream", name="stderr", text=["noise\n"])
    assert body(made(code("f()", out, err))) == "```python\nf()\n```\n\n```\nred\n```\n"


def test_pictures_become_files(made):
    png = {"image/png": base64.b64encode(PNG).decode(), "text/plain": "<chart>"}
    files = made(code("chart", dict(output_type="display_data", data=png), id="abc"))
    assert files["nbs/images/index-abc-0.png"] == PNG
    assert body(files).endswith("![](nbs/images/index-abc-0.png)\n")


@pytest.mark.parametrize("before, after", [
    ("[a](tutorials/one.ipynb#x)", "[a](nbs/tutorials/one.ipynb#x)"),
    ("[a](../LICENSE)", "[a](LICENSE)"),
    ("[`code`](../CHANGELOG.md)", "[`code`](CHANGELOG.md)"),
    ("![p](images/p.png)", "![p](nbs/images/p.png)"),
    ('<img src="images/p.png">', '<img src="nbs/images/p.png">'),
    ("[a]: 10_storage/x.ipynb", "[a]: nbs/10_storage/x.ipynb"),
    ("[a](https://quarto.org) [b](#here) [c](mailto:a@b.c)",) * 2,
    ("`[a](b)` and\n\n```\n[a](b)\n```",) * 2,
])
def test_links_are_seen_from_the_root(tool, before, after):
    assert tool.rebase(before, "nbs") == after


def test_fence_is_longer_than_what_it_holds(tool):
    assert tool.fence("a\n```\nb") == "````\na\n```\nb\n````"


def test_differences_name_what_is_stale(tool, made, tmp_path):
    files = made(prose("hello"))
    assert tool.differences(files, tmp_path) == ["README.md"]
    (tmp_path / "README.md").write_bytes(files["README.md"])
    assert tool.differences(files, tmp_path) == []


def test_check_writes_nothing_and_says_so(tool, made, tmp_path, monkeypatch, capsys):
    made(prose("hello"))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "render", lambda nb: {"README.md": b"new"})
    monkeypatch.setattr(tool, "differences", lambda files: ["README.md"])
    assert tool.main(["--check"]) == 1
    assert not (tmp_path / "README.md").exists() and "make readme" in capsys.readouterr().err
    assert tool.main([]) == 0 and (tmp_path / "README.md").read_bytes() == b"new"
