"Several processes train as one: the same losses, weights and numbers; nobody waits for the dead; nothing is left running."
import multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path
from dataclasses import replace
import numpy as np
import pytest
import torch
from torch import nn
import torch.distributed as dist
from processes import agent, alive, apart, ended, wait_for
from visionlab.callbacks.ema import EMA
from visionlab.callbacks.one_cycle import Schedule
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError, TrainingError
from visionlab.core.machine import is_main, rank, world_size
from visionlab.data.module import ImageDataModule
from visionlab.training.process_parts import part_of, PartBatches
from visionlab.training.distributed import Distributed
from visionlab.training.launch import ChildTraceback, choose_start, launch, ProcessError
from visionlab.callbacks.gradients import Accumulate, ClipGrad
from visionlab.training.events import Callback
from visionlab.training.learner import Learner
from visionlab.data.loader import Loader
from visionlab.transforms.presets import preset
from visionlab.data.shard_files import write_shards
from visionlab.data.shards import StreamLoader

pytestmark = pytest.mark.usefixtures("one_thread", "quiet")


@pytest.fixture(scope="module")
def quiet():
    before = {k: os.environ.get(k) for k in ("VISIONLAB_PROGRESS", "OMP_WAIT_POLICY")}
    os.environ.update(VISIONLAB_PROGRESS="off", OMP_WAIT_POLICY="PASSIVE")
    yield
    for k, v in before.items(): os.environ.pop(k) if v is None else os.environ.update({k: v})


@pytest.fixture(autouse=True)
def nobody_is_left():
    "Leave no process running that a test began; those of earlier files' loaders end when these are collected."
    before = set(multiprocessing.active_children())
    yield
    assert not set(multiprocessing.active_children()) - before


@pytest.fixture(scope="module")
def sample(): return Catalog.from_builtin("FashionSample")


def mlp(inputs=784, hidden=32, classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def points(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 20, generator=g), torch.arange(n) % 3


def batches(n, size, seed=0):
    x, y = points(n, seed)
    return list(zip(x.split(size), y.split(size)))


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def numbers(learn): return [{k: v for k, v in r.items() if k != "time"} for r in learn.history]


def alike(rows, want, exact=("accuracy", "f1_macro", "auroc", "train_accuracy")):
    for got, one in zip(rows, want, strict=True):
        assert got.keys() == one.keys()
        for k in one: assert got[k] == pytest.approx(one[k], abs=1e-9 if k in exact else 1e-5), k


# --- the same as one process

def fashion(balanced):
    dm = ImageDataModule("FashionSample", batch_size=32, max_samples=335, balanced_sampling=balanced, augmentation_preset="small", num_workers=2, seed=3)
    learn = Learner(dm, mlp(), lr=4e-3, device="cpu", metrics=["accuracy", "f1_macro", "auroc"])
    learn.fit(2, callbacks=[Schedule("one_cycle")])
    with learn.together(False): test = learn.validate("test")
    return learn.recorder.losses, numbers(learn), weights(learn), test, learn.recorder.sizes, learn.validate("test")


@pytest.mark.parametrize("world,balanced", [(2, False), (4, False), (2, True)])
def test_the_curve_is_that_of_one_process(world, balanced):
    losses, rows, w, test, sizes, _ = fashion(balanced)
    every = launch(fashion, world, balanced)
    for got in every:
        assert got[0] == pytest.approx(losses, abs=1e-5) and got[4] == sizes and sizes[-1] % world      # the last batch is uneven
        alike(got[1], rows)
        alike([got[3], got[5]], [test, test])                 # measured together, and by each process alone
        assert torch.allclose(got[2], w, atol=1e-5)
    assert all(got[:2] == every[0][:2] and torch.equal(got[2], every[0][2]) for got in every)        # and the same in all, to the bit


OPTIONS = dict(accumulate=lambda: [Accumulate(3)], clipped=lambda: [ClipGrad(.1), Accumulate(2)], averaged=lambda: [EMA(.9)])


def trained(n, size, option):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Sequential(nn.Linear(400, 400), nn.ReLU()), nn.Linear(400, 3))
    learn = Learner((batches(n, size), batches(19, 7, 1)), net, opt="sgd", lr=.05, device="cpu", metrics=["accuracy", "auroc"])
    learn.fit(2, callbacks=OPTIONS[option]())
    return weights(learn), numbers(learn), [type(p).__name__ for p in learn.model.parameters()]


