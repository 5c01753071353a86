"Fits in the background and their chart: equal results, every way to stop, and what a real kernel sends."
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from jupyter_client.manager import start_new_kernel
from kernel import send_cell
from torch import nn

import visionlab.all  # noqa: F401  adds to Learner what a fit in the background refuses
from visionlab.runs.checkpoints import Checkpoint
from visionlab.core.errors import ConfigError, DataError
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.widgets.live_chart import LiveChart
from visionlab.training.metrics import MetricConfig
from visionlab.runs.folder import SaveCheckpoints
from visionlab.callbacks.stopping import KeepBest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


DATA = [(torch.randn(8, 20, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3) for i in range(20)]


class Slow:
    "Batches that take their time."
    def __init__(self, seconds=.005): self.seconds = seconds
    def __len__(self): return len(DATA)
    def __iter__(self):
        for b in DATA:
            time.sleep(self.seconds)
            yield b


def learner(train=DATA, **kw):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 3))
    return Learner((train, DATA[:5]), net, lr=1e-2, device="cpu", **kw)


class At(Callback):
    "Do something at a step of the learner, in the thread that trains."
    order, aside = 50, True
    def __init__(self, step, act): self.step, self.act = step, act
    def after_batch(self, learn):
        if learn.step == self.step: self.act(learn)


def trained(learn): return [v.clone() for v in learn.model.state_dict().values()], learn.recorder.losses, [{k: v for k, v in r.items() if k != "time"} for r in learn.history]


def same(a, b): return all(torch.equal(p, q) for p, q in zip(a[0], b[0])) and a[1:] == b[1:]


@pytest.mark.parametrize("how", ["fit", "fit_one_cycle", "fine_tune"])
def test_a_fit_in_the_background_equals_one_in_the_foreground_bit_for_bit(how):
    here, there = learner(), learner()
    torch.manual_seed(3)
    getattr(here, how)(2)
    after = torch.rand(1)
    torch.manual_seed(3)
    run = getattr(there, how)(2, background=True)
    assert threading.current_thread() is not run.thread and run.wait() is there
    assert same(trained(here), trained(there))
    assert torch.equal(torch.rand(1), after)                        # and the random state is as it would be
    assert not any("_Watch" in type(o).__name__ for o in there.callbacks)


def test_it_returns_at_once_and_says_what_is_missing_at_once():
    learn = learner(Slow(.1))
    start = time.monotonic()
    run = learn.fit(50, background=True)
    assert time.monotonic()-start < 5 and run.running and repr(run).startswith("Running")
    with pytest.raises(TimeoutError, match="has not ended"): run.wait(.3)
    run.stop()
    assert not run.wait().run.running and repr(run).startswith("Over: stopped")
    run.stop(), run.stop_after_epoch()                             # nothing to stop any more
    with pytest.raises(TypeError, match="epochs"): learn.fit(background=True)
    learn.fit(1)
    assert not learn.interrupted


def test_stop_ends_after_the_current_step_and_the_learner_goes_on():
    learn = learner()
    run = learn.fit(50, callbacks=[At(27, lambda o: o.run.stop())], background=True)
    run.wait()
    assert learn.step == 28 and learn.interrupted and len(learn.history) == 1 and run.chart.state == "stopped"
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit(1)
    assert learn.step == 48 and not learn.interrupted


def test_stop_after_epoch_validates_and_ends_as_a_whole_fit(tmp_path):
    learn, best = learner(), KeepBest(restore=False)
    learn.fit(50, callbacks=[At(27, lambda o: o.run.stop_after_epoch()), best, SaveCheckpoints(tmp_path)], background=True).wait()
    assert learn.step == 40 and [r["epoch"] for r in learn.history] == [1, 2] and "valid_loss" in learn.history[1] and not learn.interrupted
    assert learn.fits == [50] and best.best_epoch in (1, 2)        # `after_fit` ran
    again = learner().resume(tmp_path)
    assert again.step == 40 and not again.pending.at["running"] if hasattr(again.pending, "at") else again.step == 40


