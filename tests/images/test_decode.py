"Bad files, odd modes and every road to the same pixels: what the page 01_items should not hold."
import io, os, pickle, signal, socket, stat, struct, time, warnings, zlib
from contextlib import contextmanager
import numpy as np, pytest, torch
from PIL import Image, features
from skimage import data as photos
from visionlab.core.errors import ConfigError, DataError, ImageReadError, UnknownOptionError
from visionlab.images.reasons import REASONS
from visionlab.images.decode import decode, IMAGE_EXTENSIONS, load_image, read_bytes
from visionlab.images.sizes import image_size
from visionlab.images.batch import ALIASES, ImageBatch, ImageItem

CAT = photos.chelsea()[::6,::6].copy()      # (50, 76, 3)
RAMP16 = np.linspace(0, 65535, 64*256).reshape(64, 256).astype(np.uint16)

def encode(image, fmt, orientation=None, **kw):
    "Write a Pillow image or an array as bytes"
    if fmt == "PPM" and getattr(image, "dtype", None) == np.uint16: return b"P5 %d %d 65535\n" % image.shape[::-1] + image.astype(">u2").tobytes()
    im,out = image if isinstance(image, Image.Image) else Image.fromarray(image), io.BytesIO()
    if orientation:
        kw["exif"] = Image.Exif()
        kw["exif"][0x112] = orientation
    im.save(out, fmt, **kw)
    return out.getvalue()

def refuse(source, reason, **kw):
    "Check that `source` is refused for `reason`, in three lines"
    with pytest.raises(ImageReadError) as e: load_image(source, **kw)
    assert e.value.reason == reason, e.value
    lines = str(e.value).splitlines()
    assert len(lines) == 3 and lines[1].startswith("  where: ") and lines[2].startswith("  fix: "), e.value
    return e.value

@contextmanager
def within(seconds):
    "Fail instead of hanging"
    def late(*_): pytest.fail(f"took more than {seconds} s")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

# ---- formats

@pytest.mark.parametrize("fmt,kw", [("PNG",{}), ("BMP",{}), ("PPM",{}), ("TIFF",{}), ("TIFF",{"compression":"tiff_lzw"}), ("TIFF",{"compression":"tiff_deflate"}),
                                    ("WEBP",{"lossless":True})])
def test_lossless_formats_keep_every_pixel(fmt, kw):
    a = load_image(encode(CAT, fmt, **kw))
    assert a.dtype == np.uint8 and a.flags.c_contiguous and a.flags.writeable
    np.testing.assert_array_equal(a, CAT)

@pytest.mark.parametrize("kw", [{"quality":90}, {"quality":30,"progressive":True}, {"quality":95,"subsampling":0}, {"keep_rgb":True}, {"restart_marker_rows":1}])
def test_fast_jpeg_road_gives_pillows_pixels(kw):
    data = encode(CAT, "JPEG", **kw)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    np.testing.assert_array_equal(decode(data, "L")[...,0], np.asarray(Image.open(io.BytesIO(data)).convert("L")))

def test_extensions():
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".dcm", ".npy"} == IMAGE_EXTENSIONS

def test_content_decides_not_the_name(tmp_path):
    (tmp_path/"really_png.jpg").write_bytes(encode(CAT, "PNG"))
    np.testing.assert_array_equal(load_image(tmp_path/"really_png.jpg"), CAT)

def test_first_frame_only():
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "lime", "blue")]
    for fmt,kw in [("GIF",{}), ("WEBP",{"lossless":True}), ("PNG",{}), ("TIFF",{})]:
        data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], **kw)
        assert (load_image(data) == (255, 0, 0)).all(), fmt

def test_mpo_gives_its_first_picture():
    data = encode(CAT, "MPO", save_all=True, append_images=[Image.new("RGB", (76, 50))])
    assert np.abs(load_image(data).astype(int) - CAT).mean() < 8

# ---- modes

def half_black(mode):
    "Make a black image, half transparent"
    im = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    return im if mode == "RGBA" else im.convert(mode)

@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_half_transparent_black_over_white_is_grey(mode):
    a = load_image(half_black(mode))
    assert a.shape == (4, 4, 3) and np.abs(a.astype(int) - 127).max() <= 1

@pytest.mark.parametrize("mode,fmt", [("RGBA","PNG"), ("LA","PNG"), ("RGBA","TIFF"), ("RGBA","WEBP")])
def test_alpha_from_files(mode, fmt):
    data = encode(half_black(mode), fmt, **({"lossless":True} if fmt == "WEBP" else {}))
    assert np.abs(load_image(data).astype(int) - 127).max() <= 1
    assert np.abs(load_image(data, background=(255, 0, 0)).astype(int) - (127, 0, 0)).max() <= 1
    assert load_image(data, "L").shape == (4, 4, 1)

