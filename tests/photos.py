"Folders of photographs made from the pictures that scikit-image and scikit-learn ship."
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

SOURCES = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "immunohistochemistry", "retina", "rocket")


def photo(name):
    "Load one picture as RGB."
    x = getattr(data, name)()
    return np.stack([x]*3, -1) if x.ndim == 2 else x[..., :3]


def crops(image, n, size, half, rng):
    "Cut `n` squares out of the left (0) or right (1) half of a picture."
    h, w = image.shape[:2]
    low, high = half*(w//2), (half+1)*(w//2) - size
    for _ in range(n):
        top, left = rng.integers(0, h-size), rng.integers(low, max(high, low+1))
        yield image[top:top+size, left:left+size]


def photo_folder(root, n_train=24, n_val=12, size=72, classes=SOURCES, seed=0):
    "Write root/{train,val}/<class>/<n>.jpg; training squares come from the left half of each picture, validation from the right."
    rng = np.random.default_rng(seed)
    for name in classes:
        image = photo(name)
        for half, (split, n) in enumerate((("train", n_train), ("val", n_val))):
            folder = Path(root)/split/name
            folder.mkdir(parents=True)
            for i, x in enumerate(crops(image, n, size, half, rng)): Image.fromarray(x).save(folder/f"{i:03}.jpg", quality=92)
    return Path(root)


def small_folder(root, n=6):
    "Write root/{cat,coffee,rocket}/<n>.jpg, each picture cut a little further in than the one before."
    for name, source in dict(cat="chelsea", coffee="coffee", rocket="rocket").items():
        (Path(root)/name).mkdir()
        for i in range(n): Image.fromarray(photo(source)[8*i:, 5*i:]).save(Path(root)/name/f"{i}.jpg", quality=90)
    return Path(root)
