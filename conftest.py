"Make each notebook of nbs/ one test, run in a process of its own the way `nbdev-test` runs it."
import contextlib, json, os, re, signal, subprocess, sys, tempfile
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent
NBS = ROOT/"nbs"
RUN_NOTEBOOK = """
import sys, torch
from nbdev.config import get_config
from nbdev.test import test_nb
torch.manual_seed(0)
path = sys.argv[1]
cfg = get_config(path)
flags = cfg.tst_flags.split() if isinstance(cfg.tst_flags, str) else cfg.tst_flags
passed,_ = test_nb(path, skip_flags=flags, basepath=cfg.config_path, cell_timeout=None)
sys.exit(not passed)
"""

# ---- processes

def _end(process):
    "Kill a process and the children it left behind"
    with contextlib.suppress(ProcessLookupError, PermissionError): os.killpg(process.pid, signal.SIGKILL)
    process.wait()

def _wait(process, seconds):
    "Wait for the exit code; when time is up ask where the process is, and return None"
    try: return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)      # nbdev answers with the stacks of the running notebook
        with contextlib.suppress(subprocess.TimeoutExpired): process.wait(5)

def run_python(*args, seconds, cwd=None, env=None):
    "Run Python under a time limit; return its exit code, None when time ran out, and all it printed"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen([sys.executable, *map(str, args)], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=said,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try: code = _wait(process, seconds)
        finally: _end(process)
        said.seek(0)
        return code, said.read()

def quiet_env(folder):
    "Copy the environment without display, network, user profile or caches: those go to `folder`"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    kept = {k:v for k,v in os.environ.items() if k != "IN_TEST"}      # nbdev's mark of a running notebook
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")                     # idle threads sleep, so that few processors go round
    return {**kept, **nowhere, "no_proxy":"localhost,127.0.0.1", "NO_PROXY":"localhost,127.0.0.1", "MPLBACKEND":"Agg", "PYTHONPATH":path,
            "PYTHONIOENCODING":"utf-8", "VISIONLAB_CACHE":str(Path(folder)/"cache"), "IPYTHONDIR":str(Path(folder)/"ipython")}

@pytest.fixture(name="run_python", scope="session")
def run_python_fixture(tmp_path_factory):
    "Give tests `run_python` in a quiet environment; what holds the environment never shows in a failure"
    folder = tmp_path_factory.mktemp("quiet")
    def run(*args, seconds, cwd=folder): return run_python(*args, seconds=seconds, cwd=cwd, env=quiet_env(folder))
    return run

# ---- notebooks

class NotebookFailed(Exception): "A notebook raised, crashed or took too long"

def _failing_cell(path, said):
    "Quote the cell in which the notebook stopped"
    number = re.findall(r"^While Executing Cell #(\d+):", said, re.M)
    if not number: return ""
    source = json.loads(path.read_text(encoding="utf-8"))["cells"][int(number[-1])-1]["source"]
    return f"cell {number[-1]}:\n\n" + "".join("    " + o for o in "".join(source).splitlines(True)) + "\n\n"

def _reason(code, seconds):
    if code is None: return f"took more than {seconds} s and was killed"
    return "failed" if code == 1 else f"ended its process with code {code}"

class NotebookFile(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name=self.path.stem)

class NotebookItem(pytest.Item):
    def runtest(self):
        seconds = self.config.getoption("--notebook-seconds")
        with tempfile.TemporaryDirectory(prefix="visionlab-") as tmp:
            code,said = run_python("-c", RUN_NOTEBOOK, self.path, seconds=seconds, cwd=self.path.parent, env=quiet_env(tmp))
        if code != 0: raise NotebookFailed(f"{self.path.name} {_reason(code, seconds)}\n{_failing_cell(self.path, said)}{said}")

    def repr_failure(self, excinfo, style=None):
        return str(excinfo.value) if isinstance(excinfo.value, NotebookFailed) else super().repr_failure(excinfo, style)

    def reportinfo(self): return self.path, None, f"notebook {self.name}"

def _is_page(path):
    "Say whether nbdev would test this file"
    path = path.resolve()
    return path.suffix == ".ipynb" and path.is_relative_to(NBS) and not any(o[0] in "._" for o in path.relative_to(NBS).parts)

def pytest_addoption(parser):
    parser.addoption("--notebook-seconds", type=float, default=600, help="time limit for each notebook (default 600)")

def pytest_collect_file(file_path, parent):
    if _is_page(file_path): return NotebookFile.from_parent(parent, path=file_path)