@pytest.mark.parametrize("world,strategy,option,n,size", [(2, "ddp", "accumulate", 45, 9), (4, "ddp", "accumulate", 48, 10), (2, "ddp", "clipped", 45, 9), (3, "ddp", "averaged", 52, 9), (2, "fsdp", "clipped", 45, 9),
                                                          (2, "fsdp", "averaged", 45, 9), (4, "fsdp", "accumulate", 48, 10)])
def test_options_do_what_they_do_in_one_process(world, strategy, option, n, size):
    w, rows, _ = trained(n, size, option)
    for got in launch(trained, world, n, size, option, strategy=strategy):
        assert torch.allclose(got[0], w, atol=1e-5)
        alike(got[1], rows)
        assert set(got[2]) == {"Parameter"}             # a split model is whole again


class Endless:
    "Batches of which nobody knows how many there are"
    def __init__(self, of): self.of = of
    def __iter__(self): return iter(self.of)


def test_what_is_left_of_an_epoch_of_unknown_length_is_learned_from():
    def work():
        learn = Learner(Endless(batches(30, 6)), mlp(20, 8, 3), opt="sgd", lr=.1, device="cpu")
        return weights(learn.fit(2, callbacks=[Accumulate(3)])), learn.step
    (w, steps), got = work(), launch(work, 2)
    assert all(torch.allclose(o[0], w, atol=1e-5) and o[1] == steps for o in got)


def test_gathered_steps_talk_once():
    class Count(Callback):
        order = 99
        def before_fit(self, learn):
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
            self.calls = []
            def hook(group, bucket): self.calls.append(learn.step); return allreduce_hook(group, bucket)
            learn.peers.model.register_comm_hook(None, hook)
    def work():
        learn = Learner(batches(64, 8), mlp(20, 8, 3), device="cpu")
        learn.fit(1, callbacks=[Accumulate(4), c := Count()])
        return c.calls
    assert launch(work, 2, find_unused=False) == [[3, 7]]*2


def test_a_dataloader_is_shared_and_shuffled_alike():
    x, y = points(53)
    def work(generator=True):
        made = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8, shuffle=s, num_workers=w, generator=torch.Generator().manual_seed(5) if generator else None) for s, w in ((True, 1), (False, 0))]
        learn = Learner(tuple(made), mlp(20, 8, 3), lr=1e-2, device="cpu").fit(2)
        return learn.recorder.losses, numbers(learn)
    one, got = work(), launch(work, 2)
    for o in got: assert o[0] == pytest.approx(one[0], abs=1e-5); alike(o[1], one[1])
    assert len(set(map(str, launch(work, 2, False)))) == 1


def test_a_range_test_is_for_all_and_undone():
    def work():
        import visionlab.callbacks.one_cycle
        learn = Learner(batches(64, 8), mlp(20, 8, 3), device="cpu")
        before = weights(learn)
        found = learn.lr_find(steps=40)
        return found.losses, found.best, torch.equal(before, weights(learn)), learn.peers, learn.step
    one, got = work(), launch(work, 2)
    assert got[0] == got[1] and got[0][0] == pytest.approx(one[0], rel=1e-3) and got[0][1] == pytest.approx(one[1], rel=.05) and got[0][2:] == (True, None, 0)


# --- every image once

@pytest.mark.parametrize("n,batch,world,shuffle,balanced", [(45, 8, 2, True, False), (41, 8, 2, True, False), (43, 8, 4, True, False), (50, 16, 4, False, False), (49, 16, 4, False, False), (45, 64, 2, True, False), (40, 8, 2, True, True), (3, 8, 4, False, False), (1, 8, 2, False, False)])
def test_parts_of_a_loader_make_it_whole(sample, n, batch, world, shuffle, balanced):
    cat = replace(sample, frame=sample.subset("train").frame.iloc[:n])
    whole = Loader(cat, preset("small", 28, (.5,), (.5,)), batch, shuffle=shuffle, balanced=balanced)
    parts = [whole.part(r, world) for r in range(world)]
    got = [list(p.batches(3)) for p in parts]
    want = whole.plan(3)
    least = world*(2 if shuffle else 1)
    if len(want) > 1 and len(want[-1]) < least: want[-2:] = [np.concatenate(want[-2:])]
    assert [len(p) for p in parts] == [len(want)]*world
    assert sum(len(b.image) for o in got for b in o) == n
    for k, rows in enumerate(want):
        mine = [o[k].index.numpy() if k < len(o) else np.empty(0, int) for o in got]
        assert sorted(np.concatenate(mine)) == sorted(whole.ids[rows])
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
    if not balanced:
        pictures = {int(i): x for o in got for b in o for i, x in zip(b.index, b.image)}
        for b in whole.batches(3):
            for i, x in zip(b.index, b.image): assert torch.equal(x, pictures[int(i)])


