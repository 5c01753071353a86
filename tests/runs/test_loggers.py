"What trackers are told can be read back from their own files; what fails or hangs never stops a training."
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from visionlab.runs import logger, wandb
from visionlab.callbacks.ema import EMA
from visionlab.callbacks.batch_size import AutoBatch
from visionlab.callbacks.one_cycle import Schedule
from visionlab.runs.checkpoints import Checkpoint
from visionlab.core.errors import ConfigError
from visionlab.data.module import ImageDataModule
from visionlab.callbacks.gradients import ClipGrad
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.runs.compare import flat_names
from visionlab.runs.courier import Courier
from visionlab.runs.logger import Logger, public
from visionlab.runs.tensorboard import TensorBoardLogger
from visionlab.runs.wandb import offline_rows, WandbLogger
from visionlab.runs.mlflow import MLflowLogger
from visionlab.runs.loggers import logger_names, make_loggers
from visionlab.runs.folder import RunFolder, SaveCheckpoints
from visionlab.callbacks.stopping import EarlyStopping, KeepBest

pytestmark = pytest.mark.usefixtures("one_thread")
TOKEN = "hf_0123456789abcdef"
SECRETS = "data: /home/ada/photos\nhub: {token: " + TOKEN + ", name: birds}\nlr: 0.01\n"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")
    for o in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_MODE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"): monkeypatch.delenv(o, raising=False)

BATCHES = [(torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3) for i in range(10)]

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
def learner(**kw): return Learner((BATCHES, BATCHES[:2]), net(), lr=1e-2, device="cpu", **kw)

class Memory(Logger):
    "A tracker that remembers"
    name = "Memory"
    def start(self, config, step): self.rows,self.config_seen,self.pictures,self.states = getattr(self, "rows", []), config, [], []
    def scalars(self, values, step): self.rows.append((step, values))
    def image(self, name, png, step): self.pictures.append((name, step, png[:8]))
    def flush(self, state): self.states.append(state)
    def column(self, name): return [(step, row[name]) for step,row in self.rows if name in row]

class Crash(Callback):
    "Keep a checkpoint, and fail some steps later"
    order,aside = 999, True
    def __init__(self, keep, fail): self.keep,self.fail = keep, fail
    def after_batch(self, learn):
        if learn.step+1 == self.keep: self.checkpoint = Checkpoint.of(learn)
        if learn.step+1 == self.fail: raise RuntimeError("the power went")

def text_of(folder): return b"".join(o.read_bytes() for o in Path(folder).rglob("*") if o.is_file())

def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    seen = EventAccumulator(str(folder), dict(scalars=0, images=0, tensors=0)).Reload()
    return seen, {k:[(o.step, pytest.approx(o.value, rel=1e-5)) for o in seen.Scalars(k)] for k in seen.Tags()["scalars"]}


def test_what_is_said():
    log = Memory(every=3)
    learn = learner()
    learn.fit(2, callbacks=[log, ClipGrad(1e-3)])
    assert [s for s,_ in log.column("train/loss")] == [3, 6, 9, 12, 15, 18]
    assert [v for _,v in log.column("train/loss")] == pytest.approx(learn.recorder.losses[2::3])
    assert [v for _,v in log.column("epoch/valid_loss")] == pytest.approx([r["valid_loss"] for r in learn.history])
    assert log.column("epoch/epoch") == [(10, 1), (20, 2)] and log.states == ["finished"]
    assert min(v for _,v in log.column("train/gradient_norm")) > .1            # of the gradient before it is clipped
    assert {k for k,_,_ in log.pictures} == {"batch", "confusion"} and log.pictures[0][2] == b"\x89PNG\r\n\x1a\n"
    assert log.config_seen["seed"] == 0 and log.config_seen["model"] == "Sequential"

