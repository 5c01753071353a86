"A box of a JPEG is, pixel for pixel, that box of the whole picture, or nothing."
import io, os, shutil, subprocess, sys
import numpy as np
import pytest
from PIL import Image
from skimage import data
from visionlab.images import jpeg_region as region
from visionlab.catalog.catalog import Catalog
from visionlab.images.decode import decode
from visionlab.data.images import Images
from visionlab.data.loader import Loader
from visionlab.transforms.presets import preset
from visionlab.images.jpeg_region import can_decode_regions, decode_region, jpeg_header, JpegHeader

def jpeg(image, **kw):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "jpeg", **dict(quality=90) | kw)
    return out.getvalue()

def test_the_decoder_is_compiled_where_it_can_be():
    "What CI installs includes a compiler and the headers: the fast road must be tested there, not passed over"
    assert can_decode_regions() or not (shutil.which("gcc") and os.path.exists("/usr/include/jpeglib.h")), "reinstall with pip install -e . to compile it"

@pytest.mark.parametrize("kw", [dict(subsampling=0), dict(subsampling=1), dict(subsampling=2), dict(progressive=True), dict(subsampling=2, restart_marker_rows=1), dict(quality=20)])
@pytest.mark.parametrize("shape", [(300, 451), (17, 33), (16, 16), (1, 50), (50, 1)])
def test_a_box_equals_that_box_of_the_whole(kw, shape):
    rng = np.random.default_rng(0)
    image = np.ascontiguousarray(data.chelsea()[:shape[0],:shape[1]])
    file = jpeg(image, **kw)
    whole,header = decode(file), jpeg_header(file)
    assert (header.height, header.width, header.channels) == (*shape, 3)
    for _ in range(30):
        top,left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        h,w = rng.integers(1, shape[0]-top+1), rng.integers(1, shape[1]-left+1)
        part = decode_region(file, header, (int(top), int(left), int(h), int(w)))
        if can_decode_regions(): np.testing.assert_array_equal(part, whole[top:top+h, left:left+w])

def test_grey():
    file = jpeg(data.camera())
    header = jpeg_header(file)
    assert header.channels == 1
    if can_decode_regions():
        np.testing.assert_array_equal(decode_region(file, header, (9, 20, 100, 77), 1), decode(file, "L")[9:109, 20:97])
        np.testing.assert_array_equal(decode_region(file, header, (9, 20, 100, 77), 3), decode(file)[9:109, 20:97])

def test_what_it_leaves_to_the_plain_road():
    exif = Image.Exif(); exif[0x112] = 6
    turned = jpeg(data.chelsea(), exif=exif)
    cmyk = io.BytesIO(); Image.fromarray(data.chelsea()).convert("CMYK").save(cmyk, "jpeg")
    colour = jpeg(data.chelsea())
    for file,channels in ((turned, 3), (cmyk.getvalue(), 3), (colour, 1), (colour, 5)):
        assert decode_region(file, jpeg_header(file), (0, 0, 10, 10), channels) is None
    assert decode_region(colour, JpegHeader(9999, 9999, 3), (9000, 0, 10, 10)) is None       # the caller's header is wrong

@pytest.mark.parametrize("at_least,shape", [((64, 64), (300//4, 451//4+1)), ((150, 200), (150, 226)), ((151, 200), (300, 451)), ((1, 1), (38, 56))])
def test_shrinking_never_goes_below_what_is_wanted(at_least, shape):
    file = jpeg(data.chelsea())
    if not can_decode_regions(): return
    part = decode_region(file, jpeg_header(file), (0, 0, 300, 451), at_least=at_least)
    assert part.shape[:2] == shape and part.shape[0] >= at_least[0] and part.shape[1] >= at_least[1]
    reference = np.asarray(Image.fromarray(decode(file)).resize(shape[::-1], Image.BOX))
    assert np.abs(part.astype(int) - reference).mean() < (3 if at_least != (1, 1) else 6)      # edges are rounded to the shrunk grid

def test_boxes_at_the_far_edges_can_be_shrunk():
    image = np.ascontiguousarray(data.chelsea()[:299,:449])
    file = jpeg(image)
    for box in ((0, 0, 299, 449), (1, 1, 298, 448), (250, 400, 49, 49), (298, 448, 1, 1), (297, 0, 2, 449)):
        part = decode_region(file, jpeg_header(file), box, at_least=(1, 1))
        assert not can_decode_regions() or part is not None and part.size

def test_the_loader_gives_the_same_batches_without_it(tmp_path, monkeypatch):
    for i in range(6): (tmp_path/f"{i}.jpg").write_bytes(jpeg(np.roll(data.chelsea(), 10*i, 0)))
    cat = Catalog.from_lists(sorted(tmp_path.glob("*.jpg")), ["a", "b"]*3)
    def batches(): return [b.image.numpy().copy() for b in Loader(cat, preset("default", 96), 4, shuffle=True, seed=1)]
    fast = batches()
    monkeypatch.setattr(region, "_native", lambda: None)
    for a,b in zip(fast, batches()): assert np.abs(a-b).mean() < .06       # crops twice as large as the picture are shrunk while decoding
    monkeypatch.undo()
    kept = [b.image.numpy().copy() for b in Loader(cat, preset("default", 224), 4, shuffle=True, seed=1, images=Images(cat, keep=True))]
    plain = [b.image.numpy().copy() for b in Loader(cat, preset("default", 224), 4, shuffle=True, seed=1)]
    for a,b in zip(kept, plain): np.testing.assert_array_equal(a, b)

def test_threads_decode_at_once(tmp_path):
    "Python's lock is given up: other Python code runs while a box is decoded"
    from concurrent.futures import ThreadPoolExecutor
    file = jpeg(np.tile(data.chelsea(), (3, 3, 1)))
    header = jpeg_header(file)
    with ThreadPoolExecutor(4) as pool: parts = list(pool.map(lambda k: decode_region(file, header, (k, k, 700, 900)), range(16)))
    whole = decode(file)
    for k,p in enumerate(parts):
        if can_decode_regions(): np.testing.assert_array_equal(p, whole[k:k+700, k:k+900])
