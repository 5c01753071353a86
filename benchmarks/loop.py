"""What a training loop adds to a raw PyTorch loop: ratios from one run, median of alternated rounds.

    python benchmarks/loop.py [--rounds 11] [--steps 60 360] [--only visionlab fastai …] [--out benchmarks/results/loop.json]

A network of two layers (784-128-10), 64×1×28×28 batches ready in memory, SGD with momentum, one thread. A loop's cost is the slope between a fit of 60 and one of 360 steps, so what a fit costs once falls out.
Each loop has a process of its own, in which a raw loop runs just before and just after it; the ratio is to the mean of these two. Ratios are of processor time, those by the clock stand beside them.
Whatever takes a torch optimiser gets the raw loop's; fastai has its own. Text goes to nowhere, but is written. Peers come from requirements-peers.txt; one that is not installed is said to be left out.
"""
import os
import statistics
import sys
import tempfile
import time
from functools import partial

from bench import Goal, Ratio, Report, alternate, one_thread, parser, roads, slope, table

CLASSES, LR, MOMENTUM = 10, .01, .9

# ---- the same for all

def network():
    "Make the network, the same each time"
    import torch
    from torch import nn
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def batches(n, size=64, different=32):
    "List `n` batches in memory"
    import torch
    g = torch.Generator().manual_seed(0)
    some = [(torch.randn(size, 1, 28, 28, generator=g), torch.randint(0, CLASSES, (size,), generator=g)) for _ in range(different)]
    return [some[i % different] for i in range(n)]


def sgd(params):
    import torch
    return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM)


class Ready:
    "Be a loader of batches that are there: peers take a bare list for several loaders, or look for an attribute"
    def __init__(self, data): self.data = data
    def __iter__(self): return iter(self.data)
    def __len__(self): return len(self.data)


def torch_metrics():
    "Make three metrics, as many people log them"
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision
    return [MulticlassAccuracy(CLASSES), MulticlassF1Score(CLASSES), MulticlassPrecision(CLASSES)]


# ---- the loops: each makes fit(batches)

def raw(bar=False):
    "Write the loop by hand; with a bar it also reads the loss"
    import torch.nn.functional as F
    from tqdm import tqdm
    def fit(data):
        model = network()
        opt = sgd(model.parameters())
        model.train()
        progress = tqdm(data) if bar else data
        for x, y in progress:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if bar: progress.set_postfix(loss=loss.item(), refresh=False)
    return fit


def visionlab_learner(metrics=(), valid=None, callbacks=()):
    from visionlab.training.learner import Learner
    return Learner(([], valid), network(), opt=sgd, lr=LR, weight_decay=0., metrics=list(metrics), callbacks=callbacks, device="cpu", precision="fp32")


def visionlab(kind="bare"):
    "Ours: without callbacks; with all defaults, one-cycle and the accuracy of training and validation; or with an average, clipping and three torchmetrics of both"
    import visionlab.callbacks.one_cycle
    from visionlab.callbacks.ema import EMA
    from visionlab.callbacks.gradients import ClipGrad
    from visionlab.training.metrics import MetricConfig
    os.environ["VISIONLAB_PROGRESS"] = "text"

    def make():
        if kind == "bare":
            learn = visionlab_learner()
            learn.callbacks = []
            return learn
        if kind == "defaults": return visionlab_learner([MetricConfig("accuracy", backend="visionlab")], batches(1))
        measured = [MetricConfig(type(m).__name__, backend="custom", metric_class=m) for m in torch_metrics()]
        return visionlab_learner(measured, batches(1), [EMA(), ClipGrad(1.)])

    def fit(data):
        learn = make()
        learn.train_dl = data
        learn.fit(1) if kind == "bare" else learn.fit_one_cycle(1)
    return fit


def fabric():
    import torch.nn.functional as F
    from lightning.fabric import Fabric
    def fit(data):
        f = Fabric(accelerator="cpu", devices=1)
        model = network()
        model, opt = f.setup(model, sgd(model.parameters()))
        for x, y in data:
            f.backward(F.cross_entropy(model(x), y))
            opt.step()
            opt.zero_grad()
    return fit


