"Several processes write one checkpoint and go on from it: as many of them to the bit, another number but for rounding, and a killed one costs a few steps."
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from processes import agent, apart, ended, wait_for
from resuming import data, learner, options, told
from torch import nn

from visionlab.callbacks.one_cycle import Schedule
from visionlab.runs.checkpoints import Checkpoint, list_checkpoints
from visionlab.core.errors import ConfigError
from visionlab.training.distributed import Distributed
from visionlab.training.launch import launch
from visionlab.callbacks.gradients import Accumulate
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.training.metrics import MetricConfig, MetricManager
from visionlab.runs.folder import SaveCheckpoints
from visionlab.callbacks.stopping import KeepBest

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 10        # two epochs of 144 images


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")
    data(0, 160)            # read once, for all processes that are forked


def metrics(): return MetricManager([MetricConfig(o, "visionlab", stages=("train", "val")) for o in ("accuracy", "auroc")])
def trained(learn, *more): return learn.fit(2, callbacks=[*options(), *more])
def whole(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def numbers(learn): return [{k: v for k, v in r.items() if k != "time"} for r in learn.history]
def together(): Learner.group.gather(None)                # waits for all


def every_step(folder, *more, every=1):
    "Train without checkpoints, train with one after each step, and go on from each, in each process of a launch"
    make = lambda: learner(metrics=metrics())
    alone = told(trained(make(), *more))
    whole = told(trained(make(), *more, SaveCheckpoints(folder, steps=1, keep=99, background=False)))
    together()
    found = list_checkpoints(folder)[::-1]
    again = [(o.name, told(trained(make().resume(o), *more))) for o in found[::every]]
    return alone, whole, len(found), again


@pytest.mark.parametrize("world,strategy,every,more", [(2, "ddp", 3, False), (2, "ddp", 4, True), (3, "ddp", 5, False), (2, "fsdp", 5, False)])
def test_as_many_go_on_to_the_bit(world, strategy, every, more, tmp_path):
    "With augmentation, dropout, batch normalisation, an average of the weights, a schedule, and metrics of training; `more` gathers gradients and keeps the best weights"
    def work(): return every_step(tmp_path, *([Accumulate(2), KeepBest("accuracy")] if more else []), every=every)
    for alone, whole, n, again in launch(work, world, strategy=strategy):
        assert alone == whole and n >= (6 if more else STEPS)
        assert [name for name, said in again if said != whole] == []


def plain_learner():
    "Make what is the same whoever computes it: without dropout and normalisation"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10))
    return Learner(data(0, 160), net, lr=.05, opt="sgd", device="cpu", metrics=metrics())


def flat(folder=None, checkpoint=None):
    learn = plain_learner()
    if checkpoint: learn.resume(checkpoint)
    trained(learn, *([SaveCheckpoints(folder, steps=3, keep=99, background=False)] if folder else []))
    return learn.recorder.losses, numbers(learn), whole(learn)


@pytest.mark.parametrize("before,after", [((2, "ddp"), (1, "ddp")), ((1, "ddp"), (2, "ddp")), ((2, "ddp"), (4, "ddp")), ((3, "ddp"), (2, "fsdp")), ((2, "fsdp"), (1, "ddp"))])
def test_another_number_goes_on_but_for_rounding(before, after, tmp_path):
    by = lambda where, *args: launch(flat, where[0], *args, strategy=where[1])[0] if where[0] > 1 else flat(*args)
    one = by(before, tmp_path)
    for o in (tmp_path/"step-00000003", tmp_path/"step-00000009")[after[0] > 2:]:             # in the middle of either epoch
        losses, rows, weights = by(after, None, o)
        assert losses == pytest.approx(one[0], abs=1e-5) and torch.allclose(weights, one[2], atol=1e-5), o.name
        for got, want in zip(rows, one[1], strict=True): assert got == pytest.approx(want, abs=1e-5)


def test_dataloaders_of_ones_own_go_on_in_the_order_and_noise_of_then(tmp_path):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self): return 40
        def __getitem__(self, i): return torch.randn(20, generator=torch.Generator().manual_seed(i)) + .1*torch.randn(20), i % 3
    def make(generator):
        torch.manual_seed(5)
        g = torch.Generator().manual_seed(3) if generator else None
        return Learner(torch.utils.data.DataLoader(Noisy(), 8, shuffle=True, generator=g), nn.Sequential(nn.Linear(20, 9), nn.Dropout(.3), nn.Linear(9, 3)), lr=1e-2, device="cpu")
    fit = lambda learn, *more: learn.fit(3, callbacks=[Schedule("linear"), *more])
    def work():
        found = []
        for generator in (False, True):
            where = tmp_path/str(generator)
            want = told(fit(make(generator), SaveCheckpoints(where, steps=1, keep=99, background=False)))
            together()
            for o in list_checkpoints(where)[::5]:
                torch.rand(7)
                found.append((generator, o.name, told(fit(make(generator).resume(o))) == want))
        return found
    for found in launch(work, 2): assert len(found) >= 6 and all(same for *_, same in found), found