def test_the_length_of_the_gradient():
    log,model = Memory(every=1, images=0), net()
    nn.functional.cross_entropy(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    learner().fit(1, callbacks=log)
    assert log.column("train/gradient_norm")[0][1] == pytest.approx(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())

def test_rates_of_stem_and_head():
    log = Memory()
    log.since,log.count = 0., 8
    said = log._of_step(SimpleNamespace(opt=SimpleNamespace(param_groups=[dict(lr=1e-4), dict(lr=1e-2)]), loss=torch.tensor(1.)))
    assert (said["lr"], said["lr_stem"]) == (1e-2, 1e-4)

def test_a_loss_is_not_waited_for_where_it_is_trained():
    "The training hands over the tensor; its value is read in the thread."
    import threading
    read = []
    class Watching(Memory):
        def _scalars(self, kind, values, step):
            if kind == "train": read.append((type(values["loss"]), threading.current_thread() is threading.main_thread()))
            super()._scalars(kind, values, step)
    learner().fit(1, callbacks=Watching(every=5, images=0))
    assert read == [(torch.Tensor, False)]*2

def test_fits_that_follow_each_other_are_one_run():
    log = Memory(every=5, images=0)
    learn = learner(callbacks=[log])
    learn.fit(1)
    thread = log.courier
    learn.fit(1)
    assert log.courier is thread and [s for s,_ in log.column("train/loss")] == [5, 10, 15, 20] and [s for s,_ in log.column("epoch/accuracy" if "accuracy" in learn.history[0] else "epoch/valid_loss")] == [10, 20]
    log.close()
    assert log.courier is None

@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_logs(rank, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", str(rank))
    assert [o.kind for o in make_loggers("tensorboard", run=tmp_path)] == (["tensorboard"] if rank == 0 else [])
    log = Memory(every=5, images=0)
    log.before_fit(SimpleNamespace(peers=SimpleNamespace(group=SimpleNamespace(rank=rank, strategy="ddp"))))
    assert log.on == (rank == 0)


def test_tensorboard_of_a_run_that_goes_on(tmp_path):
    "Stopped in the second epoch and gone on with from an older checkpoint: each step is there once, as in a run that was never stopped."
    def logged(learn, name, *more): return learn.fit(2, callbacks=[TensorBoardLogger(tmp_path/name, every=2, images=0), *more])
    logged(learner(), "whole")
    crash = Crash(13, 17)
    with pytest.raises(RuntimeError): logged(learner(), "run", crash)
    logged(learner().resume(crash.checkpoint), "run")
    (_,whole),(seen,again) = scalars(tmp_path/"whole"), scalars(tmp_path/"run")
    assert [s for s,_ in again["train/loss"]] == list(range(2, 21, 2)) and [s for s,_ in again["epoch/valid_loss"]] == [10, 20]
    for k in ("train/loss", "train/lr", "train/gradient_norm", "epoch/train_loss", "epoch/valid_loss"): assert again[k] == whole[k]
    assert "config/text_summary" in seen.Tags()["tensors"]
    logged(learner(), "run")                                # another training does not write into it
    assert sorted(o.name for o in tmp_path.iterdir()) == ["run", "run-2", "whole"]

class AtTheEnd(Callback):
    "Fail when all epochs are done, before the fit has ended."
    order,aside = -999, True
    def after_fit(self, learn): raise RuntimeError("the power went")


def of_kind(kind, folder):
    "Make a tracker that writes into a folder."
    if kind == "tensorboard": return TensorBoardLogger(folder, every=2, images=4)
    if kind == "mlflow": return MLflowLogger(folder, every=2, images=4)
    return WandbLogger(folder=folder, every=2, images=4, offline=True)


@pytest.mark.parametrize("kind", ["memory", "tensorboard", "wandb", "mlflow"])
def test_a_run_killed_after_its_last_epoch_ends_when_it_goes_on(tmp_path, kind):
    tracker = lambda name: Memory(every=2, images=4) if kind == "memory" else of_kind(kind, tmp_path/name)
    others = lambda: [Schedule("one_cycle"), EMA(.9), KeepBest(), EarlyStopping(patience=9), AutoBatch(), ClipGrad(1.)]
    whole = learner().fit(2, callbacks=[*others(), tracker("whole")])
    save = SaveCheckpoints(tmp_path/"checkpoints", background=False)
    with pytest.raises(RuntimeError): learner().fit(2, callbacks=[*others(), tracker("run"), save, AtTheEnd()])
    log = tracker("run")
    learn = learner().resume(tmp_path/"checkpoints").fit(2, callbacks=[*others(), log])
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), whole.model.state_dict().values()))
    without_time = lambda rows: [{k: v for k, v in o.items() if k != "time"} for o in rows]
    assert without_time(learn.history) == without_time(whole.history) and learn.step == 20
    if kind == "memory": assert log.states == ["finished"]


def test_tensorboard_of_a_run_that_had_no_checkpoint(tmp_path):
    for resume in (False, True):
        run = RunFolder(tmp_path/"birds", resume=resume)
        run.write("config.yaml", SECRETS)
        log, = make_loggers("tensorboard", dict(log_every_num_steps=2), run)
        log.images = 0
        if resume: learner().fit(2, callbacks=log)
        else:
            with pytest.raises(RuntimeError): learner().fit(2, callbacks=[log, Crash(99, 15)])
        run.close()
    _,seen = scalars(tmp_path/"birds"/"tensorboard")
    assert [s for s,_ in seen["train/loss"]] == list(range(2, 21, 2))
    assert b"birds" in (said := text_of(tmp_path/"birds"/"tensorboard")) and TOKEN.encode() not in said and b"/home/ada" not in said