def accelerate():
    import torch.nn.functional as F
    from accelerate import Accelerator
    def fit(data):
        a = Accelerator(cpu=True)
        model = network()
        model, opt = a.prepare(model, sgd(model.parameters()))
        for x, y in data:
            a.backward(F.cross_entropy(model(x), y))
            opt.step()
            opt.zero_grad()
    return fit


def lightning(kind="bare"):
    "Lightning: barebones; with all defaults and the loss in the bar; with three torchmetrics logged each step besides"
    import torch
    import torch.nn.functional as F
    import lightning as L
    folder = tempfile.mkdtemp()

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            if kind == "torchmetrics": self.measures = torch.nn.ModuleList(torch_metrics())
        def configure_optimizers(self): return sgd(self.parameters())
        def training_step(self, batch, i):
            x, y = batch
            out = self.net(x)
            loss = F.cross_entropy(out, y)
            if kind != "bare": self.log("loss", loss, prog_bar=True)
            if kind == "torchmetrics": self.log_measures(out.softmax(1), y)
            return loss
        def log_measures(self, out, y):
            for i, m in enumerate(self.measures):
                m(out.detach(), y)
                self.log(f"measure{i}", m, prog_bar=i == 0)

    def fit(data):
        settings = dict(barebones=True) if kind == "bare" else dict(default_root_dir=folder)
        L.Trainer(accelerator="cpu", devices=1, max_epochs=1, **settings).fit(Module(), Ready(data))
    return fit


def skorch():
    "skorch with its default callbacks"
    import torch
    import numpy as np
    from skorch import NeuralNetClassifier

    class Net(NeuralNetClassifier):
        def get_iterator(self, dataset, training=False): return self.ready

    def fit(data):
        net = Net(network(), criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.SGD, optimizer__momentum=MOMENTUM, lr=LR, max_epochs=1, train_split=None, classes=np.arange(CLASSES))
        net.ready = data
        net.fit(np.zeros((64, 1, 28, 28), np.float32), np.zeros(64, np.int64))
    return fit


def hf(kind="bare"):
    "Hugging Face's Trainer: everything off, or its defaults"
    import torch
    import torch.nn.functional as F
    from transformers import Trainer, TrainingArguments
    folder = tempfile.mkdtemp()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
        def forward(self, pixel_values, labels):
            out = self.net(pixel_values)
            return dict(loss=F.cross_entropy(out, labels), logits=out)

    class ReadyTrainer(Trainer):
        def get_train_dataloader(self): return self.ready

    def fit(data):
        off = dict(logging_strategy="no", save_strategy="no", logging_nan_inf_filter=False, max_grad_norm=0., lr_scheduler_type="constant", disable_tqdm=True) if kind == "bare" else {}
        args = TrainingArguments(output_dir=folder, use_cpu=True, report_to=[], num_train_epochs=1, max_steps=len(data), **off)
        model = Model()
        more = dict(optimizers=(sgd(model.parameters()), None)) if kind == "bare" else {}
        t = ReadyTrainer(model=model, args=args, train_dataset=[0], **more)
        t.ready = [dict(pixel_values=x, labels=y) for x, y in data]
        t.train()
    return fit


def fastai(kind="bare"):
    "fastai: no bar and no metric; or fit_one_cycle with its bar, the accuracy, and its tensors, as its own loaders make them"
    import torch
    import torch.nn.functional as F
    from fastai.vision.all import SGD, DataLoaders, Learner, TensorCategory, TensorImage, accuracy

    def fit(data):
        if kind != "bare": data = [(TensorImage(x), TensorCategory(y)) for x, y in data]
        dls = DataLoaders(Ready(data), Ready(data[:1]))
        dls._device = torch.device("cpu")
        learn = Learner(dls, network(), loss_func=F.cross_entropy, opt_func=partial(SGD, mom=MOMENTUM), lr=LR, metrics=[] if kind == "bare" else [accuracy])
        if kind != "bare": return learn.fit_one_cycle(1, LR)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return fit