def test_clocks_that_differ_agree_when_to_save(tmp_path):
    def work():
        minutes = 1e-9 if Learner.group.rank == 1 else 1e9          # one of them is in a hurry
        return told(trained(learner(), SaveCheckpoints(tmp_path, epochs=None, minutes=minutes, keep=99, monitor=None)))
    a, b = launch(work, 2)
    assert a == b and len(list_checkpoints(tmp_path)) >= 2           # one that was wished for, and the last
    for o in list_checkpoints(tmp_path): Checkpoint.read(o)


def test_all_or_none_save(tmp_path):
    with pytest.raises(ConfigError, match="SaveCheckpoints to all or to none"): launch(lambda: trained(learner(), *([SaveCheckpoints(tmp_path)] if Learner.group.rank == 0 else [])), 2)


# --- stopped and killed

class Act(Callback):
    "Do something in one process before a step"
    aside = True
    def __init__(self, rank, step, act): self.rank, self.at, self.act = rank, step, act
    def before_batch(self, learn):
        if learn.step == self.at and (learn.group is None or learn.group.rank == self.rank): self.act()


def kill(number): return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_any_process_ends_all_with_a_checkpoint(rank, tmp_path):
    def work(*more, resume=False):
        learn = learner()
        if resume: learn.resume(tmp_path)
        return told(trained(learn, SaveCheckpoints(tmp_path), *more))
    with pytest.raises(SystemExit) as e: launch(lambda: work(Act(rank, 6, kill(signal.SIGTERM))), 2)
    assert e.value.code == 143 and Checkpoint.newest(tmp_path).step >= 7
    assert launch(lambda: work(resume=True), 2) == launch(lambda: told(trained(learner())), 2)


def test_sigterm_to_who_launched_them_is_passed_on(tmp_path):
    def work():
        act = Act(1, 6, lambda: ((tmp_path/"there").touch(), time.sleep(.5)))
        trained(learner(), SaveCheckpoints(tmp_path), act)
        (tmp_path/f"finished{Learner.group.rank}").touch()
    pid = apart(lambda: launch(work, 2))
    wait_for((tmp_path/"there").exists)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 143 and not list(tmp_path.glob("finished*"))
    assert Checkpoint.newest(tmp_path).step >= 7 and not list(tmp_path.glob(".*"))


def life(where, make, die):
    "Be one worker: train, and die in the middle of it, or go on from the newest checkpoint; note what came out"
    where = Path(where)
    torch.set_num_threads(1)
    with Distributed() as d:
        learn = make()
        goes_on = bool(list_checkpoints(where))
        if goes_on: learn.resume(where)
        began = learn.step
        trained(learn, SaveCheckpoints(where, steps=2), *([] if goes_on else [Act(1, 7, die)]))
        if d.rank == 0: torch.save(dict(told=told(learn), losses=learn.recorder.losses, rows=numbers(learn), weights=whole(learn), began=began, world=d.world), where/"end.pt")


def bits(where): life(where, lambda: learner(), kill(signal.SIGKILL))
def plain(where): life(where, plain_learner, lambda: [os.kill(o, signal.SIGKILL) for o in (os.getppid(), os.getpid())])


def test_a_killed_worker_costs_a_few_steps(tmp_path):
    pid = apart(lambda: agent(bits, str(tmp_path), min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=3, rdzv_endpoint="localhost:0"))
    assert ended(pid, 120) == 0
    end = torch.load(tmp_path/"end.pt", weights_only=True)
    assert end["world"] == 2 and 4 <= end["began"] <= 7
    assert end["told"] == launch(lambda: told(trained(learner())), 2)[0]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def listens(port):
    with socket.socket() as s: return s.connect_ex(("localhost", port)) == 0


def test_fewer_go_on_when_a_machine_is_gone(tmp_path):
    "Two agents, as on two machines, with a worker each; one dies together with its worker, and the other goes on alone"
    place = dict(min_nodes=1, max_nodes=2, nproc_per_node=1, max_restarts=3, rdzv_endpoint=f"localhost:{(port := free_port())}")
    first = apart(lambda: agent(plain, str(tmp_path), **place))
    wait_for(lambda: listens(port))
    second = apart(lambda: agent(plain, str(tmp_path), **place))
    assert ended(second, 120) == -signal.SIGKILL and ended(first, 120) == 0
    end, (losses, rows, weights) = torch.load(tmp_path/"end.pt", weights_only=True), flat()
    assert end["world"] == 1 and 4 <= end["began"] <= 7
    assert end["losses"] == pytest.approx(losses, abs=1e-5) and torch.allclose(end["weights"], weights, atol=1e-5)
    for got, want in zip(end["rows"], rows, strict=True): assert got == pytest.approx(want, abs=1e-5)
