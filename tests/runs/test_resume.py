"A training that is stopped at any moment ends as if nothing had happened; a checkpoint is whole, or found out."
import gzip
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from processes import apart, ended
from resuming import data, learner, net, options, told
from torch import nn
from torch.utils.data import DataLoader, Dataset

from visionlab.runs import fingerprint, checkpoints
from visionlab.catalog.catalog import Catalog
from visionlab.callbacks.ema import EMA
from visionlab.callbacks.one_cycle import Schedule
from visionlab.runs.checkpoints import Checkpoint, list_checkpoints, NewerCheckpointError, sweep
from visionlab.core.errors import CheckpointError, ConfigError
from visionlab.data.module import ImageDataModule
from visionlab.export.load import load_model
from visionlab.callbacks.gradients import Accumulate, ClipGrad
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.training.metrics import MetricConfig, MetricManager
from visionlab.callbacks.mixing import Mix
from visionlab.models.config import ModelConfig
from visionlab.models.classifier import ImageClassifier
from visionlab.runs.folder import begun, RunFolder, save_options, SaveCheckpoints
from visionlab.data.shard_files import write_shards
from visionlab.data.shards import ShardedDataModule
from visionlab.callbacks.stopping import EarlyStopping, KeepBest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setenv("VISIONLAB_PROGRESS", "off")


ALL = 10       # steps of two epochs


def every_step(make, fit, folder):
    "Train once, with a checkpoint after each step; give what came out and the checkpoints, oldest first"
    learn = make(0)
    fit(learn, SaveCheckpoints(folder, steps=1, keep=999, background=False))
    return told(learn), list_checkpoints(folder)[::-1]


def once(make, fit):
    learn = make(0)
    fit(learn)
    return told(learn)


def fit_twice(learn, *more): learn.fit(2, callbacks=[*options(), *more])


@pytest.fixture(scope="module")
def steps(one_thread, tmp_path_factory):
    "What came out of a training, and its checkpoints after each step"
    os.environ["VISIONLAB_PROGRESS"] = "off"
    return every_step(learner, fit_twice, tmp_path_factory.mktemp("steps"))


def test_to_save_changes_nothing(steps):
    whole, found = steps
    assert once(learner, fit_twice) == whole and {Checkpoint.read(o).step for o in found} == set(range(1, ALL+1))


@pytest.mark.parametrize("workers", [0, 2])
def test_from_every_step(workers, steps):
    "With augmentation, dropout, an average of the weights and a schedule"
    (whole, found), fit = steps, fit_twice
    for o in found:
        learn = learner(workers).resume(o)
        fit(learn)
        assert told(learn) == whole, o.name


def test_with_everything_on(tmp_path):
    "Gathered and clipped gradients, mixing, metrics of training, the best weights kept, a plateau, two fits with parts frozen in between"
    def make(workers):
        metrics = MetricManager([MetricConfig("accuracy", "visionlab", stages=("train", "val")), MetricConfig("f1_macro", "visionlab", stages=("train", "val")), MetricConfig("auroc", "visionlab", stages=("train", "val"))])
        return Learner(data(workers, 160), net(), lr=5e-3, device="cpu", metrics=metrics, opt="sgd", label_smoothing=.1)
    def fit(learn, *more):
        def cbs(schedule): return [schedule, Accumulate(3), ClipGrad(1.), EMA(.8, both=True), KeepBest("accuracy"), EarlyStopping("accuracy", 5), *more]
        learn.model[0].requires_grad_(False)
        learn.fit(1, callbacks=cbs(Schedule("cosine")))
        learn.model[0].requires_grad_(True)
        learn.fit(2, lr=1e-3, callbacks=cbs(Schedule("plateau", patience=0, cooldown=0)) + [Mix(p=.5)])
    alone = once(make, fit)
    whole, found = every_step(make, fit, tmp_path)
    assert alone == whole
    assert len(found) >= 18
    for i, o in enumerate(found):
        learn = make(i % 2).resume(o)
        fit(learn)
        assert told(learn) == whole, o.name
        assert learn.fits == [1, 2]


class Noisy(Dataset):
    "Numbers with noise from torch's generator"
    def __len__(self): return 40
    def __getitem__(self, i): return torch.randn(20, generator=torch.Generator().manual_seed(i)) + .1*torch.randn(20), i % 3