@pytest.mark.parametrize("stop,steps", [("stop", 8), ("stop_after_epoch", 20)])
def test_stopping_the_first_part_of_fine_tune_stops_all_and_thaws(stop, steps):
    learn = learner()
    learn.fine_tune(5, callbacks=[At(7, lambda o: getattr(o.run, stop)())], background=True).wait()
    assert learn.step == steps and all(p.requires_grad for p in learn.model.parameters())


def test_a_stop_between_two_fits_is_not_forgotten():
    learn = learner()

    class Between(Callback):
        def cleanup_fit(self, learn): learn.run.asked = "now"       # as a click just then
    learn.fine_tune(5, callbacks=[Between()], background=True).wait()
    assert learn.step == 20 and learn.interrupted


class Pausing:
    "Batches that wait, in the middle of each pass, until somebody lets them go on."
    def __init__(self, batches): self.batches, self.reached, self.go_on = batches, threading.Semaphore(0), threading.Semaphore(0)
    def __len__(self): return len(self.batches)
    def __iter__(self):
        for i, b in enumerate(self.batches):
            if i == len(self.batches)//2:
                self.reached.release()
                self.go_on.acquire(timeout=60)
            yield b


# what works on a picture or a whole set needs a data module, which this learner has not; it is refused as well, before that is looked at
REFUSED = dict(
    fit=(1,), fit_one_cycle=(1,), fine_tune=(1,), lr_find=(), pick_lr=(), validate=(), get_preds=(), interpret=(), explore_confusion=(), freeze=(),
    unfreeze=(), freeze_to=(-1,), initial_loss=(), overfit_one_batch=(), replay=(), find_batch_size=(), fastest_precision=(), linear_probe=(),
    second_opinion=(), fold_opinion=(), clean_labels=(), save=("w",), load=("w",), resume=("w",), export=("w",), predict=("a.png",), predictor=(), grad_cam=([0],),
    predict_pad=(), label_active=(), in_background=(print,))


def test_a_refused_call_leaves_the_fit_and_its_metrics_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = lambda: ["accuracy", MetricConfig("f1_macro", "visionlab")]
    train, valid = Pausing(DATA), Pausing(DATA[:6])
    learn, alone = learner(train, metrics=metrics()), learner(metrics=metrics())
    learn.valid_dl, alone.valid_dl = valid, DATA[:6]
    run = learn.fit(2, background=True)
    for place in (train, valid, train, valid):
        assert place.reached.acquire(timeout=60)
        try:
            for name, args in REFUSED.items():
                with pytest.raises(ConfigError, match="training in the background"): getattr(learn, name)(*args)
        finally: place.go_on.release()
    run.wait()
    alone.fit(2)
    assert same(trained(learn), trained(alone)) and "f1_macro" in str(learn.history[0])
    assert not [*tmp_path.iterdir()]


def test_every_verb_of_a_learner_is_tried_in_the_background():
    quiet = {"alone", "together", "update", "batch_loss", "drop_gradients", "show_batch", "class_balance", "describe_model"}       # of a step, the data, or the network
    verbs = {o for o in dir(Learner) if not o.startswith("_") and callable(getattr(Learner, o))}
    assert verbs - quiet == set(REFUSED)


def test_what_would_disturb_it_is_refused(tmp_path):
    learn = learner(Slow())
    run = learn.fit(500, background=True)
    try:
        for act in (lambda: learn.fit(1), lambda: learn.fit_one_cycle(1, background=True), learn.lr_find, learn.validate, learn.get_preds, learn.freeze, learn.unfreeze, lambda: learn.save(tmp_path/"w"),
                    lambda: learn.load(tmp_path/"w"), lambda: learn.export(tmp_path/"model"), learn.linear_probe, lambda: learn.resume(tmp_path), learn.replay, learn.initial_loss):
            with pytest.raises(ConfigError, match="training in the background"): act()
        assert run.running and learn.model.training and not [*tmp_path.iterdir()]                 # none of these came so far as to change anything
    finally: run.stop()
    run.wait()
    learn.validate()


