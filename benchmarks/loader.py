"""How fast training images come, against the loaders people use: ratios from one run, median of alternated rounds.

    python benchmarks/loader.py [--images 2000] [--small 60000] [--rounds 5] [--workers 0 1] [--only photos small latency same] [--out benchmarks/results/loader.json]

photos   500×375 JPEGs → RandomResizedCrop(224), flip, jitter of brightness, contrast and saturation by ±40 %, normalise; batches of 64
small    a folder of 28×28 PNGs (Fashion-MNIST) → padded crop, flip, normalise; batches of 64
latency  seconds to the first batch after `dm.setup()`, and what training waits between two epochs
same     whether two epochs of batches are the same bytes for any number of workers, batch size and threads of torch, cached or not; exit code 1 if not

Ratios are of processor time for an image: this process, its threads and its worker processes together, so a busy machine changes them little and "per core" means what it says. Images a second are given
beside them by the clock. Every loader runs in a process of its own, with torch and OpenCV on one thread and the same number of workers, and is measured from its second epoch on, its workers kept where it can
keep them, files in the page cache. Peers come from requirements-peers.txt; one that is not installed is said to be left out.
"""
import hashlib
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench import Goal, Report, alternate, keep_pages, one_thread, parser, processor_seconds, ratio, roads, table, usable_cpus

MEAN, STD = (.485, .456, .406), (.229, .224, .225)
JITTER, SIZE, BATCH = .4, 224, 64
PHOTOS, SMALL = "500×375 photographs", "28×28 pictures"

# ---- what every loader is asked for: photographs

def torchvision_recipe():
    from torchvision import transforms as T
    return T.Compose([T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip(), T.ColorJitter(JITTER, JITTER, JITTER), T.ToTensor(), T.Normalize(MEAN, STD)])


def torchvision_photos(root, workers, keep_workers=True):
    "ImageFolder, Pillow and torchvision's transforms in worker processes, as most training scripts have it"
    return image_folder(root, workers, torchvision_recipe(), keep_workers)


def image_folder(root, workers, transform, keep_workers=True):
    "PyTorch's loader of a folder"
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    return DataLoader(ImageFolder(Path(root)/"train", transform), BATCH, shuffle=True, num_workers=workers, persistent_workers=keep_workers and workers > 0)


def fastai_photos(root, workers):
    "fastai's own loader: antialiased crops and flips of items, its lighting on batches"
    import torch
    from fastai.vision.all import Brightness, Contrast, FlipItem, ImageDataLoaders, Normalize, RandomResizedCrop, Saturation, setup_aug_tfms
    lighting = setup_aug_tfms([Brightness(max_lighting=JITTER/2, p=1.), Contrast(max_lighting=JITTER, p=1.), Saturation(max_lighting=JITTER, p=1.)])
    dls = ImageDataLoaders.from_folder(root, train="train", valid="val", item_tfms=[RandomResizedCrop(SIZE), FlipItem()], batch_tfms=[*lighting, Normalize.from_stats(MEAN, STD)],
                                       bs=BATCH, num_workers=workers, device=torch.device("cpu"))
    return dls.train


def autotimm_photos(root, workers, transform, backend):
    "AutoTimm's data module with our recipe in its backend's words"
    from autotimm.data.datamodule import ImageDataModule
    dm = ImageDataModule(root, image_size=SIZE, batch_size=BATCH, num_workers=workers, train_transforms=transform, transform_backend=backend, persistent_workers=workers > 0, pin_memory=False)
    dm.setup("fit")
    return dm.train_dataloader()


def autotimm_torchvision(root, workers): return autotimm_photos(root, workers, torchvision_recipe(), "torchvision")