@pytest.mark.parametrize("own,workers", [(False, 0), (True, 0), (False, 1)])
def test_with_a_dataloader_of_ones_own(own, workers, tmp_path):
    def make(_=0):
        torch.manual_seed(5)
        g = torch.Generator().manual_seed(3) if own else None
        return Learner(DataLoader(Noisy(), 8, shuffle=True, generator=g, num_workers=workers), nn.Sequential(nn.Linear(20, 9), nn.Dropout(.3), nn.Linear(9, 3)), lr=1e-2, device="cpu")
    fit = lambda learn, *more: learn.fit(3, callbacks=[Schedule("linear"), *more])
    whole, found = every_step(make, fit, tmp_path)
    for o in found[::4] if workers else found:
        learn = make()
        torch.rand(7)               # what a notebook did in between
        fit(learn.resume(o))
        assert told(learn) == whole, o.name


# ---- killed

def killed_again_and_again(folder, kills, seed):
    "Train in forks that are killed at random moments, every other one in the middle of a checkpoint, until they come to their end"
    rng, written = random.Random(seed), checkpoints._written
    def slowly(path, pieces): time.sleep(.003); return written(path, pieces)       # so that there is time to be killed while a checkpoint is written
    checkpoints._written, os.fsync = slowly, lambda fd: None        # which matters when the power goes; a killed process leaves what it wrote to the system

    def run(where, workers, background=False):
        learn = learner(workers)
        if list_checkpoints(where): learn.resume(where)
        fit_twice(learn, SaveCheckpoints(where, steps=1, background=background))
        (where/"done").write_text(told(learn))

    def unfinished(where): return [o for o in where.glob(".tmp-*") if not o.name.startswith(".tmp-probe")]

    run(folder/"warm", 2)                   # reads the data, once for all forks
    start = time.time()
    run(folder/"whole", 0)
    usual, killed, half, runs = time.time()-start, 0, 0, 0
    while killed < kills or half < kills//3:
        where, runs = folder/f"run{runs}", runs+1
        while True:
            pid = apart(run, where, rng.choice([0, 2]), rng.random() < .5)
            time.sleep(rng.uniform(.05, .7)*usual)
            until = time.time() + (usual if rng.random() < .5 else 0)
            while time.time() < until and not unfinished(where): time.sleep(.0005)
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in (0, -signal.SIGKILL), "a training failed"
            if code == 0: break
            killed, half = killed+1, half + bool(unfinished(where))
        sweep(where)
        assert not list(where.glob(".*"))
        assert (where/"done").read_text() == (folder/"whole"/"done").read_text()
    (folder/"said").write_text(json.dumps([killed, half, runs]))


def test_killed_at_any_moment(tmp_path):
    assert ended(apart(killed_again_and_again, tmp_path, 30, 1), 400) == 0
    killed, half, runs = json.loads((tmp_path/"said").read_text())
    assert killed >= 30 and half >= 10 and runs >= 2


def small(folder, **kw):
    "A learner with a checkpoint in a folder, and the checkpoint"
    class Take(Callback):
        order, aside = 999, True
        def after_batch(self, learn): self.checkpoint = Checkpoint.of(learn)
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    learn = Learner([(x, torch.arange(16) % 3)]*3, nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), lr=1e-2, device="cpu", **kw)
    learn.fit(1, callbacks=[EMA(.9), take := Take()])
    return learn, take.checkpoint


CALLS = ("mkdir", "fsync", "rename", "open", "replace")


@pytest.mark.parametrize("what", ["die", "fail"])
def test_stopped_at_each_call_of_a_write(what, tmp_path, monkeypatch):
    _, checkpoint = small(tmp_path)
    first = checkpoint.write(tmp_path)
    for n in range(1, 99):
        pid = os.fork()
        if not pid:
            left = [n]
            def counted(f):
                def call(*a, **kw):
                    left[0] -= 1
                    if left[0] == 0 and what == "die": os._exit(9)
                    if left[0] == 0: raise OSError(28, "No space left on device")
                    return f(*a, **kw)
                return call
            for name in CALLS: setattr(os, name, counted(getattr(os, name)))
            try: checkpoint.write(tmp_path)
            except CheckpointError: os._exit(7)
            os._exit(0 if left[0] > 0 else 3)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9, 7, 3)
        if what == "fail": assert not list(tmp_path.glob(".*")), n
        sweep(tmp_path)
        for o in list_checkpoints(tmp_path): Checkpoint.read(o)         # whole, or not there
        assert first.exists() and not list(tmp_path.glob(".*"))
        if status == 0: break
    assert 7 < n < 40


