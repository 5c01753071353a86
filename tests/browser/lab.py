"A real Jupyter on 127.0.0.1, a headless Chromium to look at it with, and notebooks to open there."
import contextlib, json, os, secrets, shutil, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

import axe_playwright_python, nbformat
from playwright.sync_api import sync_playwright

CHROME = os.environ.get("VISIONLAB_CHROME") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "chromium")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
DONE = "ALL-CELLS-DONE"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    "A running Jupyter server."
    def __init__(self, root, url, token): self.root, self.url, self.token = Path(root), url, token

    def api(self, method, path):
        "Ask the server; the token in the header needs no cookie."
        asked = urllib.request.Request(self.url + path, method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(asked, timeout=10) as f: return json.loads(f.read() or "null")

    def stop_kernels(self):
        for s in self.api("GET", "/api/sessions"): self.api("DELETE", f"/api/sessions/{s['id']}")


def settings(root, windowing):
    "Keep news and updates quiet, and say what becomes of off-screen cells."
    for plugin, name, value in (("apputils-extension", "notification", dict(fetchNews="false", checkForUpdates=False)),
                                ("notebook-extension", "tracker", dict(windowingMode=windowing))):
        (folder := root/"settings/@jupyterlab"/plugin).mkdir(parents=True)
        (folder/f"{name}.jupyterlab-settings").write_text(json.dumps(value))


def environment(tmp):
    "Let nothing of the person's own settings in."
    return dict(os.environ, HOME=str(tmp), IPYTHONDIR=str(tmp/"ipython"), JUPYTER_PLATFORM_DIRS="1", JUPYTER_CONFIG_DIR=str(tmp/"config"),
                JUPYTER_RUNTIME_DIR=str(tmp/"run"), JUPYTERLAB_SETTINGS_DIR=str(tmp/"settings"), JUPYTERLAB_WORKSPACES_DIR=str(tmp/"workspaces"),
                OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", VISIONLAB_PROGRESS="off")


def wait_until_up(server, process, log):
    for _ in range(1200):
        with contextlib.suppress(OSError):
            server.api("GET", "/api/status")
            return
        if process.poll() is not None: break
        time.sleep(.05)
    raise RuntimeError(f"Jupyter did not start: {log.read_text()[-3000:]}")


def lab_command(root, port, token, app="jupyterlab", class_name="LabApp"):
    "JupyterLab, or Notebook 7, which is made of the same parts."
    return [sys.executable, "-m", app, "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={token}", "--ServerApp.password=", f"--ServerApp.root_dir={root}", f"--{class_name}.expose_app_in_browser=True",
            "--ServerApp.terminals_enabled=False", "--LabApp.extension_manager=readonly"]


@contextlib.contextmanager
def jupyter(root, command=lab_command, windowing="none"):
    "Run a server for the notebooks in `root`; it and its kernels end with the block. Windowing \"full\" takes off-screen cells off the page."
    with tempfile.TemporaryDirectory(prefix="vl-jupyter-", ignore_cleanup_errors=True) as folder:
        tmp, port, token = Path(folder), free_port(), secrets.token_hex(16)
        settings(tmp, windowing)
        with open(tmp/"server.log", "w") as log: process = subprocess.Popen(command(root, port, token), stdout=log, stderr=subprocess.STDOUT, env=environment(tmp))
        server = Server(root, f"http://127.0.0.1:{port}", token)
        try:
            wait_until_up(server, process, tmp/"server.log")
            yield server
            server.stop_kernels()
        finally:
            process.terminate()
            try: process.wait(15)
            except subprocess.TimeoutExpired: process.kill(); process.wait()


@contextlib.contextmanager
def chromium(size=(1280, 1000)):
    "Run a browser with a fresh profile."
    with sync_playwright() as pw, tempfile.TemporaryDirectory(prefix="vl-chrome-", ignore_cleanup_errors=True) as profile:
        context = pw.chromium.launch_persistent_context(profile, executable_path=CHROME, headless=True, args=FLAGS, viewport=dict(width=size[0], height=size[1]))
        context.set_default_timeout(30_000)
        try: yield context
        finally: context.close()


RUN_ALL = """async () => {
    const app = window.jupyterapp; await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready; await panel.revealed; await panel.sessionContext.ready;
    for (let i = 0; i < 600 && panel.sessionContext.session?.kernel?.status !== 'idle'; i++)
        await new Promise(r => setTimeout(r, 50));      // before that, "run all" clears the cells and runs none
    await app.commands.execute('notebook:run-all-cells'); }"""

RESTART = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.sessionContext.session.kernel.restart();
    for (let i = 0; i < 600 && panel.sessionContext.session?.kernel?.status !== 'idle'; i++) await new Promise(r => setTimeout(r, 50)); }"""

DARK = "async () => { await window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}); }"


AXE = (Path(axe_playwright_python.__file__).parent/"axe.min.js").read_text(encoding="utf-8")
SERIOUS = """async () => (await axe.run({include: [['.visionlab-view']]}, {resultTypes: ['violations']})).violations
    .filter(o => ['serious', 'critical'].includes(o.impact)).map(o => o.id + ': ' + o.nodes.length + ' times, as ' + o.nodes[0].html.slice(0, 200) + ' in ' + o.nodes[0].target)"""


def serious(page):
    "List what axe-core finds serious or critical on the views of a page."
    if not page.evaluate("typeof window.axe === 'object'"): page.evaluate(AXE)
    return page.evaluate(SERIOUS)


class Notebook:
    "One notebook in the browser."
    place, cell, output = "lab/tree", ".jp-Notebook .jp-Cell", ".jp-OutputArea-output"      # of JupyterLab; other front ends have other words

    def __init__(self, server, context, shots):
        self.server, self.context, self.shots, self.errors, self.page = server, context, Path(shots), [], None

    def open(self, *cells, name="test.ipynb"):
        "Write a notebook, open it, run all of it, and wait until it is done."
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in (*cells, f"print({DONE!r})")])
        nb.metadata["kernelspec"] = dict(name="python3", display_name="python3", language="python")
        nbformat.write(nb, self.server.root/name)
        self.page = page = self.context.new_page()
        page.on("console", lambda o: self.errors.append(o.text) if o.type == "error" else None)
        page.on("pageerror", lambda o: self.errors.append(str(o)))
        page.goto(f"{self.server.url}/{self.place}/{name}?reset&token={self.server.token}")
        page.wait_for_selector(self.cell, timeout=90_000)
        self.run()
        return page

    def run(self):
        self.start()
        self.page.locator(self.output, has_text=DONE).first.wait_for(timeout=120_000)
        assert not (red := self.page.locator("[data-mime-type='application/vnd.jupyter.stderr'], .jp-RenderedText[data-mime-type*='error']").all_inner_texts()), red

    def start(self):
        self.page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
        self.page.evaluate(RUN_ALL)

    def restart(self):
        "Restart the kernel and run everything again."
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        self.page.evaluate(RESTART)
        self.run()

    def dark(self):
        "Change to the dark theme."
        self.page.evaluate(DARK)
        self.page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")

    def shot(self, name):
        "Save what is seen."
        self.page.screenshot(path=self.shots/f"{name}.png")

    def changes(self, act, picture, wait=30_000):
        "Do something, and wait until the pictures or the text of an element are other ones."
        before = self.page.locator(picture).first.inner_html()
        act()
        self.page.wait_for_function("([s, a]) => document.querySelector(s) && document.querySelector(s).innerHTML !== a", arg=[picture, before], timeout=wait)

    def close(self):
        "Close the page and end its kernel; no script may have failed."
        if self.page is None: return
        broken = self.page.get_by_text("Click to show javascript error").count()
        self.page.close()
        self.server.stop_kernels()
        assert not broken and not self.errors, self.errors


class Seen:
    "One view on the page, known by a class of its own."
    def __init__(self, book, name):
        self.book, self.page, self.root = book, book.page, f".{name}"
        self.picture = f"{self.root} .visionlab-picture .widget-html-content"
        self.all = self.page.locator(self.root)
        self.all.scroll_into_view_if_needed()
        self.shown.wait_for()

    @property
    def shown(self): return self.page.locator(self.picture)              # the one there is
    def find(self, selector, **kw): return self.page.locator(f"{self.root} {selector}", **kw)
    def button(self, name, **kw): return self.all.get_by_role("button", name=name, **kw)
    def text(self): return self.shown.inner_text()
    def images(self): return self.page.evaluate("s => [...document.querySelectorAll(s + ' img')].map(o => o.src)", self.picture)
    def alts(self): return self.page.evaluate("s => [...document.querySelectorAll(s + ' img')].map(o => o.alt)", self.picture)
    def wait(self, text): self.page.wait_for_function("([s, t]) => document.querySelector(s).innerText.includes(t)", arg=[self.picture, text])
    def changes(self, act): self.book.changes(act, self.picture)

    def shot(self, name):
        "Save what is seen; every picture must have been drawn and have a text, and nothing may stick out."
        self.all.scroll_into_view_if_needed()
        bad = self.page.evaluate("s => [...document.querySelectorAll(s + ' img')].filter(o => !o.complete || !o.naturalWidth || !o.alt).length", self.root)
        assert bad == 0
        wide = self.page.evaluate("s => document.querySelector(s).scrollWidth - document.querySelector(s).clientWidth", self.root)
        assert wide <= 2, f"{name} is {wide} pixels wider than its place"
        self.all.screenshot(path=self.book.shots/f"{name}.png")


@contextlib.contextmanager
def without_errors(book):
    "Hold every script error of a block against it."
    before = len(book.errors)
    yield
    assert book.errors[before:] == []
    assert book.page.get_by_text("Click to show javascript error").count() == 0