def counted(sizes):
    "Validate sets of odd sizes and count what the metrics have seen"
    found = []
    for n in sizes:
        def images(p, t): return len(t)
        def last(p, t): return float(sorted(t.tolist()) == sorted((torch.arange(n) % 3).tolist()))
        learn = Learner((batches(16, 8), batches(n, 5)), mlp(20, 8, 3), device="cpu", metrics=[images, last])
        learn.fit(1)
        found.append((learn.history[-1]["images"], learn.history[-1]["last"]))
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_evaluation_counts_each_image_once(world):
    sizes = (1, 3, 5, 6, 11, 13)
    assert launch(counted, world, sizes) == [[(n, 1.) for n in sizes]]*world


@pytest.mark.parametrize("n,size,world,least", [(21, 6, 2, 4), (19, 6, 2, 4), (25, 8, 3, 6), (10, 10, 3, 3)])
def test_parts_of_anybodys_batches(n, size, world, least):
    class Plain(torch.utils.data.Dataset):
        def __len__(self): return n
        def __getitem__(self, i): return torch.tensor(i), torch.tensor(i)
    dl = torch.utils.data.DataLoader(Plain(), size)
    for make in (lambda r: PartBatches(list(dl), r, world, least), lambda r: part_of(dl, r, world, least > world)):
        got = [[x.tolist() for x, _ in make(r)] for r in range(world)]
        assert sorted(i for o in got for b in o for i in b) == list(range(n))
        assert len({len(o) for o in got}) == 1 and min(len(b) for o in got for b in o) >= least//world
        want = [list(range(i, min(i+size, n))) for i in range(0, n, size)]
        if len(want) > 1 and len(want[-1]) < least: want[-2:] = [want[-2]+want[-1]]
        assert [sorted(sum(o, [])) for o in zip(*got)] == want
    assert len(part_of(dl, 0, world, least > world)) == len(got[0])


def test_a_batch_too_small_to_share_says_so():
    x = torch.zeros(1, 20), torch.zeros(1, dtype=torch.long)
    with pytest.raises(DataError, match="cannot be shared by 2"): list(part_of([x], 1, 2, True))
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*x), 4)
    with pytest.raises(DataError, match="cannot be shared by 2"): list(part_of(dl, 1, 2, True))


def test_a_distributed_sampler_is_refused():
    data = torch.utils.data.TensorDataset(*points(9))
    dl = torch.utils.data.DataLoader(data, 3, sampler=torch.utils.data.DistributedSampler(data, 2, 0))
    with pytest.raises(ConfigError, match="counts once"): part_of(dl, 0, 2)


def test_streams_are_shared_by_whole_batches(sample, tmp_path):
    write_shards(replace(sample, frame=sample.subset("train").frame.iloc[:45]), tmp_path/"s", max_count=10)
    cat = Catalog.from_shards(str(tmp_path/"s")).subset("train")
    dl = StreamLoader(cat, preset("small", 28, (.5,), (.5,)), 8, shuffle=True)
    parts = [part_of(dl, r, 2, True) for r in (0, 1)]
    whole = dl.plan(2)
    assert [sorted(np.r_[a, b]) for a, b in zip(*(p.plan(2) for p in parts), strict=True)] == [sorted(o) for o in whole]
    with pytest.raises(ConfigError, match="3 divides"): part_of(dl, 0, 3)


# --- what only several processes have

def test_running_statistics_are_averaged_and_dropout_differs():
    class Draw(nn.Module):
        def forward(self, x):
            if self.training: drawn.append(torch.rand(1).item())
            return x
    drawn = []
    def work():
        torch.manual_seed(0)
        learn = Learner((batches(32, 8), batches(9, 4)), nn.Sequential(nn.Linear(20, 6), nn.BatchNorm1d(6), Draw(), nn.Linear(6, 3)), device="cpu").fit(1)
        return learn.model[1].running_mean, learn.model[1].running_var, list(drawn)
    a, b = launch(work, 2)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[0].abs().sum() > 0
    assert len(a[2]) == len(b[2]) == 4 and not set(a[2]) & set(b[2])