def test_every_flipped_byte_is_found(tmp_path):
    _, checkpoint = small(tmp_path)
    old, new = checkpoint.write(tmp_path), checkpoint.write(tmp_path)
    files = sorted(new.iterdir())
    rng = random.Random(0)
    places = [(p, i) for p in files for i in range(p.stat().st_size)]
    for p, i in [*rng.sample(places, 200), *[(p, i) for p in files for i in (0, p.stat().st_size-1)], *[(new/"manifest.json", i) for i in range(0, 900, 3)]]:
        good = p.read_bytes()
        if i >= len(good): continue
        bad = bytearray(good); bad[i] ^= rng.randrange(1, 256); p.write_bytes(bad)
        with pytest.raises(CheckpointError, match=new.name): Checkpoint.read(new)
        with pytest.warns(UserWarning, match="going back"): assert Checkpoint.newest(tmp_path).path == old
        p.write_bytes(good)
    assert Checkpoint.newest(tmp_path).path == new


@pytest.mark.parametrize("harm,says", [
    (lambda p: (p/"state.json").unlink(), "lacks state.json"), (lambda p: (p/"manifest.json").write_bytes(b""), "damaged manifest"),
    (lambda p: (p/"model.safetensors").write_bytes(b""), "has 0 bytes"), (lambda p: (p/"manifest.json").write_text("[" * 100_000), "damaged manifest"),
    (lambda p: (p/"manifest.json").write_text('{"kind": "other"}'), "damaged manifest"), (lambda p: (p/"manifest.json").unlink(), "no manifest")])
def test_what_is_not_whole(harm, says, tmp_path):
    _, checkpoint = small(tmp_path)
    harm(path := checkpoint.write(tmp_path))
    with pytest.raises(CheckpointError, match=says): Checkpoint.newest(tmp_path)
    with pytest.raises(CheckpointError, match=says): Checkpoint.read(path)


def test_a_newer_format_is_said(tmp_path, monkeypatch):
    _, checkpoint = small(tmp_path)
    checkpoint.write(tmp_path)
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    checkpoint.write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(NewerCheckpointError, match="format 2; this visionlab reads up to 1"): Checkpoint.newest(tmp_path)