def test_an_error_in_the_thread_is_raised_with_its_traceback_and_the_learner_goes_on(capfd):
    learn = learner()
    def fail(learn): raise DataError("A picture is upside down", "cat.jpg", "Turn it")
    run = learn.fit(1, callbacks=[At(3, fail)], background=True)
    for _ in range(2):
        with pytest.raises(DataError, match="upside down") as e: run.wait()
        assert "_one_batch" in "".join(map(str, e.traceback))
    assert run.error is e.value and run.chart.state == "failed" and "Turn it" in run.chart.to_html()
    assert "upside down" in capfd.readouterr().err                  # also where nobody waits
    learn.fit(1)
    assert len(learn.history) == 1


def test_an_error_before_training_arrives_too():
    with pytest.raises(ConfigError): learner().fit(0, background=True).wait()
    with pytest.raises(ConfigError, match="train as one|train together"):
        learn = learner()
        learn.group = object()
        learn.fit(1, background=True)


def test_a_chart_may_be_missing_when_a_run_is_resumed(tmp_path):
    whole = learner()
    whole.fit(3)
    learn = learner()
    learn.fit(3, callbacks=[SaveCheckpoints(tmp_path), At(29, lambda o: o.run.stop())], background=True).wait()
    again = learner().resume(tmp_path)
    again.fit(3, callbacks=[LiveChart(), SaveCheckpoints(tmp_path)])
    assert same(trained(whole), trained(again))


def test_the_chart_knows_what_the_table_knows():
    learn = learner(metrics=["accuracy", "f1_macro"])
    chart = LiveChart(every=0)
    learn.fit(2)
    learn.fit(3, callbacks=[chart])
    panels = {p.title: p for p in chart.panels()}
    assert list(panels) == ["loss", "accuracy", "f1_macro"]
    for name, best in (("accuracy", max), ("f1_macro", max), ("valid_loss", min)):
        values = [r[name] for r in learn.history]
        assert chart.best(name) == (values.index(best(values)), best(values))
    valid = panels["loss"].curves[1]
    assert (valid.x, valid.y) == ([1, 2, 3, 4, 5], [r["valid_loss"] for r in learn.history])
    points = chart.line.points
    assert points[-1][0] == 5 and all(a[0] <= b[0] for a, b in zip(points, points[1:])) and 0 < points[0][0] <= 2
    for b in (2, 3, 4):                                              # points of an epoch lie around its loss
        of = [v for x, v in points if b < x <= b+1]
        assert min(of) - 1e-6 <= learn.history[b]["train_loss"] <= max(of) + 1e-6
    assert re.search(r"3 epochs in 0:\d\d", chart.headline) and "best accuracy" in chart.headline
    svg = chart.to_html()
    assert svg.count("<svg role='img' aria-label=") == 3 and svg.count("r='6'") == 3 and "nan" not in svg


def test_a_stream_of_unknown_length_and_a_loss_that_is_no_number_can_be_drawn():
    class Stream:
        def __iter__(self): return iter(DATA)
    chart = LiveChart(every=0)
    learner(Stream()).fit(2, callbacks=[chart])
    assert all(a[0] <= b[0] for a, b in zip(chart.line.points, chart.line.points[1:])) and chart.line.points[-1][0] == 2
    chart.line.points += [(1.5, float("nan")), (1.6, float("inf"))]
    assert "nan" not in chart.to_html() and "inf" not in chart.panels()[0].svg()


def test_a_long_training_stays_a_small_picture():
    chart = LiveChart()
    chart.rows = [dict(epoch=i, train_loss=1/(i+1), valid_loss=1/(i+1), accuracy=i/1000, lr=1e-3, time=1.) for i in range(1000)]
    chart.columns, chart.directions, chart.total = list(chart.rows[0]), {"accuracy": True}, 1000
    for i in range(100_000): chart.line._add(i/100, 1.)
    assert len(chart.line.points) < 500 and len(chart._live()) < 80_000 and "970 epochs before" in chart.to_html()


