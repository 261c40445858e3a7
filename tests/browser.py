"""A real browser before a real JupyterLab or Voila, on this machine alone."""
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PATIENCE_S = 180          # two cores may be busy with other tests


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    "Until somebody listens at `url`; an error with the server's own words if it ends or keeps silent."
    address, end = (urlsplit(url).hostname, urlsplit(url).port), time.monotonic() + PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        try: return socket.create_connection(address, timeout=2).close()     # to ask for a page would start a kernel
        except OSError: time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer (exit code {server.poll()}):\n{log.read_text()[-2000:]}")


@contextmanager
def serving(command: list[str], url: str, log: Path, env: dict[str, str]):
    "A server for as long as the block lasts; gives the address `url`."
    with open(log, "w") as out: server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(url, server, log)
        yield url
    finally:
        server.terminate()
        try: server.wait(15)
        except subprocess.TimeoutExpired: server.kill()


def own_jupyter(folder: Path) -> dict[str, str]:
    "The environment of a Jupyter that neither reads nor writes the user's settings."
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    places = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime",
                  JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces", IPYTHONDIR="ipython")
    return {**os.environ, **{k: str(folder / v) for k, v in places.items()}}


def lab(folder: Path, notebooks: Path):
    "A JupyterLab whose root is `notebooks`, without a token."
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url=",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", f"--ServerApp.root_dir={notebooks}"]
    return serving(command, f"http://127.0.0.1:{port}/lab", folder / "lab.log", own_jupyter(folder))


@contextmanager
def page(folder: Path):
    "An empty page of a new Chromium, which notes in `outside` what it asks of other hosts, in `errors` what fails."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder / "profile"), executable_path=CHROMIUM, headless=True, args=FLAGS,
            viewport={"width": 1500, "height": 1150})
        shown = context.pages[0] if context.pages else context.new_page()
        shown.set_default_timeout(PATIENCE_S * 1000)
        shown.outside, shown.errors = [], []
        shown.on("request", lambda r: shown.outside.append(r.url) if _foreign(r.url) else None)
        shown.on("pageerror", lambda e: shown.errors.append(str(e)[:300]))
        yield shown
        context.close()


def _foreign(url: str) -> bool: return url.startswith(("http", "ws")) and "//127.0.0.1:" not in url


def run_all(shown, url: str) -> None:
    "Open a notebook in Lab and run all its cells. What is sent while the kernel still connects is lost: say it again."
    shown.goto(url)
    shown.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    shown.get_by_text("| Idle").first.wait_for()
    for _ in range(5):
        shown.wait_for_timeout(1500)
        shown.get_by_role("menuitem", name="Run", exact=True).click()
        shown.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        prompts = "[...document.querySelectorAll('.jp-InputPrompt')].some(e => /[0-9*]/.test(e.textContent))"
        try:
            shown.wait_for_function(prompts, timeout=8000)
            return
        except Exception as e:
            if "Timeout" not in type(e).__name__: raise
    raise RuntimeError("Lab did not run the cells")