def test_hidden_colour_stays_hidden():
    hidden = np.zeros((4, 4, 4), np.uint8)
    hidden[...,0] = 255
    assert (load_image(encode(hidden, "PNG")) == 255).all()

def palette(transparent=None):
    "Make a palette image of red and lime pixels; `transparent` is an index, or the alpha of each"
    im = Image.new("P", (2, 1))
    im.putpalette([255, 0, 0, 0, 255, 0])
    for i in (0, 1): im.putpixel((i, 0), i)
    if transparent is not None: im.info["transparency"] = transparent
    return im

@pytest.mark.parametrize("fmt", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(fmt): assert load_image(encode(palette(), fmt)).tolist() == [[[255, 0, 0], [0, 255, 0]]]

@pytest.mark.parametrize("fmt", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(fmt):
    assert load_image(encode(palette(), fmt, transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]

def test_palette_with_alpha():
    assert load_image(encode(palette(), "PNG", transparency=b"\x00\xff")).tolist() == [[[255, 255, 255], [0, 255, 0]]]
    assert load_image(palette(0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]
    pa = palette().convert("PA")
    assert load_image(pa).tolist() == [[[255, 0, 0], [0, 255, 0]]]

@pytest.mark.parametrize("mode,transparent", [("L", 7), ("RGB", (7, 7, 7))])
def test_png_with_one_transparent_colour(mode, transparent):
    im = Image.new(mode, (2, 2), transparent)
    assert (load_image(encode(im, "PNG", transparency=transparent)) == 255).all()

@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "TIFF", "BMP", "PPM"])
def test_grey(fmt):
    grey = np.asarray(Image.fromarray(CAT).convert("L"))
    data = encode(grey, fmt, **({"quality":100} if fmt == "JPEG" else {}))
    rgb,one = load_image(data), load_image(data, "L")
    assert rgb.shape == (50, 76, 3) and one.shape == (50, 76, 1)
    assert (rgb == one).all() and np.abs(one[...,0].astype(int) - grey).max() <= 2

@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit(fmt):
    bits = np.indices((8, 8)).sum(0) % 2 == 0
    np.testing.assert_array_equal(load_image(encode(Image.fromarray(bits), fmt), "L")[...,0], bits*255)

@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_their_range(fmt):
    a = load_image(encode(RAMP16, fmt))
    assert a.min() == 0 and a.max() == 255 and abs(a.mean() - 127.5) < .5
    np.testing.assert_array_equal(load_image(encode(RAMP16, fmt), "L"), a[...,:1])

@pytest.mark.parametrize("fmt", ["PNG", "PPM"])
def test_dark_sixteen_bits_stay_dark(fmt):
    assert load_image(encode(np.full((4, 4), 200, np.uint16), fmt)).max() == 1

@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_byte_order_of_sixteen_bits(mode):
    order = ">" if mode.endswith("B") else "<" if mode.endswith(("L", "16")) else "="
    im = Image.frombytes(mode, RAMP16.shape[::-1], RAMP16.astype(f"{order}u2").tobytes())
    a = load_image(im, "L")
    assert abs(a.mean() - 127.5) < .5 and (np.diff(a.ravel().astype(int)) >= 0).all()

def test_big_endian_tiff():
    a = load_image(tiff16(RAMP16, ">"), "L")
    assert abs(a.mean() - 127.5) < .5 and (np.diff(a.ravel().astype(int)) >= 0).all()

def tiff16(a, order):
    "Write a grey 16-bit TIFF by hand in either byte order"
    h,w = a.shape
    tags = [(256,3,w), (257,3,h), (258,3,16), (259,3,1), (262,3,1), (273,4,8), (277,3,1), (278,3,h), (279,4,a.nbytes)]
    pixels = a.astype(f"{order}u2").tobytes()
    ifd = struct.pack(order+"H", len(tags)) + b"".join(struct.pack(order+"HHI", t, k, 1) + struct.pack(order+("HH" if k == 3 else "I"), *((v, 0) if k == 3 else (v,)))
                                                       for t,k,v in tags) + bytes(4)
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order+"I", 8+len(pixels)) + pixels + ifd

def test_png_of_three_sixteen_bit_channels():
    rows = b"".join(b"\0" + np.full((4, 3), v, ">u2").tobytes() for v in (0, 0x8000, 0xFFFF))
    a = load_image(png(4, 3, 16, 2, rows))
    assert a.shape == (3, 4, 3) and a[:,0,0].tolist() == [0, 128, 255]

def png(w, h, bits, colour, rows, *more):
    "Write a PNG by hand; `more` are (name, content) chunks after the pixels"
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name+body))
    body = [(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), *more, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*o) for o in body)

