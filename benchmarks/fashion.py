"""Seconds to 92 % test accuracy on all of Fashion-MNIST, from files on disk to a trained network; the same network for all.

    python benchmarks/fashion.py [--target .92] [--epochs 1 2 3 4 6 8] [--rounds 3] [--only visionlab fastai …] [--without usual …] [--fraction 1.] [--out benchmarks/results/fashion.json]

visionlab          its recipe for few epochs, on Fashion-MNIST's own files: no augmentation, Muon, smoothed labels, batches of 128, bfloat16 where the processor has it, channels last
visionlab, PNGs    the same on a folder of PNGs, which the others read too
visionlab, usual   all defaults: AdamW, shifts and flips, full precision, the others' batch size
fastai             `fit_one_cycle(n)` with its own loaders
PyTorch            ImageFolder, DataLoader with workers, Adam: a plain loop

Each tries the numbers of epochs from the fewest on, since one-cycle needs to know its end, and stops at the first whose accuracy reaches the target; the seconds are of that run alone, and the median of the
rounds, each with another seed. Seconds count from nothing in memory to the last step: opening the data, checking it, starting workers, training; imports and the final test are left out for all. The plain loop
has a constant rate, so it runs once and is tested after each epoch, which is not counted. All have the same number of threads and of workers. Long: give --fraction to try it out, or end it after a round with Ctrl-C.
"""
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench import Goal, Report, Road, parser, table, usable_cpus

MEAN, STD = (.2860,), (.3530,)
NAMES = ("visionlab", "visionlab, PNGs", "visionlab, usual", "fastai", "PyTorch")

# ---- the same for all

def network(seed):
    "Make the network: the small residual net that visionlab recommends for such pictures"
    import torch
    from visionlab.models.classifier import ImageClassifier
    torch.manual_seed(seed)
    return ImageClassifier("resnet9", 10, pretrained=False, in_chans=1, image_size=28)


def write_pngs(root, fraction):
    "Write a share of the training pictures and all test pictures into root/{train,test}/<class>, and a few into root/val"
    from PIL import Image
    from loader import fashion_mnist
    for name, part, share in (("train", "train", fraction), ("test", "test", 1.)):
        x, y = fashion_mnist(part)
        for c in range(10): (root/name/str(c)).mkdir(parents=True, exist_ok=True)
        for i in range(round(len(x)*share)): Image.fromarray(x[i]).save(root/name/str(y[i])/f"{i:05}.png", compress_level=1)
    for c in range(10):
        (root/"val"/str(c)).mkdir(parents=True, exist_ok=True)
        first = min((root/"test"/str(c)).iterdir())
        (root/"val"/str(c)/first.name).write_bytes(first.read_bytes())
    return root


def test_accuracy(model, root):
    "Measure a network on the test pictures, the same way for everyone but visionlab, which measures itself"
    import torch
    x, y = test_pictures(root)
    model.eval()
    with torch.inference_mode(): return torch.cat([model(o).argmax(1) for o in x.split(500)]).eq(y).float().mean().item()


def test_pictures(root):
    "Read the test pictures, normalised"
    import numpy as np
    import torch
    from PIL import Image
    files = sorted(Path(root).glob("test/*/*.png"))
    x = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in files])[:, None]).float()/255
    return (x-MEAN[0])/STD[0], torch.tensor([int(f.parent.name) for f in files])


# ---- the ways: each makes train(epochs, seed) → [(seconds, accuracy), …]

SHORT = dict(opt="muon", lr=.015, label_smoothing=.1)        # what reaches most in one or two epochs; longer trainings gain from augmentation