def test_nothing_is_executed(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/ran",)
    learn, checkpoint = small(tmp_path)
    torch.save(dict(model=Evil()), tmp_path/"evil.pt")
    with pytest.raises(CheckpointError, match="weights="): learn.resume(tmp_path/"evil.pt")
    path = checkpoint.write(tmp_path)
    for o in checkpoints.FILES: shutil.copy(tmp_path/"evil.pt", path/o)
    files = {o: dict(zip(("bytes", "sha256"), ((path/o).stat().st_size, checkpoints.hashlib.sha256((path/o).read_bytes()).hexdigest()))) for o in checkpoints.FILES}
    (path/"manifest.json").write_bytes(checkpoints._sealed(dict(kind="visionlab checkpoint", format=1, step=3, files=files)))
    with pytest.raises(CheckpointError, match="cannot be read"): learn.resume(path)
    for door in (lambda o: learn.load(o), lambda o: load_model(o), lambda o: ImageClassifier(o), lambda o: ImageClassifier("resnet9", 3, weights=o), lambda o: ImageClassifier(nn.Sequential(nn.Linear(6, 3)), weights=o)):
        for o in (tmp_path/"evil.pt", path, path/"model.safetensors", *disguised(tmp_path)):
            with pytest.raises(CheckpointError): door(o)
    assert not (tmp_path/"ran").exists()


def disguised(folder):
    "Put a pickle where an export has its weights, and one with the name of safetensors"
    (place := folder/"export").mkdir(exist_ok=True)
    (place/"config.json").write_text(json.dumps(dict(architecture="visionlab/resnet9", visionlab=ModelConfig("visionlab/resnet9", 3).to_dict())))
    for name in ("model.safetensors", "pytorch_model.bin"): shutil.copy(folder/"evil.pt", place/name)
    shutil.copy(folder/"evil.pt", folder/"weights.safetensors")
    yield from (place, place/"pytorch_model.bin", folder/"weights.safetensors")


# ---- disks

def failing(monkeypatch, how):
    "Let writing fail as a full disk, a folder that may not be written, or one that is nearly full"
    if how == "nearly full": monkeypatch.setattr(shutil, "disk_usage", lambda p: type("Usage", (), dict(free=10)))
    elif how == "read-only":
        def no(self, *a, **k): raise OSError(30, "Read-only file system", str(self))
        monkeypatch.setattr(Path, "mkdir", no)
    else:
        def full(path, pieces): raise OSError(28, "No space left on device")
        monkeypatch.setattr(checkpoints, "_written", full)


@pytest.mark.parametrize("how", ["full", "nearly full", "read-only"])
def test_a_disk_that_refuses_loses_nothing(how, tmp_path, monkeypatch):
    _, checkpoint = small(tmp_path)
    first = checkpoint.write(tmp_path)
    failing(monkeypatch, how)
    with pytest.raises(CheckpointError, match="could not be written") as e: checkpoint.write(tmp_path)
    assert "still there" in e.value.fix
    monkeypatch.undo()
    assert [o.name for o in tmp_path.iterdir()] == [first.name] and Checkpoint.newest(tmp_path).path == first


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    _, checkpoint = small(tmp_path)
    first = checkpoint.write(tmp_path)
    largest = max(o.stat().st_size for o in first.iterdir())
    for limit in (0, 1, 300, largest//2, largest-1):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try: checkpoint.write(tmp_path)
            except CheckpointError as e: os._exit(5 if "could not be written" in e.what else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5, limit
        assert [o.name for o in tmp_path.iterdir()] == [first.name] and Checkpoint.newest(tmp_path).path == first


class Filling:
    "A file on a disk that has room for so many bytes, all files together"
    def __init__(self, path, mode, left): self.file, self.left = open(path, mode), left
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def flush(self): self.file.flush()
    def fileno(self): return self.file.fileno()
    def write(self, data):
        data = bytes(data)
        self.file.write(data[:self.left[0]])
        full, self.left[0] = len(data) > self.left[0], max(0, self.left[0]-len(data))
        if full: self.file.flush(); raise OSError(28, "No space left on device")


def test_a_disk_that_fills_at_any_byte_loses_nothing(tmp_path, monkeypatch):
    "At the beginning, the middle and the end of each file and of each of its pieces"
    _, checkpoint = small(tmp_path)
    first = checkpoint.write(tmp_path)
    ends, at = [0], 0
    for name in (*checkpoints.FILES, "manifest.json"):
        size = (first/name).stat().st_size
        ends += [at+8, at+size//2, at+size]
        at += size
    places = sorted({o for end in ends for o in (end-1, end, end+1) if 0 <= o < at})
    left = [0]
    monkeypatch.setattr(checkpoints, "open", lambda path, mode: Filling(path, mode, left), raising=False)
    for o in places:
        left[0] = o
        with pytest.raises(CheckpointError, match="No space left"): checkpoint.write(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [first.name], o
    left[0] = at+100
    assert Checkpoint.read(checkpoint.write(tmp_path)).step == checkpoint.step and Checkpoint.read(first).step == checkpoint.step


def test_nothing_crosses_file_systems(tmp_path, monkeypatch):
    "Temporary files lie beside what they become, wherever TMPDIR is"
    (elsewhere := tmp_path/"elsewhere").mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere)); monkeypatch.setattr(tempfile, "tempdir", None)
    moves = []
    for name in ("rename", "replace"):
        def within(source, target, *a, real=getattr(os, name), **kw):
            if os.path.dirname(source) != os.path.dirname(target): raise OSError(18, "Invalid cross-device link")
            moves.append(target)
            return real(source, target, *a, **kw)
        monkeypatch.setattr(os, name, within)
    run = RunFolder(tmp_path/"run")
    learner().fit(1, callbacks=run.callbacks(steps=2, background=False))
    run.close()
    assert len(moves) > 9 and not list(elsewhere.iterdir()) and not list(run.checkpoints.glob(".*"))
    assert Checkpoint.newest(run.path).step == ALL//2


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch):
    class Fill(Callback):
        aside = True
        def before_batch(self, learn):
            if learn.step == 3: failing(monkeypatch, "full")
            if learn.step == 6: monkeypatch.undo()
    fit = lambda learn, *more: learn.fit(2, callbacks=[*options(), *more])
    with pytest.warns(UserWarning, match="training goes on"): fit(learn := learner(), Fill(), SaveCheckpoints(tmp_path, steps=1, background=False))
    assert told(learn) == once(learner, fit) and not list(tmp_path.glob(".*"))
    assert len(list_checkpoints(tmp_path)) in (2, 3)


def test_a_folder_that_cannot_be_is_said_before_training(tmp_path):
    (tmp_path/"file").write_text("")
    learn = learner()
    with pytest.raises(CheckpointError, match="cannot be written"): learn.fit(1, callbacks=[SaveCheckpoints(tmp_path/"file"/"run")])
    assert learn.step == 0


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    learn, checkpoint = small(tmp_path)
    checkpoint.tensors["model"]["0.weight"][0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"): checkpoint.write(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- stopped by somebody

class Act(Callback):
    "Stop this process in one way or another"
    aside = True
    def __init__(self, how, at): self.how, self.at = how, at
    def act(self):
        if self.how == "exception": raise RuntimeError("the power went")
        os.kill(os.getpid(), getattr(signal, self.how))
    def after_loss(self, learn):
        if self.at == "step" and learn.step == 6: self.act()
    def before_valid(self, learn):
        if self.at == "validation" and learn.epoch == 0: self.act()


@pytest.mark.parametrize("how,at,code,step", [("SIGTERM", "step", 143, 7), ("SIGINT", "step", 130, 7), ("SIGTERM", "validation", 143, 5), ("exception", "step", 1, 5)])
def test_stopped_by_somebody(how, at, code, step, tmp_path, steps):
    def work():
        fit_twice(learner(), SaveCheckpoints(tmp_path), Act(how, at))
        (tmp_path/"finished").touch()
    assert ended(apart(work)) == code and not (tmp_path/"finished").exists()
    assert Checkpoint.newest(tmp_path).step == step and not list(tmp_path.glob(".*"))
    fit_twice(learn := learner(2).resume(tmp_path))
    assert told(learn) == steps[0]


def test_sigterm_is_handed_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    learner().fit(1, callbacks=[SaveCheckpoints(tmp_path)])
    assert signal.getsignal(signal.SIGTERM) is before


# ---- what may change

def test_other_settings_are_refused_with_the_difference(tmp_path):
    fit = lambda learn, *more, epochs=2, **kw: learn.fit(epochs, callbacks=[*options(), *more], **kw)
    fit(learner(), SaveCheckpoints(tmp_path, steps=3, keep=99, background=False))
    middle = next(o for o in list_checkpoints(tmp_path) if o.name == "step-00000003")
    for changed, says in [(dict(seed=1), "seed: 42 → 1|seed: 0 → 1"), (dict(opt="sgd"), "optimizer: adamw → sgd"), (dict(label_smoothing=.1), "label_smoothing"), (dict(weight_decay=.5), "weight_decay"), (dict(loss="focal"), "loss")]:
        with pytest.raises(ConfigError, match=says): learner(**changed).resume(middle)
    with pytest.raises(ConfigError, match="training_data"): Learner(data(0, 200), net(), lr=5e-3, device="cpu").resume(middle)
    with pytest.raises(ConfigError, match="lr: "): fit(learner().resume(middle), lr=1e-3)
    with pytest.raises(ConfigError, match="epochs: 2 → 4"): fit(learner().resume(middle), epochs=4)
    with pytest.raises(ConfigError, match="callbacks: "): learner().resume(middle).fit(2, callbacks=[Schedule("one_cycle"), EMA(.95)])
    with pytest.raises(ConfigError, match="Known: epochs"): learner().resume(middle, accept="model")
    with pytest.raises(CheckpointError, match="not of this network|model"): Learner(data(), nn.Sequential(nn.Flatten(), nn.Linear(3*28*28, 10)), lr=5e-3, device="cpu").resume(middle)
    longer = fit(learner().resume(middle, accept="epochs"), epochs=4)
    assert len(longer.history) == 4 and longer.step == 2*ALL


def test_device_and_precision_may_change_on_request(tmp_path):
    learn, checkpoint = small(tmp_path)
    checkpoint.state["settings"] |= dict(device="cuda", precision="torch.float16")
    with pytest.raises(ConfigError, match=r"(?s)device: cuda → cpu.*precision: torch.float16 → fp32"): learn.resume(checkpoint)
    with pytest.raises(ConfigError, match="precision"): learn.resume(checkpoint, accept="device")
    learn, _ = small(tmp_path)
    checkpoint.state["position"] |= dict(batch=2, step=2)
    learn.resume(checkpoint, accept=["device", "precision"]).fit(1, callbacks=[EMA(.9)])
    assert learn.step == 3 and len(learn.history) == 1


def test_finished_runs_are_passed_over_or_go_on_for_longer(tmp_path):
    first = learner().fit(2, callbacks=[*options(), SaveCheckpoints(tmp_path)])
    done = learner().resume(tmp_path)
    assert told(done) == told(first)                    # there before anything is called
    done.fit(2, callbacks=options())
    assert told(done) == told(first) and done.step == ALL
    done.fit(1, callbacks=options())                    # and a further fit is a further fit
    assert done.step == 3*ALL//2 and done.fits == [2, 1]
    with pytest.raises(ConfigError, match="had 2 epochs, and now has 3"): learner().resume(tmp_path).fit(3, callbacks=options())
    more = learner().resume(tmp_path, accept=["epochs"]).fit(3, callbacks=options())
    assert more.step == 3*ALL//2 and [r["epoch"] for r in more.history] == [1, 2, 3]


def test_searching_a_rate_does_not_use_up_the_resume(steps):
    whole, found = steps
    learn = learner().resume(found[6])
    learn.lr_find(steps=5)
    fit_twice(learn)
    assert told(learn) == whole


# ---- saving

def test_what_stays(tmp_path):
    learner().fit(2, callbacks=[*options(), SaveCheckpoints(tmp_path, steps=2, keep=3, monitor="accuracy", background=False)])
    assert len(list_checkpoints(tmp_path)) in (3, 4)
    assert Checkpoint.newest(tmp_path/"last").path == list_checkpoints(tmp_path)[0]
    assert Checkpoint.newest(tmp_path/"best").step in (ALL//2, ALL)


def test_the_best_so_far_is_known_after_a_stop(tmp_path):
    def told_to_be(value):
        def m(probs, targets): return value
        return m
    class Crash(Callback):
        aside = True
        def before_batch(self, learn):
            if learn.step == 7: raise RuntimeError("the power went")
    with pytest.raises(RuntimeError, match="the power"): learner(metrics=[told_to_be(.9)]).fit(2, callbacks=[SaveCheckpoints(tmp_path, monitor="m"), Crash()])
    learner(metrics=[told_to_be(.5)]).resume(tmp_path).fit(2, callbacks=[save := SaveCheckpoints(tmp_path, monitor="m")])
    assert Checkpoint.newest(tmp_path/"best").step == ALL//2 and (save.best, save.best_epoch, save.waited) == (.9, 1, 1)


def test_the_loop_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    write = Checkpoint.write
    def slow(self, folder): time.sleep(.3); return write(self, folder)
    monkeypatch.setattr(Checkpoint, "write", slow)
    class Count(Callback):
        aside, most = True, 0
        def after_batch(self, learn): self.most += any(o.name == "visionlab-checkpoint" for o in threading.enumerate())
    learner().fit(2, callbacks=[SaveCheckpoints(tmp_path, steps=2, monitor=None), count := Count()])
    assert count.most >= 5                          # steps taken while a checkpoint was being written


def test_minutes(tmp_path):
    learner().fit(1, callbacks=[SaveCheckpoints(tmp_path, epochs=None, minutes=1e-9, keep=99, monitor=None, background=False)])
    assert len(list_checkpoints(tmp_path)) == ALL//2 + 1


def test_options_of_other_libraries():
    assert save_options(None) == {} and save_options(dict(save_last=False, save_best=False)) is None
    assert save_options(dict(save_every_num_steps=7, save_best=False), 4) == dict(steps=7, monitor=None, keep=4)


def test_a_job_that_is_started_again_finds_its_run(tmp_path, monkeypatch):
    where = tmp_path/"a"
    def job(name, restarts=0): monkeypatch.setenv("TORCHELASTIC_RUN_ID", name); monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts)); return begun(where)
    assert begun(where) is None and job("one") is None
    RunFolder(where).close()
    (where/"note").write_text("")
    assert job("two") is None
    RunFolder(where).close()
    assert (job("one"), job("two")) == (where, tmp_path/"a-2")
    assert job("none") is None                          # a job without a name: it is its own only when torchrun has started it again
    RunFolder(where).close()
    assert job("none") is None and job("none", 1) == tmp_path/"a-3"
    RunFolder(tmp_path/"a-2", resume=True).close(finished=True)
    assert job("two") is None and begun(tmp_path/"b") is None


def test_run_folders_take_turns(tmp_path):
    run = RunFolder(tmp_path/"a")
    run.log("begun")
    with pytest.raises(ConfigError, match="Another process"): RunFolder(tmp_path/"a", overwrite=True)
    run.close()
    other = RunFolder(tmp_path/"a")
    assert other.path == tmp_path/"a-2"
    other.close()
    RunFolder(tmp_path/"a", overwrite=True).close()
    assert not (tmp_path/"a"/"train.log").exists()


# ---- images that have changed

@pytest.fixture
def pictures(tmp_path):
    from photos import photo_folder
    return photo_folder(tmp_path/"photos", n_train=6, n_val=3, size=24, classes=("brick", "coffee"))


def of_pictures(folder, cache=None):
    dm = ImageDataModule(folder, batch_size=4, image_size=16, num_workers=0, cache=cache, augmentation_preset="default", on_leak="ignore", in_chans=3)
    return Learner(dm, net(), lr=5e-3, device="cpu")


def stopped(folder, place):
    of_pictures(folder).fit(1, callbacks=[SaveCheckpoints(place, background=False)])
    return place


def test_pictures_replaced_under_their_names_are_seen(pictures, tmp_path):
    place = stopped(pictures, tmp_path/"ck")
    files = sorted((pictures/"train"/"brick").iterdir())
    for o in files: shutil.copy(sorted((pictures/"train"/"coffee").iterdir())[0], o)
    with pytest.raises(ConfigError, match=r"6 of 18 images are not what they were.*brick/00\d\.jpg.* and 1 more") as e: of_pictures(pictures).resume(place)
    assert len(e.value.context["changed"]) == 6 and "begin a new run" in str(e.value)


def test_a_change_that_keeps_the_size_is_seen_by_its_content(pictures, tmp_path):
    place = stopped(pictures, tmp_path/"ck")
    file = next((pictures/"val"/"coffee").iterdir())
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"\xff\xdb")+15] ^= 1               # in a table, so that it can still be decoded
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match="1 of 18 images"): of_pictures(pictures).resume(place)


