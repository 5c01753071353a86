"The benchmarks start, and what they conclude from numbers is right; no peer is needed."
import importlib.util, json, subprocess, sys, time
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1]/"benchmarks"


@pytest.fixture(scope="module")
def load():
    "Import a benchmark under a name of its own: `photos` is a module of the tests too."
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    def named(name):
        if name == "bench": return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER/f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    yield named
    sys.path[:] = before


@pytest.fixture(scope="module")
def bench(load): return load("bench")


SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "bench")

def test_help():
    running = {name: subprocess.Popen([sys.executable, FOLDER/f"{name}.py", "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for name in SCRIPTS}
    said = {name: (p.communicate(timeout=60)[0], p.returncode) for name, p in running.items()}
    assert {name for name, (text, code) in said.items() if code or "usage:" not in text} == set(), said
    readme = (FOLDER/"README.md").read_text()
    assert [n for n in SCRIPTS if f"`{n}.py`" not in readme] == []


def test_requirements_name_what_is_compared(bench):
    lines = [o for o in (FOLDER/"requirements-peers.txt").read_text().splitlines() if o and o[0] != "#"]
    names = {o.split("=")[0].split(">")[0] for o in lines}
    assert {"fastai", "autotimm", "lightning", "skorch", "accelerate", "transformers", "torchmetrics", "albumentations"} <= names <= set(bench.PACKAGES)


# ---- numbers

def test_ratio_is_taken_round_by_round(bench):
    ours, theirs = [1., 2., 10.], [3., 6., 20.]          # the third round was slow for both
    r = bench.ratio(ours, theirs)
    assert (r.median, r.low, r.high, r.rounds) == (3., 2., 3., 3) and str(r) == "3.00 (2.00–3.00)"
    with pytest.raises(ValueError, match="paired"): bench.ratio([1.], [1., 2.])
    with pytest.raises(ValueError, match="paired"): bench.ratio([], [])


def test_slope_drops_what_a_fit_costs_once(bench): assert bench.slope(5+60*.25, 5+360*.25, 300) == .25


def test_table(bench):
    text = bench.table([("a", "1"), ("longer", "22", "3")], ("name", "n"))
    assert text.splitlines() == ["name     n", "a        1", "longer  22  3"] and bench.table([]) == ""


@pytest.mark.parametrize("got,at_least,reached", [(2.2, True, True), (2.19, True, False), (2.2, False, True), (2.21, False, False), (None, True, None)])
def test_goal(bench, got, at_least, reached):
    g = bench.Goal("speed", 2.2, got, at_least, why_not="fastai is not installed")
    assert g.reached is reached and bench.missed([g]) == ([g] if reached is False else [])
    assert {True: ": reached", False: "NOT REACHED", None: "not measured: fastai is not installed"}[reached] in str(g)


def test_report(bench, tmp_path, capsys):
    r = bench.Report("t", dict(rounds=2), results=dict(a=[dict(x=.1234567)]))
    r.promise(bench.Goal("kept", 1., 2.), bench.Goal("missed", 3., 2.), bench.Goal("unknown", 3.))
    assert (r.finish(tmp_path/"new/r.json"), r.finish(strict=True)) == (0, 1)
    assert "1 of 2 measured goals reached, 1 not measured" in capsys.readouterr().out
    doc = json.loads((tmp_path/"new/r.json").read_text())
    assert [g["reached"] for g in doc["goals"]] == [True, False, None] and doc["results"]["a"][0]["x"] == .1235
    assert doc["machine"]["versions"]["torch"] == torch.__version__.split("+")[0] or doc["machine"]["versions"]["torch"] == torch.__version__
    assert set(doc["machine"]) == {"system", "architecture", "processors", "load", "versions"}       # no name, no path


def test_processor_time_counts_running_children(bench):
    before = bench.processor_seconds()
    with subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < .3: pass\nprint(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        p.stdout.readline()
        alive = bench.processor_seconds()-before
        p.communicate(b"\n")
    ended = bench.processor_seconds()-before
    assert alive >= .25 and ended >= alive-.05          # not counted twice, nor forgotten, when it has ended
    assert ended < alive+.25


def test_roads(bench, capsys):
    makers = dict(most=partial(partial, max), broken=partial(int, "x"))
    with bench.roads(makers) as there:
        assert bench.alternate(there, 2, 3, 5, warm_up=1) == dict(most=[5, 5])
        assert there["broken"].trouble.startswith("ValueError") and "broken: left out" in capsys.readouterr().out
        assert there["most"](1, "a") is None and "TypeError" in there["most"].trouble and there["most"](3, 5) is None      # once out, out
        assert bench.alternate(there, 1, 3, 5) == {}
    assert not any(r.process.is_alive() for r in there.values())


# ---- what each concludes

def test_loader_judges(load):
    loader = load("loader")
    found = {"visionlab": [dict(cpu=1., wall=1.)]*3, "torchvision + PIL": [dict(cpu=2.5, wall=9.)]*3, "fastai": [dict(cpu=2.5, wall=9.)]*3}
    goals = loader.judge(loader.PHOTO_GOALS, found, 1, {"photos, 1 workers: AutoTimm, albumentations": "ModuleNotFoundError"})
    assert [g.reached for g in goals[:3]] == [True, False, None] and goals[0].got == 2.5 and "ModuleNotFoundError" in goals[2].why_not
    assert loader.times(found, "visionlab", "nobody") is None


def test_fingerprint_is_of_images_in_order(load):
    loader = load("loader")
    x, y = torch.arange(24.).reshape(6, 1, 2, 2), torch.arange(6)
    cut = lambda n, x=x: list(zip(x.split(n), y.split(n)))
    assert loader.fingerprint(cut(2)) == loader.fingerprint(cut(4)) == loader.fingerprint([dict(image=x, label=y)])
    assert loader.fingerprint(cut(2)) != loader.fingerprint(cut(2, x.flip(0))) != loader.fingerprint(cut(2), 1)


def test_waits(load):
    loader = load("loader")
    class Slow:
        def __iter__(self): time.sleep(.05); yield from range(1, 4)
    got = loader.Waits(lambda root, workers: Slow(), "", 0, 0.)()
    assert .05 <= got["first"] < .5 and .05 <= got["turn"] < .5


def test_loop_judges(load):
    loop = load("loop")
    rounds = lambda k: [dict(cpu=dict(mine=k*r, raw=r), wall=dict(mine=2*k*r, raw=r)) for r in (1., 5., 2.)]
    found = {"visionlab, no callbacks": rounds(1.02), "visionlab, defaults": rounds(1.2)}
    goals = loop.judge(found, {"visionlab, EMA, clipping, 3 torchmetrics": "it could not be imported"})
    assert [g.reached for g in goals] == [True, False, None] and "imported" in goals[2].why_not
    assert loop.over_raw(rounds(1.5), "wall").median == pytest.approx(3.) and len(loop.batches(40)) == 40
    assert loop.row("a", rounds(1.5))[:2] == ("a", "1.50 (1.50–1.50)")


def test_loop_measures_a_step(load, one_thread):
    loop = load("loop")
    measure = loop.Loop(lambda: lambda data: time.sleep(.05 + .004*len(data)), 2, 12)
    got = [measure() for _ in range(3)][-1]
    assert set(got) == {"cpu", "wall"} and .003 < got["wall"]["mine"] < .02 and got["cpu"]["mine"] < .001       # sleeping costs no processor; what a fit costs once is no part


def test_fashion_searches_from_the_fewest_epochs_on(load):
    fashion, asked = load("fashion"), []
    def run(n, seed): asked.append(n); return [(10.*n, .9+n/100)]
    got = fashion.search(run, [4, 1, 2], .92, 0)
    assert asked == [1, 2] and (got["reached"], got["epochs"], got["seconds"]) == (True, 2, 20.)
    got = fashion.search(run, [1], .92, 0)
    assert not got["reached"] and got["accuracy"] == pytest.approx(.91)
    got = fashion.search(lambda n, seed: [(1., .8), (2., .93)], [2, 8], .92, 0, once=True)
    assert (got["reached"], got["epochs"], got["seconds"], len(got["tried"])) == (True, 2, 2., 2)
    assert fashion.search(lambda n, seed: None, [1], .92, 0) is None


def test_fashion_judges(load):
    fashion = load("fashion")
    one = lambda s, reached=True: [dict(seconds=s, reached=reached, epochs=2, accuracy=.92)]
    goals = fashion.judge({"visionlab": one(10.), "visionlab, PNGs": one(20.), "fastai": one(90.), "PyTorch": one(45.)})
    assert [g.reached for g in goals] == [True, False]
    goals = fashion.judge({"visionlab": one(10., False), "fastai": one(90.)})
    assert [g.reached for g in goals] == [None, None] and "did not reach" in goals[0].why_not
    assert fashion.seconds_to(one(1.)+one(3.)+one(2.)) == 2. and fashion.seconds_to(one(1.)+one(3., False)) is None


# ---- photographs

def test_photographs_are_never_enlarged(load, tmp_path):
    photos = load("photos")
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="enlarged"): photos.view(np.zeros((300, 451, 3), np.uint8), rng)
    assert photos.view(np.zeros((800, 900, 3), np.uint8), rng).size == (500, 375)
    root = photos.make_photos(tmp_path/"a", 20)
    assert 73 <= photos.mean_kib(root) <= 110 and len(list(root.rglob("*.jpg"))) == 20      # as heavy as photographs are
    again = photos.make_photos(tmp_path/"b", 20)
    assert all(f.read_bytes() == (again/f.relative_to(root)).read_bytes() for f in root.rglob("*.jpg"))
