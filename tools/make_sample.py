"""Make visionlab/sample from the Fashion-MNIST IDX files: `python tools/make_sample.py FOLDER [OUT]`.

The choice depends on nothing but the image's position in its file, so it comes out the same everywhere:
in each class the images with the lowest BLAKE2b of "fashion-sample/<split>/<position>" are taken.
"""
import hashlib, io, json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from visionlab.catalog.builtins import BUILTINS, read_idx
from visionlab.core.files import atomic_write

PER_CLASS = dict(train=600, test=100)
FILES = dict(train="train", test="t10k")
COLUMNS = 100

def chosen(labels, split, n):
    "Return the positions of `n` images of each class, in file order"
    rank = lambda i: hashlib.blake2b(f"fashion-sample/{split}/{i}".encode(), digest_size=16).digest()
    picks = (sorted(np.flatnonzero(labels == c).tolist(), key=rank)[:n] for c in np.unique(labels))
    return sorted(i for o in picks for i in o)

def mosaic(images):
    "Lay (N, H, W) images out in rows of `COLUMNS`"
    n,h,w = images.shape
    return images.reshape(n//COLUMNS, COLUMNS, h, w).swapaxes(1, 2).reshape(-1, COLUMNS*w)

def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()

def main(folder, out):
    meta = dict(source="Fashion-MNIST", licence="MIT, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
                classes=list(BUILTINS["FashionMNIST"].classes), size=[28, 28])
    for split,n in PER_CLASS.items():
        images,labels = (read_idx(folder/f"{FILES[split]}-{o}-ubyte.gz") for o in ("images-idx3", "labels-idx1"))
        rows = chosen(labels, split, n)
        atomic_write(out/f"{split}.png", png(mosaic(images[rows])))
        meta[split] = dict(labels="".join(map(str, labels[rows])), positions=rows)
    atomic_write(out/"sample.json", json.dumps(meta, separators=(",", ":")) + "\n")

if __name__ == "__main__":
    default = Path(__file__).parents[1]/"visionlab"/"sample"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)
