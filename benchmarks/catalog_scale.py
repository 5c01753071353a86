"""What 1.3 million images cost before the first one is read.

    python benchmarks/catalog_scale.py [--rows 1300000]

A catalog as ImageNet's (1,000 classes, names of 36 letters) is saved once; then fresh processes open it, make a loader, and read every file's name in a forked worker.
Prints seconds (least of three), megabytes resident above what the imports took, and how much memory the worker had to copy. Linux only: it reads /proc.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = dict(seconds=2., catalog_mb=150.)     # for 1.3 million rows


def resident(kind="Rss"):
    "Read this process's memory in MB: Rss, or Private_Dirty for what it does not share."
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"): return int(line.split()[1])/1024


def make(folder, rows):
    "Save a catalog of `rows` images that do not exist, and read it once, as after any change."
    import numpy as np
    import pandas as pd
    from visionlab.catalog.catalog import Catalog
    classes = [f"n{i:08d}" for i in range(1000)]
    of = np.arange(rows) % 1000
    paths = [f"train/{classes[c]}/{classes[c]}_{i:05d}.JPEG" for i, c in enumerate(of.tolist())]
    frame = pd.DataFrame(dict(path=paths, label=np.array(classes)[of], split="train"))
    Catalog(frame, classes, root=folder, source="synthetic").save(folder)
    at = time.perf_counter()
    Catalog.load(folder)
    return time.perf_counter() - at


def warm_up():
    "Let pandas and NumPy import what they import when first used."
    from io import BytesIO
    import pandas as pd
    from visionlab.catalog.catalog import Catalog
    from visionlab.catalog.paths import pack_table, unpack_table
    table = unpack_table(BytesIO(pack_table(pd.DataFrame(dict(path=["a", "b", "c"], label=["x", "y", "x"], split="train")))))
    Catalog(table, ["x", "y"]).targets()


def worker_growth(images, ids):
    "Read every name in a forked process and return the MB it had to copy."
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        before = resident("Private_Dirty")
        for i in ids: images.files[i]
        os.write(writing, json.dumps(resident("Private_Dirty") - before).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return json.loads(os.read(reading, 100))


def measure(folder):
    "Open the catalog and make a loader in this process."
    from visionlab.catalog.catalog import Catalog
    from visionlab.data.images import Images
    from visionlab.data.loader import Loader
    from visionlab.transforms.presets import preset
    warm_up()
    start, at = resident(), time.perf_counter()
    catalog = Catalog.load(folder)
    seconds, opened = time.perf_counter() - at, resident()
    images = Images(catalog)
    loader = Loader(catalog, preset("default", 224), batch_size=256, shuffle=True, images=images)
    loader.plan(0)
    return dict(rows=len(catalog), seconds=seconds, catalog_mb=opened-start, loader_mb=resident()-opened, worker_mb=worker_growth(images, loader.ids))


def run(rows, repeats=3):
    "Measure in fresh processes and keep the least seconds, and the most memory."
    with tempfile.TemporaryDirectory() as tmp:
        env = os.environ | dict(VISIONLAB_CACHE=f"{tmp}/cache")
        def call(*args): return subprocess.run([sys.executable, __file__, *args], env=env, check=True, capture_output=True, text=True).stdout
        first = float(call("--make", f"{tmp}/list", "--rows", str(rows)))
        found = [json.loads(call("--measure", f"{tmp}/list")) for _ in range(repeats)]
    return {k: (min if k == "seconds" else max)(o[k] for o in found) for k in found[0]} | dict(first_seconds=first)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make: return print(make(args.make, args.rows))
    if args.measure: return print(json.dumps(measure(args.measure)))
    found = run(args.rows)
    print(f"{found['rows']:,} rows: read once in {found['first_seconds']:.1f} s, opened again in {found['seconds']:.2f} s; catalog {found['catalog_mb']:.0f} MB, images and loader {found['loader_mb']:.0f} MB more; "
          f"a worker that reads every name copies {found['worker_mb']:.1f} MB")


if __name__ == "__main__": main()