def test_unused_parameters_are_found_at_the_first_step():
    class Spare(nn.Module):
        def __init__(self): super().__init__(); torch.manual_seed(0); self.a, self.spare = nn.Linear(20, 3), nn.Linear(20, 3)
        def forward(self, x): return self.a(x)
    def work():
        learn = Learner(batches(48, 8), Spare(), opt="sgd", lr=.1, device="cpu")
        return weights(learn.fit(2))
    w, got = work(), launch(work, 2)
    assert all(torch.allclose(o, w, atol=1e-5) for o in got)
    with pytest.raises(TrainingError, match="find_unused=True"): launch(work, 2, find_unused=False)


def test_layers_that_thaw_are_averaged_too():
    class Thaw(Callback):
        def before_epoch(self, learn): learn.model[1].requires_grad_(learn.epoch > 0)
    def work():
        net = mlp(20, 8, 3); net[1].requires_grad_(False)
        learn = Learner(batches(48, 8), net, opt=lambda groups: torch.optim.SGD(net.parameters(), .1), lr=.1, device="cpu")
        return weights(learn.fit(2, callbacks=[Thaw()]))
    w, got = work(), launch(work, 2)
    assert all(torch.allclose(o, w, atol=1e-5) for o in got)


def test_what_cannot_be_is_said(monkeypatch):
    with pytest.raises(ConfigError, match="ddp"): Distributed("dp")
    with pytest.raises(ConfigError, match="sync_batchnorm"): launch(small, 2, sync_batchnorm=True)
    with pytest.raises(ConfigError, match="whole number"): launch(small, 0)
    with pytest.raises(ConfigError, match="cannot be found"): choose_start(lambda: 0, "spawn")
    with pytest.raises(ConfigError, match="do not do the same"): launch(lambda: Learner(batches(16 + 16*rank(), 8), mlp(20, 8, 3), device="cpu").fit(1), 2)
    with pytest.raises(ConfigError, match="float16"): launch(lambda: Learner(batches(16, 8), mlp(20, 8, 3), device="cpu", precision="fp16").fit(1), 2, strategy="fsdp")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="with Distributed"): Learner(batches(16, 8), mlp(20, 8, 3), device="cpu")
    with pytest.raises(ConfigError, match="one of several"): launch(small, 2)


def small(): return Learner(batches(16, 8), mlp(20, 8, 3), device="cpu").fit(1).history[-1]["train_loss"]


def test_memory_that_runs_out_in_one_process_ends_all():
    class Tight(nn.Linear):
        def forward(self, x):
            if rank() == 1: raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)
    with pytest.raises(TrainingError, match=r"(?s)4 images, this process's part of a batch of 8.*process 1 of 2"):
        launch(lambda: Learner(batches(16, 8), Tight(20, 3), device="cpu").fit(1), 2)


# --- errors, deaths and ends

def test_an_error_arrives_with_its_type_and_traceback():
    def work():
        if rank() == 1: raise ZeroDivisionError("by nothing")
        small()
    start = time.monotonic()
    with pytest.raises(ProcessError, match="Process 1 of 2 failed: ZeroDivisionError: by nothing") as e: launch(work, 2)
    assert isinstance(e.value.__cause__, ChildTraceback) and "in work" in str(e.value.__cause__) and time.monotonic()-start < 20


def test_a_process_that_is_killed_ends_all():
    def work():
        if rank() == 0: os.kill(os.getpid(), signal.SIGKILL)
        small()
    with pytest.raises(ProcessError, match="Process 0 of 2 was killed by SIGKILL"): launch(work, 2)


def test_an_answer_that_cannot_be_sent_says_so():
    with pytest.raises(ConfigError, match="cannot be sent back: a function"): launch(lambda: (lambda: 0), 2)


def test_answers_come_in_order_and_the_group_is_gone():
    assert launch(lambda: (rank(), world_size(), is_main(), torch.full((3,), rank())), 3, device="cpu")[2][:3] == (2, 3, False)
    assert not dist.is_initialized() and Learner.group is None and "RANK" not in os.environ


def test_how_processes_begin(monkeypatch):
    ways = lambda f: [choose_start(f), choose_start(f, "fork"), choose_start(small, "spawn")]
    assert ways(lambda: 0) == ["fork", "fork", "spawn"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (choose_start(small), choose_start(lambda: 0)) == ("spawn", "fork")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="the GPU is in use"): choose_start(lambda: 0)


SCRIPT = """
from pathlib import Path
from test_distributed import launch, steps_until_stopped
if __name__ == "__main__": launch(steps_until_stopped, 2, Path(), start="spawn")
"""