def wandb_config(path):
    "Read the configuration from an offline file"
    from wandb.proto.wandb_internal_pb2 import Record
    found = [Record.FromString(o) for o in wandb._offline_records(path.read_bytes())]
    return {o.key:json.loads(o.value_json) for r in found for o in r.run.config.update}

def in_a_run(path, resume, name, args, crash=None, checkpoint=None):
    "Train in a run folder with one logger"
    run = RunFolder(path, resume=resume)
    run.write("config.yaml", SECRETS)
    log, = make_loggers(name, dict(args, log_every_num_steps=2), run)
    log.patience = 300.
    learn = learner()
    if checkpoint is not None: learn.resume(checkpoint)
    try: learn.fit(2, callbacks=[log, *([crash] if crash else [])])
    except RuntimeError: assert crash
    finally: run.close()
    return log, learn

def all_rows(folder, last=20):
    "Read the rows of all files, the older ones first; W&B closes a file a little after it says so"
    for _ in range(600):
        files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda o: o.parent.name)
        rows = [row for f in files for row in offline_rows(f)]
        if any(o.get("epoch/step") == last for o in rows): return files, rows
        time.sleep(.1)
    raise AssertionError(f"no row of step {last} in {files}")

def test_wandb_offline(tmp_path):
    crash = Crash(13, 17)
    first,_ = in_a_run(tmp_path/"birds", False, "wandb", dict(wandb=dict(project="flowers", tags=["x"])), crash)
    again,learn = in_a_run(tmp_path/"birds", True, "wandb", dict(wandb=dict(project="flowers")), checkpoint=crash.checkpoint)
    assert first.id == again.id and first.mode == "offline"
    files,rows = all_rows(tmp_path/"birds")
    assert len(files) == 2 and {o.name for o in files} == {f"run-{first.id}.wandb"}
    assert [o["train/step"] for o in rows if "train/loss" in o] == list(range(2, 21, 2))
    assert [o["train/loss"] for o in rows if "train/loss" in o] == pytest.approx(learn.recorder.losses[1::2], rel=1e-6)
    assert [o["epoch/step"] for o in rows if "epoch/valid_loss" in o] == [10, 20]
    assert {k:v for k,v in wandb_config(files[0]).items() if k != "_wandb"} == {"data":"photos", "hub.name":"birds", "lr":.01}
    assert {o.name.split("_")[0] for o in (tmp_path/"birds").rglob("*.png")} == {"batch", "confusion"}
    said = text_of(tmp_path/"birds"/"wandb")
    assert TOKEN.encode() not in said and b"/home/ada" not in said
    assert not list((tmp_path/"birds").rglob("requirements.txt")) and not list((tmp_path/"birds").rglob("wandb-metadata.json"))

@pytest.mark.parametrize("store", ["files", "database"])
def test_mlflow(tmp_path, store, monkeypatch):
    uri = f"file:{tmp_path/'mlruns'}" if store == "files" else f"sqlite:///{tmp_path/'mlflow.db'}"
    if store == "files": monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    crash = Crash(13, 17)
    first,_ = in_a_run(tmp_path/"birds", False, "mlflow", {}, crash)
    from mlflow.tracking import MlflowClient
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(first.id).info.status == "FAILED"
    again,learn = in_a_run(tmp_path/"birds", True, "mlflow", {}, checkpoint=crash.checkpoint)
    run = client.get_run(again.id)
    assert first.id == again.id and run.info.status == "FINISHED" and run.info.run_name == "birds"
    losses = client.get_metric_history(again.id, "train/loss")
    assert [o.step for o in losses] == list(range(2, 21, 2)) and [o.value for o in losses] == pytest.approx(learn.recorder.losses[1::2], rel=1e-6)
    assert [o.step for o in client.get_metric_history(again.id, "epoch/valid_loss")] == [10, 20]
    assert run.data.params == {"data":"photos", "hub.name":"birds", "lr":"0.01"}
    assert {Path(o.path).name.split("-")[0] for o in client.list_artifacts(again.id, "images")} == {"batch", "confusion"}
    assert TOKEN.encode() not in (text_of(tmp_path/"mlruns") if store == "files" else (tmp_path/"mlflow.db").read_bytes())

