"""The explorer in a real Chromium, before a real JupyterLab and a real Voila."""
import json
import os
import time

import browser
import pytest
from lakes import demo_lake

from daedalus_etl.explore import serve

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'daedalus_etl[dev]'")
pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium: apt-get install chromium")
SHOTS = os.environ.get("DAEDALUS_SHOTS")          # a folder for screenshots, to be looked at


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return demo_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def lab(lake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    path = folder / "notebooks" / "explore.ipynb"
    path.write_text(json.dumps(serve.notebook(*lake)))
    with browser.lab(folder, path.parent) as url: yield f"{url}/tree/{path.name}?reset"


@pytest.fixture(scope="module")
def voila(lake, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("voila"), browser.free_port()
    path = serve.prepare(folder, *lake)
    env = browser.own_jupyter(folder) | {"JUPYTER_PATH": serve.environment(folder)["JUPYTER_PATH"]}
    url = f"http://127.0.0.1:{port}/"
    with browser.serving(serve.command(path, port=port), url, folder / "voila.log", env): yield url


@pytest.fixture
def page(tmp_path):
    with browser.page(tmp_path) as page: yield page


class Explorer:
    "The explorer on a page, as somebody uses it."
    def __init__(self, page, name):
        self.page, self.name, self.shots = page, name, 0
        self.page.locator(".daedalus-explorer .daedalus-ready").wait_for()

    def picture(self):
        "The pixels of what the tab in front shows."
        shown = self.page.locator(".widget-tab-contents .vega-embed:visible").first
        shown.wait_for()
        return shown.screenshot()

    def select(self, control, value):
        self.page.locator(f".daedalus-{control} select").select_option(value)

    def tab(self, title):
        self.page.locator(".jupyter-widget-tab .lm-TabBar-tab", has_text=title).click()

    def changed(self, before, seconds=browser.PATIENCE_S):
        "The picture, once it is another one than `before` and stands still."
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            self.page.wait_for_timeout(300)
            now = self.picture()
            busy = self.page.locator(".daedalus-busy:visible").count()
            if now != before and now == last and not busy: return self._kept(now)
            last = now
        self._kept(last)
        raise AssertionError(f"{self.name}: the picture did not change")

    def _kept(self, picture):
        self.shots += 1
        if SHOTS: self.page.screenshot(path=f"{SHOTS}/{self.name}_{self.shots:02}.png")
        return picture

    def sound(self):
        "No fault is told, none happened, and nobody else was asked for anything."
        assert self.page.locator(".daedalus-error:visible").all_inner_texts() == []
        assert self.page.errors == []
        assert self.page.outside == []


def use(explorer):
    "Another partition, another feature, a reference, every tab: each gives another picture."
    seen = explorer.changed(b"")
    explorer.select("symbol", "ETH-USDT")
    seen = explorer.changed(seen)
    explorer.select("features", "imbalance_L1")
    seen = explorer.changed(seen)
    explorer.select("reference", "simulated BTC-USDT 2026-01-15")
    seen = explorer.changed(seen)
    for title in ("Series", "Returns", "Drift", "Book", "Quality"):
        explorer.tab(title)
        seen = explorer.changed(seen)
        explorer.sound()
    return seen


def test_lab(lab, page):
    browser.run_all(page, lab)
    use(Explorer(page, "lab"))


def test_voila(voila, page):
    page.goto(voila)
    use(Explorer(page, "voila"))


def test_brushing_draws_the_window(voila, page):
    "A window that is drawn in the strip changes the line, and shows the distribution inside."
    page.goto(voila)
    explorer = Explorer(page, "brush")
    before = explorer.changed(b"")
    explorer.tab("Series")
    before = explorer.changed(before)
    charts = page.locator(".widget-tab-contents .vega-embed:visible")
    assert charts.count() == 1
    box = charts.first.bounding_box()
    y = box["y"] + box["height"] - 45         # in the strip, which is the lowest part of the picture
    page.mouse.move(box["x"] + 200, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 320, y, steps=8)
    page.mouse.up()
    explorer.changed(before)
    assert charts.first.bounding_box()["height"] > box["height"] + 100       # the distribution inside is below it
    explorer.sound()
    page.locator("button", has_text="Whole time").click()
    page.wait_for_function(f"[...document.querySelectorAll('.vega-embed')].some(e => e.offsetHeight && "
                           f"e.offsetHeight < {box['height'] + 20})")


def test_the_wheel_draws_the_window_in_full(voila, page):
    "Wheeling into a panel is a window as well: the kernel draws it, and says how many rows it has."
    page.goto(voila)
    explorer = Explorer(page, "wheel")
    before = explorer.changed(b"")
    explorer.tab("Series")
    before = explorer.changed(before)
    box = page.locator(".widget-tab-contents .vega-embed:visible").first.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 120)
    for _ in range(4): page.mouse.wheel(0, -200)
    explorer.changed(before)
    page.wait_for_function("h => [...document.querySelectorAll('.vega-embed')].some(e => e.offsetHeight > h + 100)",
                           arg=box["height"])                    # the distribution inside the window is drawn below
    explorer.sound()


def test_a_click_on_what_moved_puts_it_in_focus(voila, page):
    page.goto(voila)
    explorer = Explorer(page, "click")
    before = explorer.changed(b"")
    explorer.select("reference", "simulated ETH-USDT 2026-01-15")
    before = explorer.changed(before)
    explorer.tab("Drift")
    explorer.changed(before)
    chosen = "() => [...document.querySelector('.daedalus-features select').selectedOptions].map(o => o.text)"
    was, first = page.evaluate(chosen), page.locator(".daedalus table tbody td:visible").first.inner_text()
    box = page.locator(".widget-tab-contents .vega-embed:visible").first.bounding_box()
    page.mouse.click(box["x"] + 150, box["y"] + 28)             # the topmost bar
    page.wait_for_function(f"(name) => ({chosen})().join() === name", arg=first)
    assert was != [first]
    explorer.sound()


def test_a_fault_is_told_in_its_place_and_goes_away(voila, lake, page):
    "A file is damaged under the explorer: the panel says which, and once it is mended shows the picture again."
    page.goto(voila)
    explorer = Explorer(page, "fault")
    before = explorer.changed(b"")
    path = next(p for p in lake[0].glob("silver/orderbook/**/*.parquet") if "ETH-USDT" in str(p) and "day=15" in str(p))
    sound = path.read_bytes()
    path.write_bytes(sound[:100])
    try:
        explorer.select("symbol", "ETH-USDT")
        told = page.locator(".daedalus-error:visible")
        told.wait_for()
        explorer._kept(None)
        assert path.name in told.inner_text() and "CorruptFileError" in told.inner_text()
    finally: path.write_bytes(sound)
    page.locator("button", has_text="Look again").click()
    explorer.changed(before)
    explorer.sound()
