"Sets of distinct pictures with planted defects, for the doctor's tests and benchmark."
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from skimage import data
from sklearn.datasets import load_sample_images

NAMES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket")


def sources():
    "Load the pictures that scikit-image and scikit-learn ship, in colour"
    found = [getattr(data, o)() for o in NAMES] + list(load_sample_images().images)
    return [Image.fromarray(np.stack([x]*3, -1) if x.ndim == 2 else np.ascontiguousarray(x[..., :3])) for x in found]


def cut(image, size, x, y, angle, scale, flip):
    "Cut a turned rectangle of `size` (height, width) around (x, y) out of a picture"
    (h, w), c, s = size, np.cos(angle)*scale, np.sin(angle)*scale
    m = -1 if flip else 1
    return image.transform((w, h), Image.Transform.AFFINE, (c*m, -s, x - c*m*w/2 + s*h/2, s*m, c, y - s*m*w/2 - c*h/2), Image.Resampling.BICUBIC)


def is_new(place, seen, reach):
    "Say whether no earlier cut of a picture looks at about the same place in about the same way"
    x, y, angle, _, flip = place
    return not any(f == flip and abs(x-a) < reach and abs(y-b) < reach and min(abs(angle-t), 2*np.pi-abs(angle-t)) < .35 for a, b, t, _, f in seen)


def distinct(n, size=(150, 200), seed=0, close=.2):
    "Yield `n` pictures, none of them flat, and no two alike: cuts whose middles are `close` (share of the height) apart, or that are turned"
    rng, photos, seen = np.random.default_rng(seed), sources(), defaultdict(list)
    radius, k = np.hypot(*size)/2, 0
    while k < n:
        i = int(rng.integers(len(photos)))
        scale = min(rng.uniform(.75, 1.), (min(photos[i].size) - 6)/2/radius)
        r = radius*scale + 2
        (w, h), spot = photos[i].size, rng.uniform(size=2)
        place = (r + spot[0]*(w-2*r), r + spot[1]*(h-2*r), rng.uniform(0, 2*np.pi), scale, bool(rng.integers(2)))
        if close and not is_new(place, seen[i], close*size[0]): continue
        image = cut(photos[i], size, *place)
        if np.asarray(image.convert("L")).std() < 20: continue
        seen[i].append(place)
        k += 1
        yield image


def jpeg(image, quality=92, **kw):
    "Encode as JPEG"
    image.save(out := io.BytesIO(), "JPEG", quality=quality, **kw)
    return out.getvalue()


def cropped(image, rng):
    "Cut up to 5 % off each side length"
    w, h = image.size
    left, top, right, bottom = rng.uniform(0, .025, 4)*[w, h, w, h]
    return image.crop((round(left), round(top), w-round(right), h-round(bottom)))


def tinted(image, rng):
    "Change brightness, contrast and colour a little"
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color): image = kind(image).enhance(rng.uniform(.88, 1.12))
    return image