def autotimm_albumentations(root, workers, area=False):
    "AutoTimm on OpenCV; its resize is bilinear without antialiasing, `area` makes it INTER_AREA"
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2
    crop = A.RandomResizedCrop(size=(SIZE, SIZE), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    jitter = A.ColorJitter(*[(1-JITTER, 1+JITTER)]*3, hue=(0, 0), p=1.)
    return autotimm_photos(root, workers, A.Compose([crop, A.HorizontalFlip(p=.5), jitter, A.Normalize(MEAN, STD), ToTensorV2()]), "albumentations")


def visionlab_module(root, workers, transform, size=SIZE, cache=None, batch=BATCH, **more):
    "Our data module on the same folder"
    from visionlab.data.module import ImageDataModule
    return ImageDataModule(root, image_size=size, batch_size=batch, num_workers=workers, cache=cache, train_transforms=transform, normalize=(MEAN, STD), **more).setup()


def our_recipe(antialias=True, **crop):
    "The same recipe as a pipeline of visionlab"
    from dataclasses import fields
    from visionlab.transforms.ops import ColorJitter, HorizontalFlip, RandomResizedCrop
    from visionlab.transforms.pipeline import Pipeline
    if not antialias:
        if "antialias" not in {f.name for f in fields(RandomResizedCrop)}: raise NotImplementedError("visionlab always antialiases")
        crop["antialias"] = False
    return Pipeline(RandomResizedCrop(**crop), (HorizontalFlip(), ColorJitter(JITTER, JITTER, JITTER)))


def visionlab_photos(root, workers, cache=None, uint8=False, antialias=True):
    "Ours; `uint8` is the form that feeds a GPU, which flips, jitters and normalises itself"
    dl = visionlab_module(root, workers, our_recipe(antialias), cache=cache).train_dataloader()
    return uint8_batches(dl) if uint8 else dl


def uint8_batches(dl):
    "Make a loader deliver framed bytes, as it sends them to a GPU"
    if not hasattr(dl, "as_bytes"): raise NotImplementedError("this loader cannot deliver bytes")
    dl.as_bytes = True
    return dl


# ---- small pictures

def torchvision_small(root, workers):
    from torchvision import transforms as T
    return image_folder(root, workers, T.Compose([T.RandomCrop(28, padding=2, padding_mode="reflect"), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]))


def visionlab_small(root, workers, cache=None):
    from visionlab.transforms.ops import HorizontalFlip, PadCrop, Resize
    from visionlab.transforms.pipeline import Pipeline
    return visionlab_module(root, workers, Pipeline(Resize(crop_pct=1.), (PadCrop(2), HorizontalFlip())), 28, cache).train_dataloader()


# ---- measuring

def image_of(batch):
    "Find the images in anybody's batch"
    return batch.image if hasattr(batch, "image") else batch["image"] if isinstance(batch, dict) else batch[0]


def labels_of(batch):
    "Find the labels"
    return batch.target if hasattr(batch, "target") else batch["label"] if isinstance(batch, dict) else batch[1]


class Epochs:
    "Run epochs of a loader and say what each cost"
    def __init__(self, make, root, workers, keep=False):
        one_thread()
        if keep: keep_pages()
        self.loader, self.seen = make(root, workers), processor_seconds()

    def __call__(self):
        start, n = time.perf_counter(), 0
        for batch in self.loader: n += len(image_of(batch))
        wall, now = time.perf_counter()-start, processor_seconds()
        cpu, self.seen = now-self.seen, now          # since the last epoch's end: what was prepared between the two counts
        return dict(images=n, wall=wall/n, cpu=cpu/n, shape=list(image_of(batch).shape[1:]), kind=str(image_of(batch).dtype).removeprefix("torch."))


def photo_roads():
    "Name the roads of the photographs"
    return {"torchvision + PIL": torchvision_photos, "fastai": fastai_photos, "AutoTimm, torchvision": autotimm_torchvision, "AutoTimm, albumentations": autotimm_albumentations,
            "AutoTimm, albumentations, INTER_AREA": partial(autotimm_albumentations, area=True), "visionlab": visionlab_photos, "visionlab, no antialiasing": partial(visionlab_photos, antialias=False),
            "visionlab, uint8 for a GPU": partial(visionlab_photos, uint8=True), "visionlab, cache": partial(visionlab_photos, cache="auto"),
            "visionlab, cache, uint8 for a GPU": partial(visionlab_photos, cache="auto", uint8=True)}


def small_roads():
    return {"torchvision + PIL": torchvision_small, "visionlab": visionlab_small, "visionlab, cache": partial(visionlab_small, cache="auto")}


def compare(title, makers, root, workers, args, report):
    "Run all roads with so many workers, print the table, and return the rounds of each"
    print(f"\n{title}, {workers} workers, {args.rounds} rounds")
    with roads({name: partial(Epochs, make) for name, make in makers.items()}, str(root), workers, args.keep_pages) as there:
        found = alternate(there, args.rounds)
        report.leave_out(f"{title}, {workers} workers", there)
    base = found.get("torchvision + PIL")
    print(table([row(name, got, base) for name, got in found.items()], ("", "µs/image of a core", "× torchvision + PIL", "images/s by the clock", "× by the clock", "batches of")))
    report.results.setdefault(title, {})[f"{workers} workers"] = found
    return found


def row(name, got, base):
    "Write one line of the table"
    mid = lambda k: statistics.median(o[k] for o in got)
    against = [str(ratio([o[k] for o in got], [o[k] for o in base])) if base else "" for k in ("cpu", "wall")]
    return name, f"{mid('cpu')*1e6:,.0f}", against[0], f"{1/mid('wall'):,.0f}", against[1], f"{got[-1]['kind']} {'×'.join(map(str, got[-1]['shape']))}"


def times(found, ours, theirs):
    "Say how many times less processor time ours takes, or None where one of them is missing"
    return ratio([o["cpu"] for o in found[ours]], [o["cpu"] for o in found[theirs]]).median if ours in found and theirs in found else None


PHOTO_GOALS = (("visionlab", "torchvision + PIL", 2.2), ("visionlab", "fastai", 2.8), ("visionlab", "AutoTimm, albumentations", 1.), ("visionlab", "AutoTimm, albumentations, INTER_AREA", 1.3),
               ("visionlab, no antialiasing", "AutoTimm, albumentations", 1.3), ("visionlab, uint8 for a GPU", "torchvision + PIL", 2.7), ("visionlab, cache", "torchvision + PIL", 8.))
SMALL_GOALS = (("visionlab, cache", "torchvision + PIL", 20.),)


def why_missing(left_out, *names):
    "Say why a loader was left out, given {'title: name': reason}"
    return "; ".join(f"{n}: {why}" for n in names for k, why in left_out.items() if k.endswith(f": {n}")) or "it failed"


def judge(goals, found, workers, left_out=()):
    "Compare the ratios with what was promised"
    return [Goal(f"{ours} against {theirs}, {workers} workers", wanted, got := times(found, ours, theirs), why_not="" if got else why_missing(dict(left_out), ours, theirs)) for ours, theirs, wanted in goals]


# ---- how long one waits

class Waits:
    "Measure seconds to the first batch of a new loader, and the wait between epochs of a training that takes `step` seconds a batch"
    def __init__(self, make, root, workers, step):
        self.make, self.args, self.step = make, (root, workers), step

    def __call__(self):
        loader = self.make(*self.args)
        start = time.perf_counter()
        batches = iter(loader)
        next(batches)
        return dict(first=time.perf_counter()-start, turn=self.turns(loader, batches))

    def turns(self, loader, batches):
        "Train two epochs more and return the longer of the two waits between epochs"
        waits = []
        for _ in range(2):
            while (asked := time.perf_counter()) and next(batches, None) is not None: time.sleep(self.step)
            batches = iter(loader)
            next(batches)
            waits.append(time.perf_counter()-asked)
            time.sleep(self.step)
        for _ in batches: pass
        return max(waits)


def wait_roads():
    return {"torchvision + PIL, new workers each epoch": partial(torchvision_photos, keep_workers=False), "torchvision + PIL, workers kept": torchvision_photos, "fastai": fastai_photos,
            "visionlab": visionlab_photos, "visionlab, cache": partial(visionlab_photos, cache="auto")}


def waiting(root, workers, rounds, step, report):
    "Print how long training waits"
    print(f"\nwaiting, {workers} workers, {rounds} rounds, {step*1000:.0f} ms of training a batch")
    with roads({name: partial(Waits, make) for name, make in wait_roads().items()}, str(root), workers, step) as there:
        found = alternate(there, rounds)
        report.leave_out("waiting", there)
    report.results["waiting"] = found
    mid = {name: {k: statistics.median(o[k] for o in got) for k in ("first", "turn")} for name, got in found.items()}
    print(table([(name, f"{o['first']*1000:.0f} ms", f"{o['turn']*1000:.0f} ms") for name, o in mid.items()], ("", "first batch", "between epochs")))
    for name in ("visionlab", "visionlab, cache"):
        o = mid.get(name, {})
        report.promise(*(Goal(f"{what}, {name}", wanted, o.get(k), at_least=False, unit="s", why_not="its process failed") for what, k, wanted in (("first batch", "first", .2), ("an epoch's turn", "turn", .05))))


# ---- the same for everyone

def fingerprint(loader, epochs=2):
    "Hash the bytes of all images of some epochs, in order, and of all labels: how they are cut into batches does not matter"
    hashes = hashlib.sha256(), hashlib.sha256()
    for _ in range(epochs):
        for batch in loader:
            for h, x in zip(hashes, (image_of(batch), labels_of(batch))): h.update(x.contiguous().numpy().tobytes())
    return "".join(h.hexdigest() for h in hashes)


def same_bytes(root):
    "Compare two epochs for different workers, caches, batch sizes and threads of torch; return {case: fingerprint}"
    import torch
    before, found = torch.get_num_threads(), {}
    cases = [dict(workers=w, cache=c) for c in (None, "ram") for w in (0, 1, 4)] + [dict(workers=2, batch=48), dict(workers=0, threads=1), dict(workers=2, threads=1)]
    for case in cases:
        case, threads = dict(case), case.get("threads", before)
        name = ", ".join(f"{k} {v}" for k, v in case.items())
        case.pop("threads", None)
        torch.set_num_threads(threads)
        try: found[name] = fingerprint(visionlab_module(root, case.pop("workers"), our_recipe(), **case).train_dataloader())
        finally: torch.set_num_threads(before)
    return found


def check_same(root, report):
    "Print whether all are the same, and return it"
    found = same_bytes(root)
    wanted = next(iter(found.values()))
    print("\nthe same bytes in two epochs")
    print(table([(name, f[:12], "same" if f == wanted else "DIFFERENT") for name, f in found.items()]))
    report.results["same"] = {name: f == wanted for name, f in found.items()}
    return all(f == wanted for f in found.values())


# ---- data

def photo_set(root, n):
    "Write the photographs as root/train/<class>, and one of each class as root/val/<class>"
    from photos import make_photos, mean_kib
    make_photos(root/"train", n)
    make_photos(root/"val", 10, seed=1)
    print(f"{n:,} photographs of {mean_kib(root/'train'):.0f} KiB on average")
    return root


def fashion_mnist(part):
    "Read Fashion-MNIST's images and labels, (n, 28, 28) and (n,), from Debian's package dataset-fashion-mnist or wherever visionlab finds them"
    from visionlab.catalog.catalog import Catalog
    rows = Catalog.from_builtin("FashionMNIST").subset(part)
    return rows.pixels[rows.frame.index][..., 0], rows.targets()


def small_set(root, n):
    "Write `n` pictures of Fashion-MNIST as PNGs in root/train/<class>, and a few in root/val/<class>"
    from PIL import Image
    x, y = fashion_mnist("train")
    for split, these in (("train", range(min(n, len(x)))), ("val", range(100))):
        for c in range(10): (root/split/str(c)).mkdir(parents=True, exist_ok=True)
        for i in these: Image.fromarray(x[i]).save(root/split/str(y[i])/f"{i:05}.png", compress_level=1)
    print(f"{min(n, len(x)):,} PNGs of 28×28")
    return root


# ---- main

PARTS = ("photos", "small", "latency", "same")


def arguments():
    p = parser(__doc__)
    p.add_argument("--images", type=int, default=2000, help="photographs")
    p.add_argument("--small", type=int, default=60_000, help="28×28 PNGs")
    p.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="measured one after the other; 0 loads in the training process")
    p.add_argument("--step", type=float, default=.2, help="seconds of training a batch when waits are measured")
    p.add_argument("--keep-pages", action="store_true", help="let glibc keep the memory it frees, in every process: everyone gets faster")
    p.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which parts")
    p.add_argument("--folder", type=Path, help="where the files are written; default: a temporary folder")
    return p


