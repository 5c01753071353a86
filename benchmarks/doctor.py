"""The data doctor on 10,000 photographs with 25 planted troubles of each kind: what it finds, what it invents, how fast it is.

    python benchmarks/doctor.py [--images 10000] [--planted 25] [--workers 2] [--out benchmarks/results/doctor.json]

Two numbers of speed: all of `check` on the planted set, and the pass over files alone on photographs of 500 × 375, with threads against processes.
`results/doctor.json` is what one run wrote with --out; tests/test_normal_road.py asserts that it kept the promises, and the tests of the doctor run the same code on 600 images.
"""
import argparse, json, multiprocessing, platform, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"tests"))
import numpy as np
import PIL
import torch
from defects import distinct, found_copies, jpeg, plant, recall
from visionlab import __version__
from visionlab.catalog.catalog import Catalog
from visionlab.core.machine import usable_cpus
from visionlab.catalog.looks import look_at_rows
from visionlab.catalog.doctor import check


def machine():
    "Describe where this ran, without names"
    versions = dict(visionlab=__version__, python=platform.python_version(), torch=torch.__version__, numpy=np.__version__, pillow=PIL.__version__)
    return dict(system=platform.system(), architecture=platform.machine(), processors=usable_cpus(), versions=versions)


def planted_set(args, root):
    "Write the set, check it, print what was found, and return it"
    start = time.perf_counter()
    truth = plant(root, args.images, args.planted)
    print(f"wrote {args.images:,} images and {args.planted} of each trouble in {time.perf_counter()-start:.0f} s")
    start = time.perf_counter()
    report = check(Catalog.from_folder(root), workers=args.workers)
    seconds = time.perf_counter()-start
    shares = recall(report, truth)
    for kind, share in shares.items(): print(f"  {kind:<14} recall {share:.3f}")
    hit, planted, false = found_copies(report, truth)
    print(f"copies: {hit} of {planted} planted pairs found ({hit/planted:.3f}), {len(false)} false among {hit+len(false)} reported ({len(false)/max(hit+len(false), 1):.3f})")
    for a, b in false[:10]: print(f"  false: {a} | {b}")
    extra = report.frame[report.frame["row"].notna()].groupby("issue").size()
    print("all issues with an image:", extra.to_dict())
    print(f"check: {len(report.catalog):,} images in {seconds:.1f} s, {len(report.catalog)/seconds:,.0f} images/s with {args.workers} workers")
    return dict(images=args.images, planted_of_each=args.planted, recall={k: round(v, 4) for k, v in shares.items()}, copies=dict(planted=planted, found=hit, false=len(false)),
                check=dict(seconds=round(seconds, 1), images_per_second=round(len(report.catalog)/seconds)))


def one_part(paths):
    "Look at some of the photographs in this process"
    return len(look_at_rows(Catalog.from_lists(paths), 1, False)[0])


def speed(args, root, n=1200):
    "Time the pass over photographs of 500 × 375, three times, and return images/s: (median, lowest, highest)"
    root.mkdir()
    for i, image in enumerate(distinct(n//4, (375, 500), seed=9, close=0.)):
        for k in range(4): (root/f"{i:04}-{k}.jpg").write_bytes(jpeg(image, 86+2*k))
    paths = sorted(root.iterdir())
    cat, rates = Catalog.from_lists(paths), {}
    ways = {"1 thread": lambda: look_at_rows(cat, 1, False), f"{args.workers} threads": lambda: look_at_rows(cat, args.workers, False)}
    for _ in range(3):
        for name, work in ways.items(): rates.setdefault(name, []).append(rate(work, n))
        with multiprocessing.get_context("fork").Pool(args.workers) as pool:
            rates.setdefault(f"{args.workers} processes", []).append(rate(lambda: pool.map(one_part, [paths[i::args.workers] for i in range(args.workers)]), n))
    for name, r in rates.items(): print(f"500 × 375, {name}: {np.median(r):,.0f} images/s (from {min(r):,.0f} to {max(r):,.0f})")
    return {name: [round(o) for o in (np.median(r), min(r), max(r))] for name, r in rates.items()}


def rate(work, n):
    "Return how many images a second `work` does"
    start = time.perf_counter()
    work()
    return n/(time.perf_counter()-start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--planted", type=int, default=25)
    parser.add_argument("--workers", type=int, default=usable_cpus())
    parser.add_argument("--out", type=Path, help="also write what was found as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        rates = speed(args, Path(tmp)/"photos")
        found = planted_set(args, Path(tmp)/"planted")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(machine=machine(), **found, photographs_500x375_per_second=rates), indent=1) + "\n")