def test_files_that_were_only_touched_or_copied_go_on(pictures, tmp_path):
    place = stopped(pictures, tmp_path/"ck")
    for o in pictures.rglob("*.jpg"): os.utime(o, (1, 1))
    of_pictures(pictures).resume(place)
    shutil.copytree(pictures, tmp_path/"moved"/"photos")
    of_pictures(tmp_path/"moved"/"photos").resume(place)


def test_pixels_in_memory_that_have_changed_are_seen(tmp_path):
    def of_arrays(change):
        pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3), np.uint8)
        pixels[3] ^= np.uint8(change)
        catalog = Catalog(pd.DataFrame(dict(path=[f"{i}" for i in range(24)], label=["a", "b"]*12, split="train")), ["a", "b"], pixels=pixels)
        return Learner(ImageDataModule(catalog, batch_size=4, num_workers=0, cache=None, on_leak="ignore"), net(), lr=5e-3, device="cpu")
    of_arrays(0).fit(1, callbacks=[SaveCheckpoints(tmp_path, background=False)])
    of_arrays(0).resume(tmp_path)
    with pytest.raises(ConfigError, match="1 of 24 images"): of_arrays(1).resume(tmp_path)


def flipped(raw, at):
    "Flip a bit in a table of a JPEG that begins at a place, so that it can still be decoded."
    raw = bytearray(raw)
    raw[raw.index(b"\xff\xdb", at)+15] ^= 1
    return bytes(raw)


