"""Augmenting whole batches, each image with numbers of its own: what an image costs on one core beside torchvision v2, and how many a GPU does in a second.

    python benchmarks/device_ops.py [--rounds 7] [--batch 64] [--size 224] [--out benchmarks/results/device_ops.json]

On the processor each operation runs on all images of a batch (p = 1), bytes to bytes; torchvision runs its own transform of the same law on each image, uint8 tensors too. `default` and `strong` are whole presets without
their crop: operations and normalisation, from bytes to normalised floats. Where there is a GPU the presets run there as well, on batches that are there already, timed by events over many batches after a warm-up.
"""
import statistics
import sys
import time

from bench import Goal, Report, alternate, one_thread, parser, ratio, roads, table

GPU_GOAL = 20_000


def pictures(n, size):
    "Cut pieces of photographs (n, 3, size, size), uint8"
    import numpy as np
    import torch
    from skimage import data
    from visionlab.transforms.ops import resize
    photos = [data.chelsea(), data.coffee(), data.astronaut()]
    cut = lambda i, p: resize(np.ascontiguousarray(p[i % 40:i % 40+240, 2*(i % 40):2*(i % 40)+260]), (size, size))
    return torch.from_numpy(np.stack([cut(i, photos[i % 3]) for i in range(n)])).permute(0, 3, 1, 2)


def operations():
    "List (name, our operation, torchvision's transform or None)"
    import torch
    from torchvision.transforms import v2
    from visionlab.transforms import ops as t
    wide = dict(degrees=(-15., 15.), translate=(.1, .1), scale=(.8, 1.2))
    how = v2.InterpolationMode.BILINEAR
    return [("HorizontalFlip", t.HorizontalFlip(1.), v2.RandomHorizontalFlip(1.)), ("Affine", t.Affine(**wide), v2.RandomAffine(*wide.values(), interpolation=how)),
            ("Perspective", t.Perspective(.5, p=1.), v2.RandomPerspective(.5, 1.)), ("ColorJitter .4", t.ColorJitter(.4, .4, .4), v2.ColorJitter(.4, .4, .4)),
            ("ColorJitter .4, hue .1", t.ColorJitter(.4, .4, .4, .1), v2.ColorJitter(.4, .4, .4, .1)), ("the same, fast=True", t.ColorJitter(.4, .4, .4, .1, fast=True), v2.ColorJitter(.4, .4, .4, .1)),
            ("Grayscale", t.Grayscale(1.), v2.Grayscale(3)), ("GaussianBlur 7", t.GaussianBlur((7, 7), (.1, 2.), p=1.), v2.GaussianBlur(7, (.1, 2.))),
            ("GaussNoise", t.GaussNoise(p=1.), v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(0., .035)])), ("BrightnessContrast", t.BrightnessContrast(p=1.), v2.ColorJitter(.2, .2)),
            ("CoarseDropout", t.CoarseDropout(p=1.), None), ("MotionBlur", t.MotionBlur(p=1.), None)]


CHAIN = "Affine, then Perspective"


def theirs_of(preset_, size):
    "Write a preset without its crop in torchvision's words; what it does not have is ours, on one image"
    from visionlab.transforms.interop import to_torchvision
    from visionlab.transforms.ops import Resize
    return to_torchvision(preset_.edit(frame=Resize("squash"), size=size))


class Ours:
    "Processor seconds an image of our operations"
    def __init__(self, batch, size):
        one_thread()
        import numpy as np
        from visionlab.transforms.augment import BatchAugment
        from visionlab.transforms.presets import preset
        from visionlab.transforms.ops import Affine, Perspective, Resize
        from visionlab.transforms.pipeline import Pipeline
        self.x, self.ids, self.epoch = pictures(batch, size), np.arange(batch), 0
        make = lambda *ops: BatchAugment(Pipeline(Resize(), ops, size))
        self.runs = {name: make(op).augment for name, op, _ in operations()}
        self.runs[CHAIN] = make(Affine((-15., 15.)), Perspective(.5, p=1.)).augment
        self.runs |= {name: BatchAugment(preset(name, size)).device for name in ("default", "strong")}

    def __call__(self):
        self.epoch += 1
        return {name: self.seconds(run) for name, run in self.runs.items()}

    def seconds(self, run):
        start = time.process_time()
        for i in range(0, len(self.x), 8): run(self.x[i:i+8], self.ids[i:i+8], self.epoch)          # as the loader's threads do
        return (time.process_time()-start)/len(self.x)