def visionlab(root, fraction, args, png=False, short=True):
    "Ours: the recipe for few epochs, or all defaults"
    import visionlab.callbacks.one_cycle
    from visionlab.data.module import ImageDataModule
    from visionlab.training.device import has_bf16
    from visionlab.training.learner import Learner
    usual = dict(num_workers=args["workers"], val_split=0, batch_size=128 if short else args["batch"], augmentation_preset="none" if short else "small")
    precision = "bf16" if short and has_bf16("cpu") else "fp32"

    def data():
        if png: return ImageDataModule(Path(root), image_size=28, in_chans=1, normalize=(MEAN, STD), valid="none", resize="squash", **usual)
        return ImageDataModule(part_of(fraction), **usual)

    def train(epochs, seed):
        start = time.perf_counter()
        learn = Learner(data(), network(seed), seed=seed, device="cpu", precision=precision, **(SHORT if short else {}))
        learn.valid_dl = None
        learn.fit_one_cycle(epochs, warmup=.15 if short else .25)
        return [(time.perf_counter()-start, learn.validate("test")["accuracy"])]
    return train


def part_of(fraction):
    "Open Fashion-MNIST, or the first share of its training pictures"
    from dataclasses import replace
    from visionlab.catalog.catalog import Catalog
    cat = Catalog.from_builtin("FashionMNIST")
    if fraction == 1: return cat
    frame = cat.frame
    few = frame[frame["split"] == "train"].index
    return replace(cat, frame=frame.drop(few[round(len(few)*fraction):]))


def fastai(root, fraction, args):
    "fastai's loaders and fit_one_cycle"
    import torch
    import torch.nn.functional as F
    from fastai.vision.all import Flip, ImageBlock, CategoryBlock, DataBlock, GrandparentSplitter, Learner, Normalize, PILImageBW, get_image_files, parent_label, setup_aug_tfms
    def train(epochs, seed):
        torch.manual_seed(seed)
        start = time.perf_counter()
        block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter("train", "val"), get_y=parent_label,
                          batch_tfms=[*setup_aug_tfms([Flip()]), Normalize.from_stats(MEAN, STD)])
        dls = block.dataloaders(root, bs=args["batch"], num_workers=args["workers"], device=torch.device("cpu"))
        learn = Learner(dls, network(seed), loss_func=F.cross_entropy)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, args["fastai_lr"])
        return [(time.perf_counter()-start, test_accuracy(learn.model, root))]
    return train


def pytorch(root, fraction, args):
    "The loop most tutorials show"
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder
    def train(epochs, seed):
        torch.manual_seed(seed)
        start, tested, found = time.perf_counter(), 0., []
        pictures = ImageFolder(Path(root)/"train", T.Compose([T.Grayscale(), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]))
        dl = DataLoader(pictures, args["batch"], shuffle=True, num_workers=args["workers"], persistent_workers=args["workers"] > 0)
        model = network(seed)
        opt = torch.optim.Adam(model.parameters(), args["adam_lr"])
        for _ in range(epochs):
            model.train()
            for x, y in dl:
                F.cross_entropy(model(x), y).backward()
                opt.step()
                opt.zero_grad()
            at = time.perf_counter()
            found.append((at-start-tested, test_accuracy(model, root)))
            tested += time.perf_counter()-at
            if found[-1][1] >= args["target"]: break
        return found
    return train


WAYS = dict(zip(NAMES, (visionlab, partial(visionlab, png=True), partial(visionlab, short=False), fastai, pytorch)))
ENDLESS = ("PyTorch",)          # tested on the way, so they run once

# ---- measuring

class Way:
    "Train in a process of its own"
    def __init__(self, make, root, fraction, args):
        import torch
        torch.set_num_threads(args["threads"])
        os.environ["VISIONLAB_PROGRESS"] = "off"
        self.train = make(root, fraction, args)
        network(0)                 # what is imported for it is no part of the time
    def __call__(self, epochs, seed): return self.train(epochs, seed)


def search(run, epochs, target, seed, once=False):
    "Try numbers of epochs from the fewest on; return the run that reached the target, or the best, and whether it did"
    tried = []
    for n in [max(epochs)] if once else sorted(epochs):
        got = run(n, seed)
        if got is None: return None
        tried += [dict(epochs=n if not once else i+1, seconds=s, accuracy=a) for i, (s, a) in enumerate(got)]
        if tried[-1]["accuracy"] >= target: break
    there = [o for o in tried if o["accuracy"] >= target]
    return dict(reached=bool(there), tried=tried, **(there[0] if there else max(tried, key=lambda o: o["accuracy"])))