def run(args, folder):
    "Run what was asked for and return the report, and whether all fingerprints were equal"
    settings = dict(images=args.images, small=args.small, rounds=args.rounds, workers=args.workers, batch=BATCH, size=SIZE, jitter=JITTER, step=args.step, keep_pages=args.keep_pages)
    report, same = Report("loader", settings), True
    if "photos" in args.only:
        photos = photo_set(folder/"photos", args.images)
        for w in args.workers: report.promise(*judge(PHOTO_GOALS, compare(PHOTOS, photo_roads(), photos, w, args, report), w, report.left_out))
    if "small" in args.only:
        small = small_set(folder/"small", args.small)
        for w in args.workers: report.promise(*judge(SMALL_GOALS, compare(SMALL, small_roads(), small, w, args, report), w, report.left_out))
    if "latency" in args.only: waiting(photo_set(folder/"waiting", min(640, args.images)), min(2, usable_cpus()), args.rounds, args.step, report)
    if "same" in args.only: same = check_same(photo_set(folder/"few", 150), report)
    return report, same


def main():
    args = arguments().parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["VISIONLAB_CACHE"] = f"{tmp}/cache"
        report, same = run(args, args.folder or Path(tmp))
    return report.finish(args.out, args.strict) or int(not same)


if __name__ == "__main__": sys.exit(main())