@pytest.mark.parametrize("values,value_range,expected", [([0, 257, 65535], (0, 65535), [0, 1, 255]), ([0, 100, 255], None, [0, 100, 255]), ([-5, 0, 5], (-5, 5), [0, 128, 255])])
def test_int32(values, value_range, expected):
    im = Image.fromarray(np.array([values], np.int32))
    assert im.mode == "I"
    for o in (im, encode(im, "TIFF")): assert load_image(o, "L", value_range=value_range).ravel().tolist() == expected

@pytest.mark.parametrize("values,value_range,expected", [([0, .5, 1], None, [0, 128, 255]), ([0, 100.4, 255], (0, 255), [0, 100, 255]), ([np.nan, .9, np.inf], (0, 1.8), [0, 128, 255])])
def test_float(values, value_range, expected):
    im = Image.fromarray(np.array([values], np.float32))
    for o in (im, encode(im, "TIFF")): assert load_image(o, "L", value_range=value_range).ravel().tolist() == expected

@pytest.mark.parametrize("a", [np.array([[-1, 5]], np.int32), np.array([[0, 70000]], np.int32), np.array([[0, 256]], np.int32), np.array([[0, 1.5]], np.float32), np.array([[-.1, .5]], np.float32), np.array([[0, 300]], np.float32),
                               np.array([[0, np.nan]], np.float32), np.array([[0, np.inf]], np.float32)])
def test_values_without_a_range_are_refused(a):
    refuse(encode(Image.fromarray(a), "TIFF"), "bad_range")
    refuse(a, "bad_range")

@pytest.mark.parametrize("mode,tolerance", [("CMYK", 1), ("YCbCr", 3), ("HSV", 8), ("RGBX", 0)])
def test_other_colour_spaces(mode, tolerance):
    a = load_image(Image.fromarray(CAT).convert(mode))
    assert a.shape == CAT.shape and np.abs(a.astype(int) - CAT).max() <= tolerance
    assert load_image(Image.fromarray(CAT).convert(mode), "L").shape == (50, 76, 1)

