"What the benchmarks share: roads in processes of their own, alternated rounds, ratios, goals and the file of results."
import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))         # this checkout's visionlab, also from an environment that has only the peers

# ---- numbers

@dataclass
class Ratio:
    "How many times one thing takes what another takes: the median of the rounds, and how far they lie apart"
    median: float
    low: float
    high: float
    rounds: int
    def __str__(self): return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(ours, theirs):
    "Divide `theirs` by `ours` round by round, so that a slow minute of the machine slows both, and take the median"
    if len(ours) != len(theirs) or not ours: raise ValueError(f"Rounds must be paired: {len(ours)} and {len(theirs)}")
    each = [b/a for a, b in zip(ours, theirs)]
    return Ratio(statistics.median(each), min(each), max(each), len(each))


def slope(short, long, steps):
    "Divide what a long run takes more than a short one by the `steps` it has more: what a fit costs once falls out"
    return (long-short)/steps


def table(rows, head=()):
    "Align rows of text: the first column left, numbers right"
    lines = [[str(c) for c in r] for r in ([head] if head else []) + list(rows)]
    n = max((len(r) for r in lines), default=0)
    lines = [r + [""]*(n-len(r)) for r in lines]
    wide = [max(len(r[i]) for r in lines) for i in range(n)]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, wide))).rstrip() for r in lines)


@dataclass
class Goal:
    "A promise, and what was measured: `got` is None where it could not be"
    name: str
    wanted: float
    got: float | None = None
    at_least: bool = True
    unit: str = "×"
    why_not: str = ""            # why it was not measured
    note: str = ""

    @property
    def reached(self)->bool | None:
        "Say whether it was kept; None where nobody knows"
        if self.got is None: return None
        return self.got >= self.wanted if self.at_least else self.got <= self.wanted

    def __str__(self):
        verdict = {True: "reached", False: "NOT REACHED", None: f"not measured: {self.why_not}"}[self.reached]
        got = "" if self.got is None else f"{self.got:.3g} {self.unit}, "
        return f"{self.name}: {got}wanted {'≥' if self.at_least else '≤'} {self.wanted:g} {self.unit}: {verdict}" + (f" ({self.note})" if self.note else "")


def missed(goals):
    "List the goals that were measured and not reached"
    return [g for g in goals if g.reached is False]


# ---- the processor

def _descendants(parents):
    "List (pid) of everything that descends from this process, given {pid: parent}"
    found, todo = [], [os.getpid()]
    while todo:
        me = todo.pop()
        children = [p for p, q in parents.items() if q == me]
        found += children
        todo += children
    return found


def _stat(pid):
    "Read (parent, seconds of user and system, seconds of its dead children) of a process, or None if it is gone"
    try: text = Path(f"/proc/{pid}/stat").read_text()
    except OSError: return None
    f, tick = text.rpartition(")")[2].split(), os.sysconf("SC_CLK_TCK")
    return int(f[1]), (int(f[11])+int(f[12]))/tick, (int(f[13])+int(f[14]))/tick


def processor_seconds():
    "Add up the processor time of this process and of all it started, those that still run included (Linux; elsewhere, those that ended)"
    t = os.times()
    own = time.process_time() + t.children_user + t.children_system
    if not Path("/proc/self/stat").exists(): return own
    stats = {int(p.name): s for p in Path("/proc").iterdir() if p.name.isdigit() and (s := _stat(p.name))}
    return own + sum(stats[p][1] + stats[p][2] for p in _descendants({p: s[0] for p, s in stats.items()}))


def usable_cpus():
    "Count the processors this process may use"
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def one_thread():
    "Let torch and OpenCV compute on one thread, so that processor time is the time of one core"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    import torch
    torch.set_num_threads(1)
    try: import cv2
    except ImportError: return
    cv2.setNumThreads(0)


def keep_pages():
    "Let glibc keep the memory it frees, as `Learner.fit` does while it trains on a CPU; for everyone or for nobody"
    import ctypes
    try: libc = ctypes.CDLL("libc.so.6")
    except OSError: return
    libc.mallopt(-4, 0); libc.mallopt(-1, 2**31-1)          # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h


# ---- roads in processes of their own