class Torchvision:
    "The same of torchvision's transforms, image by image"
    def __init__(self, batch, size):
        one_thread()
        from torchvision.transforms import v2
        from visionlab.transforms.presets import preset
        self.x = [o.contiguous() for o in pictures(batch, size)]
        self.runs = {name: t for name, _, t in operations() if t is not None}
        self.runs[CHAIN] = v2.Compose([v2.RandomAffine((-15., 15.), interpolation=v2.InterpolationMode.BILINEAR), v2.RandomPerspective(.5, 1.)])
        self.runs |= {name: theirs_of(preset(name, size), size) for name in ("default", "strong")}

    def __call__(self): return {name: self.seconds(run) for name, run in self.runs.items()}

    def seconds(self, run):
        start = time.process_time()
        for x in self.x: run(x)
        return (time.process_time()-start)/len(self.x)


def on_gpu(name, batch, size, rounds, batches=40):
    "Measure images a second of a preset on a GPU, once a round; a step that waits for the GPU is an error"
    import numpy as np
    import torch
    from visionlab.transforms.augment import BatchAugment
    from visionlab.transforms.presets import preset
    run, x, found = BatchAugment(preset(name, size)), pictures(batch, size).cuda(), []
    for k in range(rounds+1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if k: torch.cuda.set_sync_debug_mode("error")          # after the warm-up, which sets up constants
        try:
            start.record()
            for i in range(batches): run.device(x, np.arange(i*batch, (i+1)*batch), k)
            end.record()
        finally: torch.cuda.set_sync_debug_mode("default")
        end.synchronize()
        if k: found.append(batch*batches/(start.elapsed_time(end)/1e3))
    return found


def gpu_part(args, report):
    "Run the presets on a GPU where there is one, and judge"
    import torch
    if not torch.cuda.is_available():
        return report.promise(*[Goal(f"{n} on a GPU", GPU_GOAL, unit="images/s", why_not="no CUDA device here") for n in ("default", "strong")])
    for name in ("default", "strong"):
        found = on_gpu(name, args.gpu_batch, args.size, args.rounds)
        report.results[f"{name} on {torch.cuda.get_device_name()}"] = found
        report.promise(Goal(f"{name} on {torch.cuda.get_device_name()}", GPU_GOAL, statistics.median(found), unit="images/s"))


def row(name, ours, theirs):
    mine = [o[name] for o in ours]
    versus = str(ratio(mine, [o[name] for o in theirs])) if theirs and name in theirs[0] else "–"
    return name, f"{statistics.median(mine)*1e6:.0f}", versus


def main():
    p = parser(__doc__)
    p.add_argument("--batch", type=int, default=64, help="images a round on the processor")
    p.add_argument("--gpu-batch", type=int, default=256)
    p.add_argument("--size", type=int, default=224)
    args = p.parse_args()
    report = Report("device_ops", dict(rounds=args.rounds, batch=args.batch, gpu_batch=args.gpu_batch, size=args.size, threads=1))
    with roads(dict(visionlab=Ours, torchvision=Torchvision), args.batch, args.size) as there:
        found = alternate(there, args.rounds)
        report.leave_out("processor", there)
    report.results |= found
    ours, theirs = found.get("visionlab"), found.get("torchvision")
    if ours: print(table([row(n, ours, theirs) for n in ours[0]], ("an image on one core", "µs", "× faster than torchvision v2")))
    gpu_part(args, report)
    return report.finish(args.out, args.strict)


if __name__ == "__main__": sys.exit(main())