def steps_until_stopped(folder):
    "Train for long, and write down how far it came"
    class Slow(Callback):
        def after_batch(self, learn):
            time.sleep(.02)
            if learn.step == 5: (folder/f"started{rank()}").touch()
    learn = Learner([(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))]*100_000, nn.Linear(2, 2), device="cpu")
    (folder/f"pid{rank()}").write_text(str(os.getpid()))
    try: learn.fit(1, callbacks=[Slow()])
    finally: (folder/f"steps{rank()}").write_text(f"{learn.step} {learn.interrupted}")


def script(folder, start):
    "Start a script that launches processes: a fork of this one, or a new interpreter, which spawning needs"
    if start == "fork": return apart(lambda: launch(steps_until_stopped, 2, folder, start="fork"))
    (folder/"script.py").write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen([sys.executable, "script.py"], cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join((root, str(Path(__file__).parent), str(Path(__file__).parents[1])))}, stderr=subprocess.DEVNULL).pid


@pytest.mark.parametrize("start,number", [("fork", signal.SIGINT), ("spawn", signal.SIGINT), ("fork", signal.SIGKILL)])
def test_a_script_that_is_stopped_leaves_nobody(tmp_path, start, number):
    pid = script(tmp_path, start)
    try: wait_for(lambda: all((tmp_path/f"started{r}").exists() for r in (0, 1)), 180)       # three interpreters import torch
    except AssertionError: os.kill(pid, signal.SIGKILL); raise
    os.kill(pid, number)
    assert ended(pid, 40) in ((130, -signal.SIGINT) if number == signal.SIGINT else (-signal.SIGKILL,))
    pids = [int((tmp_path/f"pid{r}").read_text()) for r in (0, 1)]
    wait_for(lambda: not any(map(alive, pids)), 10)
    if number == signal.SIGINT:
        steps = [(tmp_path/f"steps{r}").read_text() for r in (0, 1)]
        assert steps[0] == steps[1] and steps[0].endswith("True")


# --- commands and notebooks

def test_torchrun_trains_and_only_one_writes(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": root, "VISIONLAB_PROGRESS": "plain", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "visionlab.cli", "train", "--data", "FashionSample", "--model", "resnet9",
                           "--max-samples", "300", "--epochs", "1", "--out", "run", "--device", "cpu"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Test: loss") == done.stdout.count("Model: ") == done.stdout.count("train_loss") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and (tmp_path/"run"/"exported_models"/"exported_last"/"model.safetensors").exists()
    assert len((tmp_path/"run"/"metrics.csv").read_text().splitlines()) == 2


def test_nobody_outlives_torchrun(tmp_path):
    def work():
        with Distributed() as d:
            (tmp_path/f"pid{d.rank}").write_text(str(os.getpid()))
            time.sleep(60)
    pid = apart(lambda: agent(work, min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_endpoint="localhost:0"))
    pids = [tmp_path/f"pid{r}" for r in (0, 1)]
    try: wait_for(lambda: all(p.exists() and p.read_text() for p in pids))
    finally: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    wait_for(lambda: not any(alive(int(p.read_text())) for p in pids), 10)


def test_the_command_takes_devices(tmp_path, capfd, monkeypatch):
    from visionlab.cli import main
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "FashionSample", "--model", "resnet9", "--max-samples", "200", "--epochs", "1", "--devices", "2", "--device", "cpu"]) == 0
    assert capfd.readouterr().out.count("Test: loss") == 1 and not list(tmp_path.iterdir())
    assert main(["train", "--data", "FashionSample", "--devices", "0"]) == 2


def test_a_notebook_cell_is_launched():
    import nbformat
    from nbclient import NotebookClient
    cells = ["from visionlab.training.learner import Learner\nfrom visionlab.training.launch import launch\nimport torch\nfrom torch import nn\nLearner([(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))], nn.Linear(2, 2), device='cpu').fit(1)",
             "def work():\n    learn = Learner([(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))]*4, nn.Linear(2, 2), device='cpu')\n    return learn.fit(1).step\nlaunch(work, 2)",
             "def broken(): raise RuntimeError('in the cell')\nlaunch(broken, 2)"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name="python3", display_name="python3")))
    NotebookClient(nb, timeout=60, allow_errors=True).execute()
    values = [o["data"]["text/plain"] for o in nb.cells[1].outputs if o.output_type == "execute_result"]
    assert values == ["[4, 4]"], nb.cells[1].outputs
    assert nb.cells[2].outputs[-1].ename == "ProcessError" and any("in broken" in line or "broken" in line for line in nb.cells[2].outputs[-1].traceback)