def _serve(pipe, make, args, quiet):
    "Build a road in this process and run it whenever asked"
    if quiet: _silence()
    try: road = make(*args)
    except Exception as e: return pipe.send(("unavailable", f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"))
    pipe.send(("ready", None))
    while (asked := pipe.recv()) is not None:
        try: pipe.send(("done", road(*asked)))
        except Exception as e: pipe.send(("failed", f"{type(e).__name__}: {e}"))


def _silence():
    "Send what peers print to nowhere"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2): os.dup2(nowhere, stream)


class Road:
    "Something to measure, in a process of its own: threads, memory and settings of one road never touch another"
    def __init__(self, name, make, *args, quiet=True):
        self.name, self.trouble = name, ""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args, quiet))
        self.process.start()
        theirs.close()
        self._hear()

    def _hear(self):
        "Wait for an answer; a road that fails is out, with its reason"
        try: kind, what = self.pipe.recv()
        except EOFError: kind, what = "failed", "its process ended"
        if kind in ("ready", "done"): return what
        self.trouble = what
        self.close()

    @property
    def there(self): return not self.trouble

    def __call__(self, *args):
        "Run once and return what it measured, or None if it failed, now or before"
        if not self.there: return None
        self.pipe.send(args)
        got = self._hear()
        if not self.there: print(f"  {self.name}: left out ({self.trouble})")
        return got

    def close(self):
        "End the process"
        if self.process.is_alive() and not self.trouble:
            try: self.pipe.send(None)
            except OSError: pass
        self.process.join(5)
        if self.process.is_alive(): self.process.terminate()
        self.process.join(5)
        self.pipe.close()


@contextmanager
def roads(makers, *args, say=print):
    "Start a road for each (name, maker); those that cannot be had say why"
    made = []
    try:
        for name, make in makers.items():
            made.append(Road(name, make, *args))
            if not made[-1].there: say(f"  {name}: left out ({made[-1].trouble})")
        yield {r.name: r for r in made}
    finally:
        for r in made: r.close()


def alternate(those, rounds, *args, warm_up=1):
    "Run every road once a round, after some rounds to warm up, and list what each measured; of one that fails nothing is kept"
    found = {name: [] for name in those}
    for i in range(warm_up+rounds):
        for name, road in those.items():
            got = road(*args)
            if got is not None and i >= warm_up: found[name].append(got)
    return {name: o for name, o in found.items() if len(o) == rounds}


# ---- results

PACKAGES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy", "albumentations", "opencv-python-headless", "timm", "fastai", "autotimm", "lightning", "lightly-train", "skorch", "accelerate",
            "transformers", "torchmetrics", "tqdm", "ipywidgets", "jupyterlab")


def version(package):
    "Give the version of an installed package, or None"
    try: return metadata.version(package)
    except metadata.PackageNotFoundError: return None


def machine():
    "Describe where this ran, without names"
    from visionlab import __version__
    versions = dict(visionlab=__version__, python=platform.python_version()) | {p: v for p in PACKAGES if (v := version(p))}
    return dict(system=platform.system(), architecture=platform.machine(), processors=usable_cpus(), load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None, versions=versions)


def rounded(o):
    "Write numbers with four digits that count, and everything else as JSON can hold it"
    if isinstance(o, float): return float(f"{o:.4g}")
    if isinstance(o, dict): return {k: rounded(v) for k, v in o.items()}
    return [rounded(v) for v in o] if isinstance(o, (list, tuple)) else o


@dataclass
class Report:
    "Collect what was measured, print it, and write it"
    title: str
    settings: dict
    goals: list = field(default_factory=list)
    results: dict = field(default_factory=dict)
    left_out: dict = field(default_factory=dict)

    def leave_out(self, title, those):
        "Note the roads that could not be measured, and why"
        self.left_out |= {f"{title}: {name}": road.trouble for name, road in those.items() if road.trouble}

    def promise(self, *goals):
        "Add goals and print each with its verdict"
        for g in goals:
            self.goals.append(g)
            print(f"  {g}")

    def save(self, path):
        "Write everything as JSON"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        goals = [asdict(g) | dict(reached=g.reached) for g in self.goals]
        doc = dict(title=self.title, machine=machine(), settings=self.settings, results=self.results, left_out=self.left_out, goals=goals)
        path.write_text(json.dumps(rounded(doc), indent=1) + "\n")

    def finish(self, out=None, strict=False):
        "Write the file if asked, say how many goals were reached, and return the exit code"
        if out: self.save(out)
        known = [g for g in self.goals if g.reached is not None]
        print(f"\n{len(known)-len(missed(known))} of {len(known)} measured goals reached" + (f", {len(self.goals)-len(known)} not measured" if len(known) < len(self.goals) else ""))
        return int(strict and bool(missed(self.goals)))


def parser(doc):
    "Make an argument parser with what every benchmark takes"
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5, help="alternated rounds; medians are compared")
    p.add_argument("--out", type=Path, help="also write everything as JSON")
    p.add_argument("--strict", action="store_true", help="exit code 1 if a measured goal is not reached")
    return p