NEAR = { # kind: image, rng → bytes of a copy that is not quite the same
    "crop": lambda o, rng: jpeg(cropped(o, rng)),
    "encode": lambda o, rng: jpeg(o, 60),
    "resize": lambda o, rng: jpeg(o.resize((o.width//2, o.height//2), Image.Resampling.BICUBIC)),
    "colour": lambda o, rng: jpeg(tinted(o, rng))}

LOOKS = { # kind: image, rng → bytes of a picture with this trouble
    "dark": lambda o, rng: jpeg(o.point(lambda v: v*.22)),
    "bright": lambda o, rng: jpeg(o.point(lambda v: 248 + v*.027)),
    "blurry": lambda o, rng: jpeg(o.filter(ImageFilter.GaussianBlur(o.width/30))),
    "blank": lambda o, rng: jpeg(Image.new("RGB", o.size, tuple(rng.integers(90, 200, 3).tolist()))),
    "odd_aspect": lambda o, rng: jpeg(o.crop((0, 0, o.width, o.height//4)).resize((o.width*2, o.height//2))),
    "odd_size": lambda o, rng: jpeg(o.resize((o.width*9, o.height*9)), 60)}

BROKEN = { # reason: image, rng → bytes that cannot be read
    "truncated": lambda o, rng: jpeg(o)[:int(rng.uniform(.3, .9)*len(jpeg(o)))],
    "empty": lambda o, rng: b"",
    "not_an_image": lambda o, rng: b"<!doctype html><title>404</title>" + bytes(rng.integers(32, 126, 200).tolist()),
    "corrupt": lambda o, rng: spoiled(jpeg(o), rng)}


def spoiled(data, rng):
    "Overwrite a stretch in the middle of a JPEG's pixels with markers that cannot stand there"
    at = int(len(data)*rng.uniform(.5, .8))
    return data[:at] + b"\xff\xd3\xff\x05\xff\xd1" + data[at+6:]


CLASSES = ("a", "b", "c", "d")                 # the classes
PLAIN = dict(exact=lambda o, rng: None, leak=lambda o, rng: None, two_labels=lambda o, rng: None)      # copies of the bytes
TURNED = {"rotated": lambda o, rng: jpeg(o.transpose(Image.Transpose.ROTATE_90), exif=turned_note())}


def turned_note():
    "Make an EXIF block that says the picture lies on its side"
    note = Image.Exif()
    note[0x112] = 6
    return note


def plant(root, n, each, seed=0):
    """Write `n` distinct pictures as root/{train,val}/<class>/<number>.jpg and plant `each` of every trouble.

    Returns {kind: set of paths}, and under "pairs" {kind: {(copy, original)}}.
    """
    rng, root = np.random.default_rng(seed+1), Path(root)
    for split in ("train", "val"):
        for label in CLASSES: (root/split/label).mkdir(parents=True)
    kinds = {**BROKEN, **LOOKS, **TURNED}
    copies = [*NEAR, *(f"leak_{o}" for o in NEAR), *PLAIN]
    name = lambda i: f"{'val' if i % 5 == 4 else 'train'}/{CLASSES[i % 4]}/{i:05}.jpg"
    truth = {o: set() for o in kinds} | {"pairs": {o: set() for o in copies}}
    spoil = [o for o in kinds for _ in range(each)]
    copy = [o for o in copies for _ in range(each)]
    assert n >= len(spoil) + len(copy)
    for i, image in enumerate(distinct(n, seed=seed)):
        j = i - len(spoil)
        if i < len(spoil):
            (root/name(i)).write_bytes(kinds[spoil[i]](image, rng))
            truth[spoil[i]].add(name(i))
            continue
        data = jpeg(image)
        (root/name(i)).write_bytes(data)
        if j < len(copy): _plant_copy(root, name(i), image, data, copy[j], rng, truth["pairs"])
    return truth


def _plant_copy(root, original, image, data, kind, rng, pairs):
    "Write a copy of one picture: in the other split for a leak, in the next class for two labels"
    split, label, file = original.split("/")
    if "leak" in kind: split = "val" if split == "train" else "train"
    if kind == "two_labels": label = CLASSES[(CLASSES.index(label) + 1) % 4]
    copy = f"{split}/{label}/copy-{file}"
    base = kind.removeprefix("leak_")
    (root/copy).write_bytes(NEAR[base](image, rng) if base in NEAR else data)
    pairs[kind].add(frozenset((copy, original)))


def reported(report): return {frozenset(o) for o in zip(report.copies["path"], report.copies["other_path"])}


def found_copies(report, truth):
    "Count planted pairs that were found, all planted pairs, and list the false ones"
    planted, got = set().union(*truth["pairs"].values()), reported(report)
    return len(got & planted), len(planted), sorted(tuple(sorted(o)) for o in got - planted)


def recall(report, truth):
    "Say for each kind which share was found"
    by_issue = {k: set(v["path"]) for k, v in report.frame.groupby("issue")}
    got = reported(report)
    return {k: len(v & by_issue.get(k, set()))/len(v) for k, v in truth.items() if k != "pairs"} | {k: len(v & got)/len(v) for k, v in truth["pairs"].items()}