def of_shards(folder, **kw):
    dm = ShardedDataModule(str(folder), batch_size=4, image_size=16, num_workers=0, cache=None, augmentation_preset="default", on_leak="ignore", in_chans=3, **kw)
    return Learner(dm, net(), lr=5e-3, device="cpu")


def test_pixels_that_have_changed_in_a_shard_are_seen(pictures, tmp_path):
    write_shards(Catalog.from_folder(pictures), tmp_path/"shards", max_count=4)
    place = tmp_path/"ck"
    of_shards(tmp_path/"shards").fit(1, callbacks=[SaveCheckpoints(place, background=False)])
    tar = sorted((tmp_path/"shards").glob("train-*.tar"))[1]
    shutil.copytree(tmp_path/"shards", tmp_path/"copy"/"shards", copy_function=shutil.copyfile)
    tar.write_bytes(tar.read_bytes())                 # only touched
    of_shards(tmp_path/"shards").resume(place)
    of_shards(tmp_path/"copy"/"shards").resume(place)
    raw = tar.read_bytes()
    second = raw.index(b"\xff\xd8\xff", raw.index(b"\xff\xd8\xff")+3)
    tar.write_bytes(flipped(flipped(raw, 0), second))
    for stream in (False, True):
        with pytest.raises(ConfigError, match=r"2 of 18 images are not what they were") as e: of_shards(tmp_path/"shards", stream=stream).resume(place)
        assert len(e.value.context["changed"]) == 2