KILLED = '''
import os, signal, sys
os.environ["VISIONLAB_PROGRESS"] = "off"
sys.path[:0] = sys.argv[2:]
from test_loggers import Callback, in_a_run
class Kill(Callback):
    aside,order,fail = True, 2000, 13
    def after_batch(self, learn):
        if learn.step+1 == 13: next(o for o in learn.bound if hasattr(o, "courier")).courier.wait(300); os.kill(os.getpid(), signal.SIGKILL)
in_a_run(sys.argv[1], False, "wandb", {}, Kill())
'''

def test_a_kill_loses_no_row_and_doubles_none(tmp_path):
    "W&B writes late; what its file holds is what counts, not what it was given."
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path/"birds"), str(Path(__file__).parent), str(Path(__file__).parents[1])], capture_output=True, text=True,
                          env={k:v for k,v in os.environ.items() if k != "WANDB_SERVICE"})       # a program of its own
    assert done.returncode == -signal.SIGKILL, done.stderr
    in_a_run(tmp_path/"birds", True, "wandb", {})
    _,rows = all_rows(tmp_path/"birds")
    assert sorted(o["train/step"] for o in rows if "train/loss" in o) == list(range(2, 21, 2)) and sorted(o["epoch/step"] for o in rows if "epoch/lr" in o) == [10, 20]


def failing(*cbs, epochs=1):
    "Train; give the weights and the warnings"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn = learner()
        learn.fit(epochs, callbacks=cbs)
    return learn.model[1].weight.detach().clone(), [str(o.message) for o in said if "Training goes on" in str(o.message) or "lost" in str(o.message)]

class Breaks(Memory):
    name = "Broken"
    def __init__(self, where, after=0, **kw): super().__init__(**kw); self.at,self.left = where, after
    def _maybe(self, what):
        if what != self.at: return
        self.left -= 1
        if self.left < 0: raise ConnectionResetError("the line is dead\nand more")
    def start(self, *a): super().start(*a); self._maybe("start")
    def scalars(self, *a): self._maybe("scalars")
    def image(self, *a): self._maybe("image")
    def flush(self, *a): self._maybe("flush")
    def stop(self, *a): self._maybe("stop")

def test_it_fails_wherever_it_likes():
    plain,none = failing()
    assert none == []
    for where,what in dict(start="its start", scalars="a loss", image="the picture of a batch", flush="writing", stop="its end").items():
        weights,said = failing(Breaks(where, every=2))
        assert torch.equal(weights, plain)
        assert said[0] == f"Broken: {what} failed (ConnectionResetError: the line is dead). Training goes on" + (" without it" if said[0].endswith("it") else ""), where
        assert sum("Training goes on" in o for o in said) == 1, where

def test_after_some_failures_it_is_given_up():
    log = Breaks("scalars", every=1, images=0)
    _,said = failing(log, epochs=2)
    assert said[0].startswith("Broken: a loss failed") and len(said) == 1

def test_it_hangs():
    class Hangs(Memory):
        name = "Far away"
        def scalars(self, *a): time.sleep(60)
    began = time.monotonic()
    _,said = failing(Hangs(every=1, images=0, patience=.3))
    assert said == ["Far away: no answer within 0.3 seconds. Training goes on"] and time.monotonic()-began < 30

def test_notes_that_nobody_takes_are_counted():
    import threading
    go = threading.Event()
    courier = Courier("slow", most=3)
    for _ in range(10): courier.put("x", go.wait, 60)
    go.set()
    assert courier.wait(10) and 6 <= courier.lost <= 7