@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without littlecms")
def test_lab():
    from PIL import ImageCms
    lab = ImageCms.profileToProfile(Image.fromarray(CAT), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    for o in (lab, encode(lab, "TIFF")): assert np.abs(load_image(o).astype(int) - CAT).mean() < 3

@pytest.mark.parametrize("fmt", ["JPEG", "TIFF"])
def test_cmyk_files(fmt):
    a = load_image(encode(Image.fromarray(CAT).convert("CMYK"), fmt, **({"quality":95} if fmt == "JPEG" else {})))
    assert np.abs(a.astype(int) - CAT).mean() < 4

def test_wrong_options_blame_no_file():
    with pytest.raises(UnknownOptionError): load_image(CAT, mode="RBG")
    for background in ["white", (1, 2), (0, 0, 300), (0., 0., 0.)]:
        with pytest.raises(ConfigError): decode(encode(CAT, "PNG"), background=background)

# ---- orientation

def stored_as(upright, orientation):
    "Return the pixels a camera stores with this orientation, by Pillow's own transposes"
    t = Image.Transpose
    undo = {1:None, 2:t.FLIP_LEFT_RIGHT, 3:t.ROTATE_180, 4:t.FLIP_TOP_BOTTOM, 5:t.TRANSPOSE, 6:t.ROTATE_90, 7:t.TRANSVERSE, 8:t.ROTATE_270}[orientation]
    im = Image.fromarray(upright)
    return im if undo is None else im.transpose(undo)

BLOCKS = np.kron(np.array([[0, 60, 120], [180, 220, 255]], np.uint8), np.ones((16, 16), np.uint8))[...,None].repeat(3, -1)      # (32, 48, 3), all corners differ

@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt,kw", [("JPEG",{"quality":100}), ("PNG",{}), ("TIFF",{}), ("WEBP",{"lossless":True})])
def test_exif_orientation(fmt, kw, orientation):
    data = encode(stored_as(BLOCKS, orientation), fmt, orientation, **kw)
    a = load_image(data)
    assert a.shape == BLOCKS.shape and a.flags.c_contiguous and np.abs(a.astype(int) - BLOCKS).max() <= 2
    assert image_size(data) == (32, 48)
    assert np.abs(load_image(data, "L").astype(int) - BLOCKS[...,:1]).max() <= 2

@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpegs_through_pillow(orientation):
    data = encode(stored_as(BLOCKS, orientation).convert("CMYK"), "JPEG", orientation, quality=100)
    assert np.abs(load_image(data).astype(int) - BLOCKS).max() <= 3
    with Image.open(io.BytesIO(encode(stored_as(BLOCKS, orientation), "JPEG", orientation, quality=100))) as im:
        assert image_size(im) == (32, 48)
        assert np.abs(load_image(im).astype(int) - BLOCKS).max() <= 2

def exif_jpeg(exif):
    "Put any bytes in the place of a JPEG's EXIF block"
    data = encode(CAT, "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif)+8) + b"Exif\0\0" + exif + data[2:]

@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_orientation_of_every_type_and_byte_order(order, kind):
    value = struct.pack(order + {1:"B", 3:"H", 4:"I"}[kind], 6).ljust(4, b"\0")
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(order+"HIH", 42, 8, 2) + struct.pack(order+"HHI", 0x10f, 2, 1) + bytes(4) + struct.pack(order+"HHI", 0x112, kind, 1) + value
    assert load_image(exif_jpeg(tiff)).shape == (76, 50, 3)

@pytest.mark.parametrize("exif", [b"", b"II", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0\x06\0\0\0",
                                  b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x06\0\0\0"])
def test_damaged_exif_does_not_lose_the_picture(exif):
    assert load_image(exif_jpeg(exif)).shape == CAT.shape
    assert image_size(exif_jpeg(exif)) == (50, 76)

def test_size_agrees_with_pixels_when_the_header_is_long():
    icc = os.urandom(150_000)
    data = encode(CAT, "JPEG", 6, icc_profile=icc)
    assert image_size(data) == load_image(data).shape[:2] == (76, 50)

# ---- too large

def test_bomb_is_refused_from_its_header():
    data = encode(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 100_000
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        err = refuse(data, "too_large")
    assert time.process_time() - start < .5 and "20,000 × 20,000" in err.what
    assert image_size(data) == (20_000, 20_000)

def test_middle_sized_bomb_gives_no_warning():
    data = encode(Image.new("1", (10_000, 10_000)), "PNG")      # over Pillow's own warning limit, under its error limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse(data, "too_large")
        assert load_image(data, "L", max_pixels=10**8).shape == (10_000, 10_000, 1)

def lying_jpeg(w, h):
    "Write a JPEG whose header claims another size"
    data = bytearray(encode(CAT, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at+5:at+9] = struct.pack(">HH", h, w)
    return bytes(data)

def test_lying_jpeg_header():
    assert image_size(lying_jpeg(65500, 65500)) == (65500, 65500)
    start = time.process_time()
    refuse(lying_jpeg(65500, 65500), "too_large")
    assert time.process_time() - start < .2
    refuse(lying_jpeg(760, 500), "corrupt")

def test_limit_is_adjustable():
    for fmt in ("JPEG", "PNG"):
        refuse(encode(CAT, fmt), "too_large", max_pixels=50*76-1)
        for limit in (50*76, None): assert load_image(encode(CAT, fmt), max_pixels=limit).shape == CAT.shape

def test_large_file_is_not_read(tmp_path):
    with open(tmp_path/"huge.png", "wb") as f: f.truncate(2**31)      # sparse
    assert "2,147,483,648 bytes" in refuse(tmp_path/"huge.png", "too_large").what

def test_text_bomb_in_a_png():
    data = png(4, 4, 8, 0, (b"\0"*5)*4)
    bomb = b"note\0\0" + zlib.compress(bytes(128*2**20), 9)
    body = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    refuse(data[:33] + body + data[33:], "too_large")

def test_settings_of_pillow_are_untouched():
    from PIL import ImageFile
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    refuse(encode(CAT, "PNG")[:500], "truncated")
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before

# ---- damaged, foreign and missing files

@pytest.mark.parametrize("content,reason,says", [
    (b"", "empty", "no bytes"), (b"hello", "not_an_image", ""), (b"P", "not_an_image", ""), (b"\n<!DOCTYPE html>\n<html>", "not_an_image", "web page"),
    (b"\x80\x04\x95pickle", "not_an_image", ""), (b"\0\0\0\x1cftypheic" + bytes(99), "unsupported_format", "HEIC"),
    (bytes(128) + b"DICM", "unsupported_format", "DICOM"), (b'<?xml version="1.0"?><svg xmlns="">', "unsupported_format", "SVG"), (b"8BPS\0\1", "unsupported_format", "Photoshop"),
    (b"\xff\xd8\xff", "corrupt", ""), (b"\x89PNG\r\n\x1a\n", "corrupt", ""), (b"GIF89a", "corrupt", ""), (b"RIFF\0\0\0\0WEBPVP8 ", "corrupt", "")])
def test_contents_that_are_no_image(tmp_path, content, reason, says):
    path = tmp_path/"holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError) as e: load_image(path)
    assert e.value.path == str(path) and "holiday.jpg" in e.value.what and str(path) in e.value.where and says in e.value.what
    assert e.value.reason == reason or (reason == "corrupt" and e.value.reason == "truncated")
    with pytest.raises(ImageReadError) as e2: image_size(path)
    assert e2.value.reason == e.value.reason

def test_jpeg_cut_anywhere_is_an_error():
    for kw in ({}, {"progressive":True}):
        data = encode(CAT, "JPEG", **kw)
        sos = data.index(b"\xff\xda")
        for end in range(sos+20, len(data), 23): refuse(data[:end], "truncated")
    data = encode(Image.fromarray(CAT).convert("CMYK"), "JPEG")
    refuse(data[:len(data)*3//4], "truncated")

@pytest.mark.parametrize("fmt", ["PNG", "BMP", "PPM", "GIF"])
def test_cut_files_are_truncated(fmt):
    data = encode(CAT, fmt)
    for part in (.5, .9): refuse(data[:int(len(data)*part)], "truncated")

@pytest.mark.parametrize("fmt", ["WEBP", "TIFF"])
def test_cut_files_are_refused(fmt):
    data = encode(CAT, fmt)
    for part in (.2, .5, .9):
        with pytest.raises(ImageReadError): load_image(data[:int(len(data)*part)])

@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_damage_that_pillow_passes_over_is_an_error(mode):
    data = bytearray(encode(Image.fromarray(CAT).convert(mode), "JPEG", quality=95))
    at = data.index(b"\xff\xda") + 300
    data[at:at+2] = b"\xff\xd9"      # an end-of-image marker in the middle of the data: grey from there on
    Image.open(io.BytesIO(data)).load()
    refuse(bytes(data), "corrupt")

def test_flipped_byte_in_a_png():
    data = bytearray(encode(CAT, "PNG"))
    data[len(data)//2] ^= 0x55
    err = refuse(bytes(data), "corrupt")
    assert err.__cause__ is not None and not isinstance(err.__cause__, ImageReadError)

def test_paths_that_are_no_file(tmp_path):
    with within(5):
        assert "folder" in refuse(tmp_path, "not_regular_file").what
        os.mkfifo(tmp_path/"pipe.png")
        for f in (load_image, image_size, read_bytes):
            with pytest.raises(ImageReadError) as e: f(tmp_path/"pipe.png")
            assert e.value.reason == "not_regular_file" and "pipe.png" in str(e.value)
        refuse("/dev/zero", "not_regular_file")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(tmp_path/"s.png"))
            refuse(tmp_path/"s.png", "not_regular_file")
        (tmp_path/"link.png").symlink_to(tmp_path/"pipe.png")
        refuse(tmp_path/"link.png", "not_regular_file")

def test_missing_paths(tmp_path):
    (tmp_path/"gone.png").symlink_to(tmp_path/"nowhere.png")
    (tmp_path/"loop.png").symlink_to(tmp_path/"loop.png")
    (tmp_path/"file").write_bytes(b"x")
    for o in (tmp_path/"no.png", str(tmp_path/"no.png"), tmp_path/"gone.png", tmp_path/"loop.png", tmp_path/"file"/"a.png", tmp_path/("x"*300 + ".png"), "https://example.org/cat.jpg"):
        err = refuse(o, "missing")
        assert isinstance(err.__cause__, OSError) and err.path == str(o)
    with pytest.raises(ImageReadError): load_image("a\0b.png")

def test_links_to_files_are_followed(tmp_path):
    (tmp_path/"cat.png").write_bytes(encode(CAT, "PNG"))
    (tmp_path/"link.png").symlink_to(tmp_path/"cat.png")
    np.testing.assert_array_equal(load_image(tmp_path/"link.png"), CAT)

@contextmanager
def as_nobody():
    "Give up root's rights for a while: root may read everything"
    if os.geteuid() != 0:
        yield; return
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

def test_permission(tmp_path):
    path = tmp_path/"secret.png"
    path.write_bytes(encode(CAT, "PNG"))
    path.chmod(0)
    try:
        with as_nobody(): refuse(path, "permission")
    finally: path.chmod(stat.S_IRUSR | stat.S_IWUSR)

def test_permission_is_told_from_other_errors(tmp_path, monkeypatch):
    import visionlab.images.decode as items
    def denied(*_): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(items, "open", denied, raising=False)
    (tmp_path/"secret.png").write_bytes(b"x")
    refuse(tmp_path/"secret.png", "permission")

def test_memory_error_is_a_refusal(monkeypatch):
    import visionlab.images.decode as items
    def full(*_, **__): raise MemoryError
    monkeypatch.setattr(items.simplejpeg, "decode_jpeg", full)
    refuse(encode(CAT, "JPEG"), "too_large")

def test_ctrl_c_is_not_swallowed(monkeypatch):
    import visionlab.images.decode as items
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(items.simplejpeg, "decode_jpeg", stop)
    with pytest.raises(KeyboardInterrupt): load_image(encode(CAT, "JPEG"))

def test_strange_names_stay_on_one_line(tmp_path):
    for name in ["a\nb.png", "caf\udce9.png", "été 🐈.png", "<img src=x>.png"]:
        path = tmp_path/name
        try: path.write_bytes(b"no")
        except (OSError, UnicodeEncodeError): continue
        err = refuse(path, "not_an_image")
        str(err).encode()      # printable anywhere
        assert err.path == str(path)
        path.write_bytes(encode(CAT, "PNG"))
        np.testing.assert_array_equal(load_image(path), CAT)

def test_every_reason_has_what_and_fix():
    for code,(what,fix) in REASONS.items(): assert code.islower() and what and fix and "\n" not in what+fix

def test_errors_pickle(tmp_path):
    err = refuse(tmp_path/"no.png", "missing")
    again = pickle.loads(pickle.dumps(err))
    assert (str(again), again.path, again.reason) == (str(err), err.path, "missing")

# ---- sources

@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"])
def test_same_pixels_from_every_source(tmp_path, fmt):
    data,path = encode(CAT, fmt), tmp_path/f"cat.{fmt.lower()}"
    path.write_bytes(data)
    for mode in ("RGB", "L"):
        want = decode(data, mode)
        with open(path, "rb") as f, Image.open(path) as im:
            for o in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), f, im, want): np.testing.assert_array_equal(load_image(o, mode), want)
            f.seek(0)
            for o in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), f, im, want): assert image_size(o) == want.shape[:2]
            np.testing.assert_array_equal(load_image(f, mode), want)      # asking for the size left the file where it was

def test_open_files_give_their_name(tmp_path):
    path = tmp_path/"cat.png"
    path.write_bytes(encode(CAT, "PNG")[:400])
    with open(path, "rb") as f: assert refuse(f, "truncated").path == str(path)
    with Image.open(path) as im: assert refuse(im, "truncated").path == str(path)
    with open(path, encoding="latin1") as f: assert "rb" in refuse(f, "not_an_image").fix

def test_arrays():
    grey = CAT[...,0]
    np.testing.assert_array_equal(load_image(CAT), CAT)
    np.testing.assert_array_equal(load_image(grey), grey[...,None].repeat(3, -1))
    np.testing.assert_array_equal(load_image(grey[...,None], "L"), grey[...,None])
    np.testing.assert_array_equal(load_image(CAT/255.), CAT)
    np.testing.assert_array_equal(load_image(CAT.astype(np.uint16)*257), CAT)
    np.testing.assert_array_equal(load_image(CAT.astype(np.int64)), CAT)
    np.testing.assert_array_equal(load_image(grey > 100, "L")[...,0], (grey > 100)*255)
    np.testing.assert_array_equal(load_image(CAT.transpose(2, 0, 1)), CAT)      # unambiguous
    np.testing.assert_array_equal(load_image(CAT[::2,::-1]), CAT[::2,::-1])
    assert (load_image(np.zeros((4, 5, 4), np.uint8)) == 255).all()

def test_arrays_are_copied():
    a = CAT.copy()
    load_image(a)[:] = 0
    np.testing.assert_array_equal(a, CAT)

def test_tensors():
    t = torch.from_numpy(CAT).permute(2, 0, 1)
    for o in (t, t/255, (t/255).requires_grad_(), t.double()/255, t[0].bfloat16()[None].expand(3, -1, -1)/255):
        assert load_image(o).shape == CAT.shape and image_size(o) == (50, 76)
    np.testing.assert_array_equal(load_image(t/255), CAT)
    np.testing.assert_array_equal(load_image(t[0], "L")[...,0], CAT[...,0])

@pytest.mark.parametrize("a,says", [(np.zeros((2, 9, 9)), "(H, W, C)"), (np.zeros((8, 3, 9, 9)), "one by one"), (np.zeros(9), "(H, W, C)"), (torch.zeros(9, 9, 3), "(C, H, W)"),
                                    (torch.zeros(2, 3, 9, 9), "one by one")])
def test_shapes_that_are_no_image(a, says):
    assert says in refuse(a, "unsupported_mode").fix
    with pytest.raises(ImageReadError): image_size(a)

@pytest.mark.parametrize("source", [None, 7, ["a.jpg"], object()])
def test_other_types(source):
    assert "Give a path" in refuse(source, "not_an_image").fix
    with pytest.raises(ImageReadError) as e: image_size(source)
    assert e.value.reason == "not_an_image"

def test_odd_arrays():
    refuse(np.zeros((0, 5), np.uint8), "empty")
    refuse(np.zeros((0, 5)), "empty")
    refuse(np.array([["a"]]), "unsupported_mode")
    refuse(np.zeros((4, 4), complex), "unsupported_mode")
    refuse(torch.full((3, 4, 4), -2.), "bad_range")

def test_threads_share_nothing():
    from concurrent.futures import ThreadPoolExecutor
    files = [encode(CAT, fmt, 6) for fmt in ("JPEG", "PNG", "TIFF", "WEBP")]*25
    want = [decode(o) for o in files[:4]]*25
    with ThreadPoolExecutor(8) as pool:
        for a,b in zip(pool.map(decode, files), want): np.testing.assert_array_equal(a, b)

# ---- items and batches

def make_batch(n=5, **kw):
    return ImageBatch.collate(ImageItem(np.full((6, 8, 3), i, np.uint8), target=i%3, path=f"{i}.png", index=10*i, **{k:f(i) for k,f in kw.items()}) for i in range(n))

def test_collate_stacks_every_field():
    b = make_batch(mask=lambda i: np.full((6, 8), i > 2), depth=lambda i: np.full((6, 8), i, np.float32), clip=lambda i: torch.zeros(2, 3, 6, 8))
    assert b.image.shape == (5, 3, 6, 8) and b.image.dtype == torch.uint8 and (b.image[4] == 4).all()
    assert b.target.tolist() == [0, 1, 2, 0, 1] and b.target.dtype == torch.int64 and b.index.tolist() == [0, 10, 20, 30, 40]
    assert b.path == [f"{i}.png" for i in range(5)] and b.mask.shape == (5, 6, 8) and b.mask.dtype == torch.bool and b.depth.dtype == torch.float32 and b.clip.shape == (5, 2, 3, 6, 8)
    x,y = b
    assert x is b.image and y is b.target and len(b) == 5

def test_aliases():
    b = make_batch(2)
    for alias,name in ALIASES.items():
        assert getattr(b, alias) is getattr(b, name)
        assert getattr(b[0], alias) is None or name in ("target", "path", "index")
    assert set(ALIASES) >= {"label", "gt_label", "gt_mask", "image_path", "idx", "depth_map"}

def test_collate_takes_tensors_in_either_layout():
    hwc = [torch.from_numpy(CAT) for _ in range(2)]
    want = torch.from_numpy(CAT).permute(2, 0, 1).expand(2, -1, -1, -1)
    for images in (hwc, [o.permute(2, 0, 1) for o in hwc], [CAT, CAT], [CAT, torch.from_numpy(CAT)]):
        assert torch.equal(ImageBatch.collate(ImageItem(o) for o in images).image, want)
    assert ImageBatch.collate([ImageItem(CAT[...,0])]).image.shape == (1, 1, 50, 76)

def test_collate_of_read_only_arrays_gives_no_warning():
    a = CAT.copy()
    a.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageBatch.collate([ImageItem(a), ImageItem(a)]).image.zero_()
    np.testing.assert_array_equal(a, CAT)

def test_targets_of_every_kind():
    one = lambda t: ImageBatch.collate([ImageItem(CAT, t), ImageItem(CAT, t)]).target
    assert one(np.int32(2)).dtype == one(torch.tensor(2)).dtype == one(True).dtype == torch.int64
    assert one(np.array([0, 1, 1], np.float32)).tolist() == [[0, 1, 1]]*2
    assert one(.5).dtype == torch.float32 and one(None) is None

def test_missing_fields_stay_missing():
    b = ImageBatch.collate([ImageItem(CAT)]*3)
    assert b.target is b.path is b.index is b.mask is None
    for o in (b[1], b[:2], b[[0, 2]], b.to("cpu"), b.pin_memory(), pickle.loads(pickle.dumps(b))): assert o.target is o.path is o.index is None
    x,y = b
    assert y is None

def test_what_cannot_be_a_batch():
    with pytest.raises(DataError, match="different sizes") as e: ImageBatch.collate([ImageItem(CAT, path="a/cat.jpg"), ImageItem(CAT[:9], path="b/strip.jpg"), ImageItem(CAT)])
    assert "(50, 76, 3) uint8 × 2" in e.value.what and "(9, 76, 3) uint8 × 1" in e.value.what and e.value.where == "a/cat.jpg, b/strip.jpg" and "image_size" in e.value.fix
    with pytest.raises(DataError, match="different sizes or types"): ImageBatch.collate([ImageItem(CAT), ImageItem(CAT/255)])
    with pytest.raises(DataError, match="no items"): ImageBatch.collate([])
    with pytest.raises(DataError, match="1 of 2 items have no target"): ImageBatch.collate([ImageItem(CAT, 1), ImageItem(CAT)])
    with pytest.raises(DataError, match="target values do not stack"): ImageBatch.collate([ImageItem(CAT, "cat")])
    with pytest.raises(DataError, match="mask values do not stack"): ImageBatch.collate([ImageItem(CAT, mask=np.zeros((2, 2))), ImageItem(CAT, mask=np.zeros((3, 2)))])

def test_indexing_keeps_all_fields():
    b = make_batch(mask=lambda i: np.full((6, 8), i))
    item = b[3]
    assert isinstance(item, ImageItem) and (item.image == 3).all() and int(item.target) == 0 and item.path == "3.png" and int(item.index) == 30 and (item.mask == 3).all()
    assert b[-1].path == b[np.int64(4)].path == "4.png"
    for rows,want in [(slice(2, 5), [2, 3, 4]), (slice(None, None, 2), [0, 2, 4]), ([4, 0], [4, 0]), (torch.tensor([1, 3]), [1, 3]), (np.array([1]), [1]), (b.target == 0, [0, 3]), ([], [])]:
        part = b[rows]
        assert part.path == [f"{i}.png" for i in want] and part.index.tolist() == [10*i for i in want] and part.mask[:,0,0].tolist() == want and len(part) == len(want)
    for bad in (5, -6):
        with pytest.raises(IndexError): b[bad]

def test_items_and_back():
    b = make_batch(mask=lambda i: np.full((6, 8), i))
    again = ImageBatch.collate(b.items())
    assert torch.equal(again.image, b.image) and torch.equal(again.target, b.target) and torch.equal(again.index, b.index) and torch.equal(again.mask, b.mask) and again.path == b.path

def test_moving_and_pickling():
    b = make_batch()
    meta = b.to("meta", non_blocking=True)
    assert meta.image.is_meta and meta.target.is_meta and meta.index.is_meta and meta.path == b.path and not b.image.is_meta
    again = pickle.loads(pickle.dumps(b))
    assert torch.equal(again.image, b.image) and again.path == b.path
    pinned = b.pin_memory()
    assert pinned.image.is_pinned() == torch.cuda.is_available() and torch.equal(pinned.image, b.image)

def test_through_a_loader():
    items = [ImageItem(CAT, i, f"{i}.jpg", i) for i in range(5)]
    batches = list(torch.utils.data.DataLoader(items, 2, collate_fn=ImageBatch.collate, num_workers=1))
    assert [len(b) for b in batches] == [2, 2, 1] and batches[2].path == ["4.jpg"]
    for x,y in batches: assert len(x) == len(y)

def test_short_reprs():
    b = make_batch()
    assert repr(b) == "ImageBatch: image (5, 3, 6, 8) uint8 0..4 on cpu; target (5,) int64, 3 classes; path; index (5,) int64"
    assert b._repr_html_().startswith("<code>ImageBatch") and "\n" not in b._repr_html_()
    assert repr(b[1]) == "ImageItem: image (3, 6, 8) uint8 1..1; target 1; path '1.png'; index 10"
    assert "on cpu" in repr(b[[]]) and len(repr(ImageBatch.collate([ImageItem(CAT/255, np.ones(3))]))) < 120
