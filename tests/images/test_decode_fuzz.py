"""Damaged images of six formats give pixels or an `ImageReadError`: never another exception, a crash, a hang or an empty machine.

Each format runs in a process of its own, so that a crash fails one test. `VISIONLAB_FUZZ=10000` sets how many images in all; `VISIONLAB_FUZZ_SEED` which ones.
"""
import io, os, random, subprocess, sys
from pathlib import Path
import pytest

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
TOTAL,SEED = (int(os.environ.get(k, d)) for k,d in (("VISIONLAB_FUZZ", 10_000), ("VISIONLAB_FUZZ_SEED", 0)))
SECONDS_EACH,MEMORY = 5, 3*2**30      # what one image may take: processor time, and bytes

@pytest.mark.parametrize("fmt", FORMATS)
def test_damaged_images(fmt, tmp_path):
    count,log = TOTAL//len(FORMATS), tmp_path/"log"
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH":os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, fmt, str(count), str(SEED), str(log)], env=env, capture_output=True, text=True)
    case = log.read_text() if log.exists() else "none"
    assert done.returncode == 0, f"{fmt}, seed {SEED}: ended with {done.returncode} at image {case}\n{done.stderr[-3000:]}"
    read,refused = map(int, done.stdout.split())
    assert read + refused == count and refused > count//20      # most damage is seen

# ---- the child process

def originals(fmt):
    "Write small images of one format in many flavours"
    import numpy as np
    from PIL import Image
    from skimage import data
    rgb = Image.fromarray(data.chelsea()[::5,::5].copy())
    frames = [rgb, rgb.rotate(90)]
    exif = Image.Exif()
    exif[0x112] = 6
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16)*257)
    real = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.float32)/255)
    grey,bits,indexed,cmyk = (rgb.convert(o) for o in ("L", "1", "P", "CMYK"))
    return {"JPEG":[(rgb,{}), (rgb,{"progressive":True}), (grey,{}), (cmyk,{}), (rgb,{"exif":exif}), (rgb,{"subsampling":0,"restart_marker_rows":1})],
            "PNG":[(rgb,{}), (alpha,{}), (grey,{}), (bits,{}), (indexed,{"transparency":3}), (deep,{}), (rgb,{"exif":exif}), (rgb,{"save_all":True,"append_images":frames})],
            "WEBP":[(rgb,{}), (rgb,{"lossless":True}), (alpha,{}), (rgb,{"exif":exif}), (rgb,{"save_all":True,"append_images":frames})],
            "TIFF":[(o,{"compression":c}) for o in (rgb, alpha, grey, bits, indexed, deep, real, cmyk) for c in (None, "tiff_lzw", "tiff_deflate")] +
                   [(rgb,{"compression":"jpeg"}), (bits,{"compression":"group4"}), (rgb,{"exif":exif}), (rgb,{"save_all":True,"append_images":frames})],
            "BMP":[(rgb,{}), (alpha,{}), (grey,{}), (bits,{}), (indexed,{})],
            "GIF":[(indexed,{}), (grey,{}), (indexed,{"transparency":3}), (rgb,{"save_all":True,"append_images":frames})]}[fmt]

def encode(im, fmt, kw):
    "Write an image as bytes"
    out = io.BytesIO()
    im.save(out, fmt, **kw)
    return out.getvalue()

def spot(rng, data):
    "Choose a place, half of the time in the header"
    return rng.randrange(min(len(data), 200) if rng.random() < .5 else len(data))

def flip(rng, data, other):
    "Change some bytes, or some bits"
    for _ in range(rng.choice((1, 1, 2, 8, 40))): data[spot(rng, data)] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    return data

def cut(rng, data, other):
    "Lose the end"
    return data[:spot(rng, data)]

def splice(rng, data, other):
    "Put a part of another file, or of this one, over, into or instead of a part"
    a,b,n = spot(rng, data), spot(rng, other), rng.choice((1, 4, 16, 200, 5000))
    return data[:a] + other[b:b+n] + data[a + rng.choice((0, n, rng.randrange(n+1))):]

def mutant(rng, files):
    "Damage one of `files`"
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2))): data = rng.choice((flip, flip, cut, splice))(rng, data, rng.choice(files)) or bytearray(b"\0")
    return bytes(data)

def limit_memory():
    "Let this process have `MEMORY` more than it has now"
    import resource
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else None
    if pages: resource.setrlimit(resource.RLIMIT_AS, (pages*resource.getpagesize() + MEMORY,)*2)

def check(data, mode):
    "Say whether `data` was read; any exception but `ImageReadError` ends the process"
    import numpy as np
    from visionlab.core.errors import ImageReadError
    from visionlab.images.decode import decode
    from visionlab.images.sizes import image_size
    try: size = image_size(data)
    except ImageReadError: size = None
    try: a = decode(data, mode, path="photo")
    except ImageReadError as e:
        assert e.path == "photo" and len(str(e).splitlines()) == 3 and not isinstance(e.__cause__, (NameError, AttributeError)), repr(e)
        return False
    assert a.dtype == np.uint8 and a.ndim == 3 and a.shape[2] == (3 if mode == "RGB" else 1) and a.flags.c_contiguous and a.flags.writeable
    assert size == a.shape[:2], f"the header says {size}, the pixels {a.shape[:2]}"
    return True

def check_region(rng, data):
    "Decode a box of a damaged JPEG: pixels of the right shape or nothing"
    from visionlab.images.jpeg_region import decode_region, jpeg_header
    header = jpeg_header(data)
    if header is None or header.height*header.width > 2**24: return
    top,left = rng.randrange(header.height), rng.randrange(header.width)
    box = top, left, rng.randint(1, header.height-top), rng.randint(1, header.width-left)
    part = decode_region(data, header, box, at_least=rng.choice((None, (1, 1), (16, 16))))
    assert part is None or part.shape[2] == 3 and part.shape[0] <= box[2] and part.shape[1] <= box[3]

def main(fmt, count, seed, log):
    import signal      # imports take no image's time
    import visionlab.images.multichannel
    import visionlab.images.jpeg_region
    import tifffile
    files = [encode(im, fmt, kw) for im,kw in originals(fmt)]
    for o in files: assert check(o, "RGB")
    limit_memory()
    read = 0
    with open(log, "w") as f:
        for i in range(int(count)):
            f.seek(0); f.write(f"{i}"); f.flush()      # what a crash leaves behind
            signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
            signal.alarm(60)                                # whatever waits without working
            rng = random.Random(f"{seed} {fmt} {i}")
            data = mutant(rng, files)
            read += check(data, ("RGB", "L")[i%2])
            if fmt == "JPEG": check_region(rng, data)
    signal.setitimer(signal.ITIMER_PROF, 0); signal.alarm(0)
    print(read, int(count)-read)

if __name__ == "__main__": main(*sys.argv[1:])
