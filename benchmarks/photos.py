"""A folder of photographic JPEGs of 500×375, made of the pictures that scikit-image and scikit-learn ship.

    python benchmarks/photos.py FOLDER [--images 2000]

Parts of the pictures are cut out and scaled down, never up, so that they are as sharp as a camera's; at quality 96, 4:2:0, a file has about 80 KiB, a little less than one of ImageNet (110).
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (375, 500)
SKIMAGE = ("astronaut", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
SKLEARN = ("china", "flower")


def sources():
    "Load the pictures, by name"
    from skimage import data
    from sklearn.datasets import load_sample_image
    found = {n: np.asarray(getattr(data, n)()) for n in SKIMAGE} | {n: load_sample_image(f"{n}.jpg") for n in SKLEARN}
    left, right, _ = data.stereo_motorcycle()
    return found | dict(motorcycle=left, motorcycle_right=right)


def view(image, rng, size=SIZE):
    "Cut a random part of at least `size` with its aspect, scale it down to that, and mirror half of them"
    h, w = image.shape[:2]
    most = min(h/size[0], w/size[1])
    if most < 1: raise ValueError(f"A picture of {w}×{h} would have to be enlarged")
    scale = rng.uniform(1, most)
    ch, cw = int(size[0]*scale), int(size[1]*scale)
    top, left = rng.integers(0, h-ch+1), rng.integers(0, w-cw+1)
    part = Image.fromarray(image[top:top+ch, left:left+cw, :3]).resize(size[::-1], Image.LANCZOS)
    return part.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < .5 else part


def make_photos(root, n=2000, quality=96, seed=0):
    "Write `n` JPEGs into root/<source>/, the same each time, and return root"
    rng, root, images = np.random.default_rng(seed), Path(root), sources()
    for name in images: (root/name).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        name = list(images)[i % len(images)]
        view(images[name], rng).save(root/name/f"{i:05}.jpg", quality=quality, subsampling="4:2:0")
    return root


def mean_kib(root):
    "Average the size of the files under a folder, in KiB"
    return float(np.mean([f.stat().st_size for f in Path(root).rglob("*.jpg")]))/1024


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder"); p.add_argument("--images", type=int, default=2000)
    args = p.parse_args()
    print(f"{args.images} photographs, {mean_kib(make_photos(args.folder, args.images)):.0f} KiB on average")