def test_drawing_is_seldom_and_takes_turns():
    class Counting(LiveChart):
        drawn = 0
        def push(self, renew=False): self.drawn += 1
    chart = Counting(every=.1)
    os.environ["VISIONLAB_PROGRESS"] = "html"                       # put back by the fixture
    chart.show = lambda: None
    start = time.monotonic()
    learner().fit(10, callbacks=[chart])
    assert 1 <= chart.drawn <= 2 + (time.monotonic()-start)/.1


def test_figures_and_files(tmp_path):
    chart = LiveChart()
    assert "no fit yet" in chart.to_html() and len(chart.figure().axes) == 1
    learner().fit(2, callbacks=[chart])
    for name in ("a.svg", "a.png", "a.html"): assert chart.save(tmp_path/name).stat().st_size > 1000
    assert [a.get_title() for a in chart.figure().axes] == [p.headline for p in chart.panels()]


def test_without_a_notebook_the_table_is_printed_once(monkeypatch, capsys):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "plain")
    learner().fit(2, callbacks=[LiveChart()])
    in_front = capsys.readouterr().out
    learner().fit(2, background=True).wait()
    behind = capsys.readouterr().out
    assert in_front.count("valid_loss") == behind.count("valid_loss") == 1 and len(in_front.splitlines()) == len(behind.splitlines()) == 3


# ---- scripts

SCRIPT = """
import sys, time, torch
from torch import nn
from visionlab.training.learner import Learner
from visionlab.runs.folder import SaveCheckpoints
import visionlab.widgets.live_chart
torch.set_num_threads(1)
tens = [(torch.randn(8, 20, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3) for i in range(20)]
class Slow:
    def __iter__(self):
        for b in tens: time.sleep(.01); yield b
    def __len__(self): return len(tens)
if __name__ == "__main__":
    learn = Learner((Slow(), tens), nn.Linear(20, 3), device="cpu")
    run = learn.fit(1000, callbacks=[SaveCheckpoints(sys.argv[1])], background=True)
    while learn.step < 30: time.sleep(.01)
"""