def test_pixels_that_have_changed_in_a_compressed_shard_are_seen(pictures, tmp_path):
    write_shards(Catalog.from_folder(pictures), tmp_path/"plain")
    (tmp_path/"shards").mkdir()
    def compress(change=lambda raw: raw):
        for o in (tmp_path/"plain").glob("*.tar"): (tmp_path/"shards"/f"{o.name}.gz").write_bytes(gzip.compress(change(o.read_bytes()), mtime=0))
    compress()
    of_shards(tmp_path/"shards").fit(1, callbacks=[SaveCheckpoints(tmp_path/"ck", background=False)])
    compress()
    of_shards(tmp_path/"shards").resume(tmp_path/"ck")
    compress(lambda raw: flipped(raw, 0))
    with pytest.raises(ConfigError, match="18 of 18 images are not what they were"): of_shards(tmp_path/"shards").resume(tmp_path/"ck")


@pytest.mark.parametrize("form", ["bytes", "paths", "lists"])
def test_pixels_that_have_changed_in_a_hugging_face_dataset_are_seen(form, pictures, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted(pictures.rglob("*.jpg"))
    def saved(change):
        if form == "paths" and change: files[3].write_bytes(flipped(files[3].read_bytes(), 0))
        raw = [str(o) if form == "paths" else o.read_bytes() for o in files]
        if form == "bytes" and change: raw[3] = flipped(raw[3], 0)
        if form == "lists":
            raw = np.random.default_rng(0).integers(0, 255, (len(files), 16, 16, 3))
            raw[3,8,8,0] ^= int(change)
            raw = raw.tolist()
        data = datasets.Dataset.from_dict(dict(image=raw, label=[o.parent.name for o in files]))
        data.save_to_disk(tmp_path/f"data-{change}-{len(list(tmp_path.iterdir()))}")
        catalog = Catalog.from_hf(str(max(tmp_path.glob("data-*"), key=lambda o: o.stat().st_mtime_ns)))
        return Learner(ImageDataModule(catalog, batch_size=4, image_size=16, num_workers=0, cache=None, on_leak="ignore", in_chans=3), net(), lr=5e-3, device="cpu")
    saved(False).fit(1, callbacks=[SaveCheckpoints(tmp_path/"ck", background=False)])
    saved(False).resume(tmp_path/"ck")
    with pytest.raises(ConfigError, match="1 of 18 images are not what they were"): saved(True).resume(tmp_path/"ck")


def test_what_a_reader_of_ones_own_gives_is_looked_at(tmp_path, monkeypatch):
    class Reader:
        def __init__(self, change): self.change = change
        def __len__(self): return 24
        def __getitem__(self, i): return np.full((16, 16, 3), i+self.change*(i >= 12), np.uint8)
    def learner(change):
        frame = pd.DataFrame(dict(path=[f"{i}" for i in range(24)], label=["a", "b"]*12, split="train"))
        return Learner(ImageDataModule(Catalog(frame, ["a", "b"], reader=Reader(change)), batch_size=4, num_workers=0, image_size=16, cache=None, on_leak="ignore"), net(), lr=5e-3, device="cpu")
    monkeypatch.setattr(fingerprint, "_MOST", 8)      # more cost time at the start; these are spread over all
    learner(0).fit(1, callbacks=[SaveCheckpoints(tmp_path, background=False)])
    learner(0).resume(tmp_path)
    with pytest.raises(ConfigError, match="5 of 10 images are not what they were"): learner(1).resume(tmp_path)


def test_training_does_not_wait_until_all_images_have_been_looked_at(pictures, tmp_path, monkeypatch):
    trained, waited = threading.Event(), []
    content = fingerprint._content
    def slow(*args):
        waited.append(all(waited) and trained.wait(20))
        return content(*args)
    monkeypatch.setattr(fingerprint, "_content", slow)
    class Tell(Callback):
        def after_batch(self, learn): trained.set()
    of_pictures(pictures).fit(1, callbacks=[SaveCheckpoints(tmp_path/"ck"), Tell()])
    assert len(waited) == 18 and all(waited)
    monkeypatch.undo()
    for o in (pictures/"train"/"brick").iterdir(): o.write_bytes(flipped(o.read_bytes(), 0))
    with pytest.raises(ConfigError, match="of 18 images"): of_pictures(pictures).resume(tmp_path/"ck")


def test_what_is_read_of_a_file_is_bounded(tmp_path, monkeypatch):
    "A start of 100,000 files must not read them all: at most 64 KB of each, and nothing where size and time are the same."
    (tmp_path/"big").write_bytes(bytes(10**7))
    before = fingerprint._content(tmp_path/"big")
    with open(tmp_path/"big", "r+b") as f: f.seek(10**7-1); f.write(b"x")
    assert fingerprint._content(tmp_path/"big") != before and fingerprint._BLOCK*fingerprint._BLOCKS <= 2**16
    folder = stopped(photos(tmp_path), tmp_path/"ck")
    monkeypatch.setattr(fingerprint, "_content", lambda path: pytest.fail("read again"))
    of_pictures(tmp_path/"photos").resume(folder)


def photos(tmp_path):
    from photos import photo_folder
    return photo_folder(tmp_path/"photos", n_train=4, n_val=2, size=24, classes=("brick", "coffee"))


def test_equal_scores_are_settled_by_the_loss_and_another_column_begins_anew(tmp_path):
    save = SaveCheckpoints(tmp_path, monitor="m", background=False)
    save.watched, save.sign = "m", 1
    learn = lambda loss: SimpleNamespace(recorder=SimpleNamespace(rows=[dict(epoch=0, m=.5, valid_loss=loss)]))
    assert [save.improved(learn(o)) for o in (.9, .8, .85)] == [True, True, False]
    other = SaveCheckpoints(tmp_path)
    other.watched = "accuracy"
    other.load_state_dict(save.state_dict())
    assert other.best is None                     # a best value of another column says nothing