@pytest.mark.parametrize("name,package", [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_package_that_is_not_there(name, package, monkeypatch, tmp_path):
    for o in [o for o in sys.modules if o == package or o.startswith(package + ".")]: monkeypatch.delitem(sys.modules, o)
    monkeypatch.setitem(sys.modules, package, None)
    log, = make_loggers(name, dict(log_every_num_steps=5), tmp_path)
    log.images = 0
    _,said = failing(log)
    assert said == [f"{log.name}: its start failed (MissingDependencyError: This needs the package {package!r}, which is not installed). Training goes on without it"]

def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path/"file").write_text("")
    for log in (TensorBoardLogger(tmp_path/"file"/"tb", images=0), WandbLogger("x", tmp_path/"file", offline=True, images=0), MLflowLogger(tracking_uri=f"file:{tmp_path/'file'}/mlruns", images=0)):
        _,said = failing(log)
        assert len(said) == 1 and "its start failed" in said[0] and said[0].endswith("without it"), said

def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    _,said = failing(MLflowLogger(tracking_uri="http://127.0.0.1:9", images=0))
    assert len(said) == 1 and said[0].startswith("MLflow: its start failed (MlflowException: API request to http://127.0.0.1:9")


def test_names():
    assert logger_names("none") == logger_names(None) == logger_names([]) == []
    assert logger_names("all") == ["tensorboard", "wandb", "mlflow"]
    assert logger_names("mlflow, tensorboard") == logger_names(["mlflow", "tensorboard"]) == ["tensorboard", "mlflow"]
    assert logger_names("auto") == ["tensorboard"]
    with pytest.raises(ConfigError, match="tensorboard"): logger_names("tensorbord")

@pytest.mark.parametrize("log,args,want", [("none", dict(mlflow={}, wandb=None), ["mlflow"]), ("all", dict(wandb=None), ["tensorboard", "mlflow"]), ("wandb", dict(wandb=False, tensorboard=True), ["tensorboard"]),
                                           (None, dict(tensorboard={}, log_every_num_steps="auto", val_log_every_num_steps="auto"), ["tensorboard"])])
def test_arguments(tmp_path, log, args, want): assert [o.kind for o in make_loggers(log, args, tmp_path/"birds")] == want

@pytest.mark.parametrize("args,match", [(dict(tensorbord={}), "tensorboard"), (dict(log_every_num_steps=0), "from 1 up"), (dict(val_every_num_steps=5), "after each epoch"), (dict(mlflow=dict(experiment="x")), "experiment_name"),
                                        (dict(wandb=dict(images=-1)), "images")])
def test_arguments_that_cannot_be(args, match):
    with pytest.raises(ConfigError, match=match): make_loggers("none", args, Path("runs/x"))

def test_a_tensorboard_without_a_folder():
    with pytest.raises(ConfigError, match="Give out="): make_loggers("tensorboard")

def test_projects_and_places(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "garden"); monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    wb,ml = make_loggers(["wandb", "mlflow"], dict(wandb=dict(entity="us", every=7)), tmp_path/"birds")
    assert (wb.init["project"], wb.init["entity"], wb.init["name"], wb.every, wb.mode, ml.uri) == ("garden", "us", "birds", 7, "offline", "http://tracker:5000")
    monkeypatch.setenv("WANDB_API_KEY", "x"*40)
    assert WandbLogger().mode == "online" and WandbLogger(offline=True).mode == "offline" and "x"*40 not in repr(vars(WandbLogger()))

def test_what_is_public():
    told = public(dict(data="/home/ada/photos", out=Path("/tmp/runs/birds"), hub_token="a", nested=dict(API_KEY="b", password="c", monkey="d"), keys=[1], normalize=[[.5], [.2]], model="~/x/net", none=None))
    assert told == dict(data="photos", out="birds", nested=dict(monkey="d"), keys=[1], normalize=[[.5], [.2]], model="net", none=None)
    assert flat_names(dict(a=dict(b=dict(c=1)), d={})) == {"a.b.c":1, "d":{}}

def test_pictures_of_what_was_mixed_and_of_several_classes():
    assert logger._target_text(torch.tensor([.7, .3, 0.]), ["a", "b", "c"], "multiclass") == "a 70% + b 30%"
    assert logger._target_text(torch.tensor([1., 0., 1.]), ["a", "b", "c"], "multilabel") == "a, c"
    assert logger._target_text(torch.tensor(2.), None, "multiclass") == "2"

def test_pictures_of_images_that_a_catalog_knows():
    "The batch is drawn as the model got it, and the worst mistakes of the validation set too."
    log = Memory(every=5)
    learn = Learner(ImageDataModule("FashionSample", batch_size=64, max_samples=200), nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), device="cpu")
    learn.fit(1, callbacks=log)
    assert [k for k,_,_ in log.pictures] == ["batch", "confusion", "mistakes"]


@pytest.mark.parametrize("images", [0, 4])
def test_a_run_killed_after_its_last_epoch_goes_on_with_its_tracker(tmp_path, images):
    class AtEnd(Callback):
        "Keep what is there after the last epoch, as a killed process leaves it"
        order,aside = 1001, True
        def after_epoch(self, learn):
            self.checkpoint = Checkpoint.of(learn, dict(running=True, epoch=learn.epoch+1, batch=0, step=learn.step, epochs_done=learn.epochs_done))
    log, end = Memory(images=images), AtEnd()
    learner().fit(2, callbacks=[log, end])
    again, learn = Memory(images=images), learner().resume(end.checkpoint)
    learn.fit(2, callbacks=[again])
    assert again.states == ["finished"] and learn.step == 20 and ("confusion" in {o[0] for o in again.pictures}) == bool(images)
    assert not again.column("epoch/valid_loss")                    # nothing is trained, nothing is said twice