ALL = {"raw PyTorch": raw, "raw PyTorch, loss read and tqdm": partial(raw, True), "visionlab, no callbacks": visionlab, "visionlab, defaults": partial(visionlab, "defaults"),
       "visionlab, EMA, clipping, 3 torchmetrics": partial(visionlab, "everything"), "Fabric": fabric, "skorch": skorch, "Accelerate": accelerate, "Lightning, barebones": lightning, "Lightning, defaults": partial(lightning, "defaults"),
       "Lightning, 3 torchmetrics": partial(lightning, "torchmetrics"), "HF Trainer, everything off": hf, "HF Trainer, defaults": partial(hf, "defaults"), "fastai, bare": fastai,
       "fastai, defaults": partial(fastai, "defaults")}

GOALS = (("visionlab, no callbacks", 1.03), ("visionlab, defaults", 1.12), ("visionlab, EMA, clipping, 3 torchmetrics", 1.25))

# ---- measuring

class Loop:
    "Measure seconds a step of a loop and of the raw loops around it"
    def __init__(self, make, few, many):
        one_thread()
        self.fit, self.raw, self.few, self.many = make(), raw(), few, many
        self.few_batches, self.many_batches = batches(few), batches(many)

    def cost(self, fit):
        "Give (processor, clock) seconds a step"
        short, long = self.seconds(fit, self.few_batches), self.seconds(fit, self.many_batches)
        return [slope(a, b, self.many-self.few) for a, b in zip(short, long)]

    def seconds(self, fit, data):
        cpu, wall = time.process_time(), time.perf_counter()
        fit(data)
        return time.process_time()-cpu, time.perf_counter()-wall

    def __call__(self):
        before, mine, after = self.cost(self.raw), self.cost(self.fit), self.cost(self.raw)
        return {k: dict(mine=m, raw=(a+b)/2) for k, m, a, b in zip(("cpu", "wall"), mine, before, after)}


def over_raw(rounds, clock="cpu"):
    "Divide a loop's step by the raw loop's around it, round by round"
    each = [r[clock]["mine"]/r[clock]["raw"] for r in rounds]
    return Ratio(statistics.median(each), min(each), max(each), len(each))


def row(name, rounds):
    "Write one line of the table"
    added = statistics.median(r["cpu"]["mine"]-r["cpu"]["raw"] for r in rounds)
    return name, str(over_raw(rounds)), f"{added*1e6:+.0f}", str(over_raw(rounds, "wall"))


def judge(found, left_out=()):
    "Compare ours with what was promised"
    return [Goal(name, wanted, over_raw(found[name]).median if name in found else None, at_least=False, unit="× raw", why_not=dict(left_out).get(name, "not asked for")) for name, wanted in GOALS]


def arguments():
    p = parser(__doc__)
    p.set_defaults(rounds=11)
    p.add_argument("--steps", type=int, nargs=2, default=(60, 360), metavar=("FEW", "MANY"), help="lengths of the two fits")
    p.add_argument("--only", nargs="+", metavar="WORD", help="loops whose name has one of these words")
    return p


def main():
    args = arguments().parse_args()
    chosen = {n: f for n, f in ALL.items() if not args.only or any(w.lower() in n.lower() for w in args.only)}
    report = Report("loop", dict(rounds=args.rounds, steps=list(args.steps), network="784-128-10", batch=64, threads=1))
    with roads({n: partial(Loop, f) for n, f in chosen.items()}, *args.steps) as there:
        found = alternate(there, args.rounds)
        troubles = {n: r.trouble for n, r in there.items() if r.trouble}
    report.results, report.left_out = found, troubles
    if found:
        step = statistics.median(r["cpu"]["raw"] for rounds in found.values() for r in rounds)
        print(f"\nthe raw loop takes {step*1e6:.0f} µs of processor time a step; {args.rounds} rounds")
    print(table([row(n, r) for n, r in found.items()], ("", "× raw", "µs more", "× raw by the clock")))
    report.promise(*judge(found, troubles))
    return report.finish(args.out, args.strict)


if __name__ == "__main__": sys.exit(main())
