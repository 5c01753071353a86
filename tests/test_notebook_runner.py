"The conftest's notebook items: what is left out, what a failure says, and that a stuck notebook dies with its children."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "00_good": ["x = 1", "#| slow\nraise ValueError('a slow cell ran')", "#| eval: false\nraise ValueError('an eval: false cell ran')", "assert x == 1",
                "import os; assert os.environ['MPLBACKEND'] == 'Agg' and not os.path.exists(os.environ['VISIONLAB_CACHE'])"],
    "01_bad": ["def half(o):\n    return o//0", "told = 'in the failing cell'\nhalf(3)"],
    "02_crash": ["import os", "os._exit(3)"],
    "03_stuck": ["import subprocess, sys, time", "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
                 "open('child.pid', 'w').write(str(child.pid))\ntime.sleep(600)"],
    "_draft": ["raise ValueError('a draft ran')"]}

def notebook(sources):
    "Write a notebook of code cells as JSON"
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, execution_count=None, outputs=[], source=o.splitlines(True)) for i,o in enumerate(sources)]
    kernel = dict(name="python3", display_name="python3", language="python")
    return json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5))

def pytest_in(folder, *args):
    "Run pytest in a project of its own and return its exit code and output"
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args], cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr

def running(pid):
    "Say whether a process is alive, and no zombie waiting for its parent"
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"

@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder/"nbs").mkdir()
    for name in ("conftest.py", "pyproject.toml"): shutil.copy(ROOT/name, folder)
    for name,sources in PAGES.items(): (folder/"nbs"/f"{name}.ipynb").write_text(notebook(sources), encoding="utf-8")
    return folder

def test_passing_notebook_is_one_test_without_its_flagged_cells(project):
    code,said = pytest_in(project, "nbs/00_good.ipynb")
    assert code == 0 and "1 passed" in said, said

def test_collection_names_pages_and_leaves_out_drafts(project):
    code,said = pytest_in(project, "nbs", "--collect-only")
    assert code == 0 and said.count("nbs/") == 4 and "nbs/01_bad.ipynb::01_bad" in said and "_draft" not in said, said

def test_failure_shows_cell_and_traceback(project):
    code,said = pytest_in(project, "nbs/01_bad.ipynb")
    assert code == 1 and "told = 'in the failing cell'" in said and "return o//0" in said and "ZeroDivisionError" in said, said

def test_crash_is_a_failure(project):
    code,said = pytest_in(project, "nbs/02_crash.ipynb")
    assert code == 1 and "02_crash.ipynb ended its process with code 3" in said, said

def test_stuck_notebook_is_killed_with_its_children(project):
    started = time.monotonic()
    code,said = pytest_in(project, "nbs/03_stuck.ipynb", "--notebook-seconds=10")
    assert code == 1 and "took more than 10" in said and "time.sleep(600)" in said and time.monotonic()-started < 120, said
    child = int((project/"nbs"/"child.pid").read_text())
    if running(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("the notebook's child outlived it")
