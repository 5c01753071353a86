"Make a folder of photographic JPEGs of about 500×375 from the pictures that scikit-image and scikit-learn ship."
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

SOURCES = {**{n: lambda n=n: getattr(data, n)() for n in ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")},
           "china": lambda: load_sample_image("china.jpg"), "flower": lambda: load_sample_image("flower.jpg")}


def view(image, rng, size=(375, 500)):
    "Cut a random part with the aspect of `size`, resize it, mirror half of them: a photograph, not noise."
    h, w = image.shape[:2]
    share = rng.uniform(.55, 1)
    ch, cw = (int(min(h, w*.75)*share), int(min(w, h/.75)*share))
    top, left = rng.integers(0, h-ch+1), rng.integers(0, w-cw+1)
    part = Image.fromarray(image[top:top+ch, left:left+cw, :3]).resize(size[::-1], Image.LANCZOS)
    return part.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < .5 else part


def make_photos(root, n=2000, quality=92, seed=0):
    "Write `n` JPEGs into root/<source>/, the same each time."
    rng, root = np.random.default_rng(seed), Path(root)
    images = {name: np.asarray(f()) for name, f in SOURCES.items()}
    for i in range(n):
        name = list(images)[i % len(images)]
        (root/name).mkdir(parents=True, exist_ok=True)
        view(images[name], rng).save(root/name/f"{i:05}.jpg", quality=quality)
    return root
