"""Compare loading 500×375 JPEGs for training: RandomResizedCrop(224), flip, colour jitter, normalise; images a second, as ratios from one run.

    python benchmarks/loader.py [--images 500] [--rounds 5] [--workers 1]

Rounds alternate between the loaders, so that a slow minute of the machine slows them all; medians are compared.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torchvision import datasets, transforms

from photos import make_photos
from visionlab.catalog import Catalog
from visionlab.loader import Images, Loader
from visionlab.transforms import preset


def torchvision_loader(root, workers):
    "ImageFolder and PIL transforms in worker processes, as most training scripts have it."
    t = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ColorJitter(.2, .2, .2), transforms.ToTensor(),
                            transforms.Normalize((.485, .456, .406), (.229, .224, .225))])
    return torch.utils.data.DataLoader(datasets.ImageFolder(root, t), 64, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def visionlab_loader(root, workers, keep=False):
    "Ours, with decoded pixels kept in memory or not."
    cat = Catalog.from_folder(root)
    return Loader(cat, preset("default"), 64, shuffle=True, workers=workers, images=Images(cat, keep=keep))


def epoch(loader):
    "Time one epoch: (seconds to the first batch, images a second, processor seconds an image)."
    start, cpu, n, first = time.perf_counter(), time.process_time(), 0, None
    for x, _ in loader:
        first = first or time.perf_counter()-start
        n += len(x)
    wall = time.perf_counter()-start
    return first, n/wall, (time.process_time()-cpu)/n


def main(images, rounds, workers):
    "Print the table."
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = make_photos(Path(folder)/"photos", images)
        loaders = {"torchvision + PIL": torchvision_loader(root, workers), "visionlab, files": visionlab_loader(root, workers), "visionlab, kept in memory": visionlab_loader(root, workers, True)}
        for dl in loaders.values(): epoch(dl)
        runs = {k: [] for k in loaders}
        for _ in range(rounds):
            for k, dl in loaders.items(): runs[k].append(epoch(dl))
    base = statistics.median(r[1] for r in runs["torchvision + PIL"])
    print(f"{images} images, {workers} workers, median of {rounds} alternated rounds, torch {torch.__version__}")
    for k, r in runs.items():
        first, rate = (statistics.median(o[i] for o in r) for i in (0, 1))
        print(f"  {k:28} {rate:7.0f} images/s  {rate/base:5.2f}×  first batch {first*1000:5.0f} ms")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--images", type=int, default=500); p.add_argument("--rounds", type=int, default=5); p.add_argument("--workers", type=int, default=1)
    main(**vars(p.parse_args()))