def script(tmp_path, *lines):
    file = tmp_path/"script.py"
    file.write_text(SCRIPT + textwrap.indent("\n".join(lines), "    "))
    return subprocess.Popen([sys.executable, file, tmp_path/"run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, VISIONLAB_PROGRESS="off"))


def test_a_script_that_ends_stops_its_fit_and_the_checkpoint_is_written(tmp_path):
    out, err = (p := script(tmp_path)).communicate(timeout=300)
    assert p.returncode == 0 and "was stopped" in err and "Traceback" not in err
    assert Checkpoint.newest(tmp_path/"run").step >= 30


def test_the_interrupt_key_in_a_script_stops_the_fit_that_is_waited_for(tmp_path):
    p = script(tmp_path, "try:", "    import threading; threading.Timer(1, print, ['now'], dict(flush=True)).start()", "    run.wait()", "except KeyboardInterrupt: print(learn.step, learn.interrupted, run.running)")
    assert p.stdout.readline() == "now\n"
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=300)
    step, *rest = out.split()
    assert rest == ["True", "False"] and Checkpoint.newest(tmp_path/"run").step == int(step) and p.returncode == 0, err


# ---- a kernel

class Kernel:
    "A real kernel, and what it sends."
    def __init__(self, folder):
        self.km, self.kc = start_new_kernel(kernel_name="python3", cwd=str(folder), env=dict(os.environ, VISIONLAB_PROGRESS="html", OMP_NUM_THREADS="1"))
        self.sent = []

    def hear(self, until, timeout=60):
        "Listen until something is heard, or for some seconds."
        end = time.monotonic()+timeout
        while time.monotonic() < end:
            try: m = self.kc.get_iopub_msg(timeout=.2)
            except Exception: continue
            self.sent.append(m)
            if until(m): return m
        raise TimeoutError([(m["msg_type"], str(m["content"])[:300]) for m in self.sent[-5:]])

    def run(self, code):
        "Run a cell; give what it displayed."
        asked, n = send_cell(self.kc, code), len(self.sent)
        self.hear(lambda m: m["parent_header"].get("msg_id") == asked and m["msg_type"] == "status" and m["content"]["execution_state"] == "idle")
        mine = [m for m in self.sent[n:] if m["parent_header"].get("msg_id") == asked]
        assert not (errors := [m["content"] for m in mine if m["msg_type"] == "error"]), errors
        return [m for m in mine if m["msg_type"] in ("display_data", "execute_result", "stream")]

    def value(self, code): return self.run(code)[-1]["content"]["data"]["text/plain"]
    def wait_for(self, code):
        end = time.monotonic() + 60
        while self.value(code) != "True": assert time.monotonic() < end, code


WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    k = Kernel(tmp_path_factory.mktemp("kernel"))
    try:
        k.run(SCRIPT.split("if __name__")[0] + "\nfrom visionlab.widgets.live_chart import LiveChart\ndef new(): return Learner((Slow(), tens), nn.Linear(20, 3), device='cpu')\nlearn = new()")
        yield k
    finally:
        k.kc.stop_channels()
        if k.km.is_alive(): k.km.shutdown_kernel(now=True)


def update(k): return k.hear(lambda m: m["msg_type"] == "update_display_data")["content"]


def test_a_cell_shows_one_display_live_and_then_still(kernel):
    shown = kernel.run("run = learn.fit(1000, background=True)\nrun")
    picture, controls = (m["content"] for m in shown)
    assert set(picture["data"]) == {"text/html", "text/plain"} and set(controls["data"]) == {WIDGET, "text/html"} and controls["data"]["text/html"] == ""
    moving = lambda m: m["msg_type"] == "comm_msg" and "<progress" in str(m["content"]["data"].get("state", {}).get("value", ""))
    first = kernel.hear(moving)["content"]["data"]["state"]["value"]
    assert kernel.hear(moving)["content"]["data"]["state"]["value"] != first and "<svg" in first
    elsewhere = kernel.run("run")[-1]["content"]["data"]                # a second look, in another cell
    assert elsewhere[WIDGET]["model_id"] == controls["data"][WIDGET]["model_id"]
    kernel.run("[o for o in run.chart._controls.children if o.description == 'stop'][0].click()")
    still, nothing = update(kernel), update(kernel)
    assert still["transient"] == picture["transient"] and set(still["data"]) == {"text/html", "text/plain"}
    assert nothing["transient"] == controls["transient"] and nothing["data"] == {"text/html": ""}       # the controls have left the file
    assert "stopped after" in still["data"]["text/html"] and "<svg" in still["data"]["text/html"] and "<progress" not in still["data"]["text/html"]
    assert kernel.value("run.running, learn.interrupted, len(run.chart._controls.children)") == "(False, True, 0)"
    assert all(WIDGET not in m["content"]["data"] for m in kernel.run("run"))        # nothing to press any more


def test_the_interrupt_key_is_heard_while_no_cell_runs(kernel):
    kernel.run("run = learn.fit(1000, background=True)")
    kernel.hear(lambda m: m["msg_type"] == "comm_msg" and "step" in str(m["content"]))
    time.sleep(.4)
    kernel.km.interrupt_kernel()
    update(kernel)
    assert kernel.value("run.running, learn.interrupted, run.error") == "(False, True, None)"
    kernel.run("import asyncio\nawait asyncio.sleep(.5)")
    time.sleep(1.5)
    assert kernel.value("get_ipython().kernel.saved_sigint_handler") == "<Handlers.SIG_IGN: 1>"       # the key is as it was


def test_the_interrupt_key_while_a_cell_waits(kernel):
    kernel.run("run = learn.fit(1000, background=True)")
    threading.Timer(1, kernel.km.interrupt_kernel).start()
    assert "interrupted" in kernel.value("'interrupted' if run.wait().interrupted else 'not'")


def test_in_the_foreground_the_chart_takes_the_place_of_the_table(kernel):
    asked = len(kernel.sent)
    shown = kernel.run("learn.train_dl = tens\nlearn.fit(3, callbacks=[LiveChart()]);")
    assert len(shown) == 1 and WIDGET not in shown[0]["content"]["data"]
    last = [m["content"]["data"]["text/html"] for m in kernel.sent[asked:] if m["msg_type"] == "update_display_data"][-1]
    assert "3 epochs in" in last and "<progress" not in last and "<svg" in last
    assert len(kernel.run("learn.fit(1);")) == 1                        # and afterwards the table is back
    table = [m["content"]["data"]["text/html"] for m in kernel.sent[asked:] if m["msg_type"] == "update_display_data"][-1]
    assert "<svg" not in table and "training progress" in table


def test_the_interrupt_key_in_the_foreground_leaves_the_chart_and_the_learner(kernel):
    threading.Timer(1.5, kernel.km.interrupt_kernel).start()
    n = len(kernel.sent)
    kernel.run("learn = new()\nlearn.fit(1000, callbacks=[LiveChart()]);")
    last = [m["content"]["data"]["text/html"] for m in kernel.sent[n:] if m["msg_type"] == "update_display_data"][-1]
    assert "stopped after" in last and kernel.value("learn.interrupted, learn.step > 0") == "(True, True)"


def test_without_ipywidgets_the_chart_moves_all_the_same(kernel):
    n = len(kernel.sent)
    shown = kernel.run("import sys; kept = {k:sys.modules.pop(k) for k in list(sys.modules) if k.split('.')[0] == 'ipywidgets'}; sys.modules['ipywidgets'] = None\nrun = learn.fit(1000, background=True)")
    assert WIDGET not in shown[0]["content"]["data"]
    first, second = update(kernel), update(kernel)
    assert "<progress" in first["data"]["text/html"] and first["data"] != second["data"]
    kernel.run("run.stop(); run.wait(); sys.modules.pop('ipywidgets'); sys.modules.update(kept)")
    assert n < len(kernel.sent)


def test_widgets_are_let_go(kernel):
    kernel.run("import ipywidgets, gc\ndef count(): return len(getattr(ipywidgets.widgets.widget, '_instances', None) or ipywidgets.Widget.widgets)\nlearn.train_dl = tens\nfor _ in range(3): learn.fit(1, background=True).wait()\nbefore = count()")
    kernel.run("for _ in range(10): learn.fit(1, background=True).wait()")
    assert kernel.value("count() - before") == "0"


def test_several_processes_print_the_table_of_the_first(kernel):
    shown = kernel.run("import os; from visionlab.training.launch import launch\nasked = os.environ.pop('VISIONLAB_PROGRESS')\ndef work(): Learner((tens, tens), nn.Linear(20, 3), device='cpu').fit(2)\nlaunch(work, 2); os.environ['VISIONLAB_PROGRESS'] = asked")
    said = "".join(m["content"]["text"] for m in shown if m["msg_type"] == "stream")
    assert [o.split()[0] for o in said.splitlines()] == ["epoch", "1", "2"]


def test_the_fit_ends_with_the_kernel(kernel):
    kernel.run("learn = new()\nrun = learn.fit(1000, callbacks=[SaveCheckpoints('run')], background=True)")
    kernel.wait_for("learn.step > 5")
    folder = kernel.value("__import__('os').getcwd()").strip("'")
    start = time.monotonic()
    kernel.km.shutdown_kernel()
    assert time.monotonic()-start < 20 and not kernel.km.is_alive()
    assert Checkpoint.newest(f"{folder}/run").step > 5
