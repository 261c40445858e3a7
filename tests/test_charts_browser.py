"The series chart in a real browser: the strip sets the panels' time, panels pan and zoom, a new choice begins anew."
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from daedalus_etl.explore.series import OVERVIEW, ZOOM, series

T0 = datetime(2026, 1, 14, tzinfo=UTC)
PLACES = """() => {
  const out = {}
  const walk = (marks, x, y) => { for (const m of marks) if (m.marktype === 'group') for (const g of m.items) {
    if (m.name) out[m.name] = [x + g.x, y + g.y]
    walk(g.items || [], x + g.x, y + g.y) } }
  const [box, o] = [document.querySelector('#chart svg, #chart canvas').getBoundingClientRect(), view.origin()]
  const pad = view.padding()
  walk([view.scenegraph().root], box.x + o[0] + pad.left, box.y + o[1] + pad.top)
  return out
}"""
STATE = f"""() => ({{zoom: view.signal('{ZOOM}').time, overview: view.signal('{OVERVIEW}').time,
  shown: ['concat_0_x', 'concat_1_x'].map(n => view.scale(n).domain().map(Number))}})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A page of Chromium with the chart in it; everything comes from this machine."
    vlc, api = pytest.importorskip("vl_convert"), pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None: pytest.skip("no Chromium on this machine")
    clock = pl.datetime_range(T0, T0 + timedelta(hours=6), "10s", eager=True)
    frame = pl.DataFrame({"capture_ts": clock, "x": np.arange(len(clock)) % 7, "y": np.arange(len(clock))})
    script = vlc.javascript_bundle("window.vegaEmbed = vegaEmbed")
    file = tmp_path_factory.mktemp("page") / "chart.html"
    file.write_text(f"<body><div id=chart></div><script type=module>{script}</script></body>", encoding="utf-8")
    with api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 800, "height": 800})
        page.goto(file.as_uri())
        page.wait_for_function("() => !!window.vegaEmbed")
        page.evaluate("""spec => vegaEmbed('#chart', spec, {actions: false}).then(r => { window.view = r.view })""",
                      series(frame, ["x", "y"]).to_dict())
        page.wait_for_function("() => !!window.view")
        yield page
        browser.close()


def drag(page, name, start, end):
    x, y = page.evaluate(PLACES)[name]
    page.mouse.move(x + start, y + 18)
    page.mouse.down()
    page.mouse.move(x + (start + end) / 2, y + 18, steps=3)
    page.mouse.move(x + end, y + 18, steps=3)
    page.mouse.up()
    page.wait_for_timeout(150)
    return page.evaluate(STATE)


def hours(span):
    return [(t / 1000 - T0.timestamp()) / 3600 for t in span]


def test_strip_and_panels_are_linked(page):
    page.mouse.dblclick(*[v + 20 for v in page.evaluate(PLACES)["concat_0_group"]])
    chosen = drag(page, "strip_group", 100, 200)                           # an hour is 100 pixels wide
    assert hours(chosen["overview"]) == pytest.approx([1, 2], abs=0.05) and chosen["zoom"] is None
    assert [hours(s) for s in chosen["shown"]] == [hours(chosen["overview"])] * 2
    panned = drag(page, "concat_1_group", 300, 200)                        # both panels follow the one that is dragged
    assert hours(panned["zoom"]) == pytest.approx([1 + 1 / 6, 2 + 1 / 6], abs=0.05)
    assert [hours(s) for s in panned["shown"]] == [pytest.approx(hours(panned["zoom"]), abs=1e-3)] * 2
    again = drag(page, "strip_group", 400, 500)
    assert again["zoom"] is None and hours(again["shown"][0]) == pytest.approx([4, 5], abs=0.05)
    page.mouse.dblclick(*[v + 20 for v in page.evaluate(PLACES)["concat_0_group"]])
    page.wait_for_timeout(150)
    assert hours(page.evaluate(STATE)["shown"][0]) == pytest.approx([0, 6])