def seconds_to(rounds):
    "Give the median seconds of rounds that all reached the target, or None"
    return statistics.median(o["seconds"] for o in rounds) if rounds and all(o["reached"] for o in rounds) else None


def judge(found):
    "Compare ours with a third of the faster of the others"
    others = [s for name in ("fastai", "PyTorch") if (s := seconds_to(found.get(name)))]
    def goal(name):
        ours = seconds_to(found.get(name))
        why = "" if ours and others else "it did not reach the target" if found.get(name) and not ours else "one of them is missing, or never reached the target"
        return Goal(f"{name}: seconds, as a share of the faster of fastai and PyTorch", 1/3, ours/min(others) if ours and others else None, at_least=False, why_not=why)
    return [goal(n) for n in NAMES[:2]]


def row(name, rounds):
    s = seconds_to(rounds)
    mid = lambda k: statistics.median(o[k] for o in rounds)
    low, high = min(o["seconds"] for o in rounds), max(o["seconds"] for o in rounds)
    return name, f"{s:.1f} s ({low:.1f}–{high:.1f})" if s else "not reached", f"{mid('epochs'):g}", f"{mid('seconds')/mid('epochs'):.1f} s", f"{mid('accuracy'):.2%}"


def arguments():
    p = parser(__doc__)
    p.set_defaults(rounds=3)
    p.add_argument("--target", type=float, default=.92, help="test accuracy")
    p.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12], help="numbers of epochs to try; the plain loop runs up to the largest")
    p.add_argument("--fraction", type=float, default=1., help="share of the training pictures")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--workers", type=int, default=min(2, usable_cpus()))
    p.add_argument("--threads", type=int, default=usable_cpus(), help="of torch")
    p.add_argument("--fastai-lr", type=float, default=1e-2, help="highest rate of fastai's cycle")
    p.add_argument("--adam-lr", type=float, default=1e-3, help="of the plain loop")
    p.add_argument("--only", nargs="+", metavar="WORD", help="ways whose name has one of these words")
    p.add_argument("--without", nargs="+", default=(), metavar="WORD", help="ways to leave out, likewise")
    return p


def run(args, folder):
    "Run all ways, one after the other in each round, and return the report"
    options = {k: getattr(args, k) for k in ("batch", "workers", "threads", "target", "fastai_lr", "adam_lr")}
    report = Report("fashion", options | dict(epochs=args.epochs, fraction=args.fraction, rounds=args.rounds))
    root, found = write_pngs(folder/"pngs", args.fraction), {}
    named = lambda n, words: any(o.lower() in n.lower() for o in words)
    chosen = {n: w for n, w in WAYS.items() if (not args.only or named(n, args.only)) and not named(n, args.without)}
    def one_round(seed):
        os.environ["VISIONLAB_CACHE"] = str(folder/f"cache{seed}")         # nothing remembered from the round before
        for name, make in chosen.items():
            if name in report.left_out: continue
            road = Road(name, partial(Way, make), str(root), args.fraction, options)
            try: got = search(road, args.epochs, args.target, seed, once=name in ENDLESS) if road.there else None
            finally: road.close()
            if got is None: report.left_out[name] = road.trouble; found.pop(name, None); print(f"  {name}: left out ({road.trouble})"); continue
            found.setdefault(name, []).append(got)
            print(f"  round {seed+1}, {name}: " + ", ".join(f"{o['epochs']} epochs {o['seconds']:.1f} s {o['accuracy']:.2%}" for o in got["tried"]), flush=True)

    try:
        for seed in range(args.rounds): one_round(seed)
    except KeyboardInterrupt: print("  ended early: what was measured counts", flush=True)
    report.results = found
    return report


def main():
    args = arguments().parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        report = run(args, Path(tmp))
    print("\n" + table([row(n, o) for n, o in report.results.items()], (f"to {args.target:.0%}", "median", "epochs", "an epoch", "test accuracy")))
    report.promise(*judge(report.results))
    return report.finish(args.out, args.strict)


if __name__ == "__main__": sys.exit(main())
