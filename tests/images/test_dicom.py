"DICOM files and images with any number of channels: pixels, ranges, refusals, and the whole road to a model."
import io, pickle
from pathlib import Path
import numpy as np, pytest, torch
import pydicom
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage, generate_uid
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, ImageReadError, MissingDependencyError
from visionlab.data.module import ImageDataModule
from visionlab.images.dicom import dicom_info, load_dicom, load_values
from visionlab.images.decode import decode, IMAGE_EXTENSIONS, load_image
from visionlab.images.sizes import glance, image_size
from visionlab.training.learner import Learner
from photos import photo, photo_folder

SAMPLES = Path(pydicom.__file__).parent/"data"/"test_files"
RAMP = np.linspace(0, 1, 48*64).reshape(48, 64)

pytestmark = pytest.mark.usefixtures("one_thread")

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("VISIONLAB_PROGRESS", "off")

def dicom(a, bits=None, photometric="MONOCHROME2", signed=False, rle=False, **tags):
    "Write stored values as a DICOM file"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID,meta.MediaStorageSOPClassUID,meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid()
    ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID,ds.SOPInstanceUID,ds.Modality = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID, "OT"
    colour = photometric == "RGB" or photometric.startswith("YBR")
    ds.Rows,ds.Columns = a.shape[:2] if not (frames := tags.get("NumberOfFrames")) else a.shape[1:3]
    ds.SamplesPerPixel,ds.PhotometricInterpretation = 3 if colour else 1, photometric
    if colour: ds.PlanarConfiguration = 0
    ds.BitsAllocated = a.dtype.itemsize*8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit,ds.PixelRepresentation = ds.BitsStored-1, int(signed)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.PixelData = a.tobytes()
    if rle: ds.compress(RLELossless, a)
    ds.save_as(out := io.BytesIO(), enforce_file_format=True)
    return out.getvalue()

def grey(data): return load_image(data, "L")[..., 0]

# ---- what the scanner stored becomes 0..255

def test_eight_bits_stay_as_they_are():
    a = (RAMP*255).astype(np.uint8)
    np.testing.assert_array_equal(grey(dicom(a)), a)
    assert load_image(dicom(a)).shape == (48, 64, 3)

@pytest.mark.parametrize("bits", [10, 12, 14])
def test_stored_bits_fill_the_range(bits):
    got = grey(dicom((RAMP*(2**bits-1)).astype(np.uint16), bits))
    assert got.min() == 0 and got.max() == 255 and abs(got.mean() - 127.5) < 1

def test_the_range_is_that_of_the_bits_not_of_the_image():
    assert grey(dicom((RAMP*1000).astype(np.uint16), 12)).max() == round(1000/4095*255)

def test_sixteen_bits_are_read_by_their_bits_or_a_range_given_never_by_their_own_values():
    data = dicom((RAMP*3000 + 500).astype(np.uint16))
    assert grey(data).min() == round(500/257) and grey(data).max() == round(3500/257)
    got = load_image(data, "L", value_range=(500, 3500))
    assert got.min() == 0 and got.max() == 255
    upside_down = load_image(dicom((RAMP*3000 + 500).astype(np.uint16), 16, "MONOCHROME1"), "L", value_range=(500, 3500))
    np.testing.assert_allclose(upside_down, 255 - got.astype(int), atol=1)

def test_signed_values_and_hounsfield_units():
    stored = (RAMP*2000).astype(np.int16) - 1000
    data = dicom(stored, signed=True, RescaleSlope="2", RescaleIntercept="-24")
    np.testing.assert_allclose(load_values(data), stored*2. - 24)
    got = load_image(data, "L", value_range=(-2024, 1976))
    assert got.min() == 0 and got.max() == 255 and 0 < grey(data).min() < grey(data).max() < 255
    twelve = grey(dicom(np.full((4, 4), -2048, np.int16), 12, signed=True))
    assert (twelve == 0).all()
    assert (grey(dicom(np.full((4, 4), 100, np.uint16), 12, RescaleSlope="-1", RescaleIntercept="0")) > 240).all()      # a slope below zero turns the range round

def test_the_files_window_is_used_and_others_on_request():
    stored = (RAMP*4095).astype(np.uint16)
    data = dicom(stored, 12, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="40", WindowWidth="400")
    hu = stored - 1024.
    want = np.clip((hu - 39.5)/399 + .5, 0, 1)*255
    assert np.abs(grey(data) - want).max() <= .51
    other = load_dicom(data, window=(300, 1500))[..., 0]
    assert np.abs(other - np.clip((hu - 299.5)/1499 + .5, 0, 1)*255).max() <= .51
    several = dicom(stored, 12, WindowCenter=["1000", "40"], WindowWidth=["500", "80"])
    assert np.abs(grey(several) - np.clip((stored - 999.5)/499 + .5, 0, 1)*255).max() <= .51

@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(kind):
    from pydicom.pixels import apply_voi_lut
    stored = (RAMP*4095).astype(np.uint16)
    data = dicom(stored, 12, WindowCenter="1800", WindowWidth="900", VOILUTFunction=kind)
    ds = pydicom.dcmread(io.BytesIO(data))
    assert np.abs(grey(data) - apply_voi_lut(stored, ds)/4095*255).max() <= 1

def test_a_table_of_values():
    table = pydicom.Dataset()
    table.LUTDescriptor,table.LUTData = [4096, 0, 16], (np.arange(4096, dtype=np.uint16)[::-1]*16).tobytes()
    stored = (RAMP*4095).astype(np.uint16)
    got = grey(dicom(stored, 12, VOILUTSequence=Sequence([table])))
    assert got[0, 0] > 253 and got[-1, -1] == 0

def test_monochrome1_is_turned_round():
    a = (RAMP*4095).astype(np.uint16)
    np.testing.assert_allclose(grey(dicom(a, 12, "MONOCHROME1")), 255 - grey(dicom(a, 12)).astype(int), atol=1)

def test_first_of_many_frames():
    frames = np.stack([np.full((20, 30), v, np.uint8) for v in (10, 200, 90)])
    data = dicom(frames, NumberOfFrames=3)
    assert (grey(data) == 10).all() and dicom_info(data)["frames"] == 3 and image_size(data) == (20, 30)

def test_colour():
    rgb = photo("coffee")[:40, :60]
    np.testing.assert_array_equal(load_image(dicom(np.ascontiguousarray(rgb), photometric="RGB")), rgb)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert np.abs(load_image(dicom(np.ascontiguousarray(ybr), photometric="YBR_FULL")).astype(int) - rgb).max() <= 3
    assert load_image(dicom(np.ascontiguousarray(rgb), photometric="RGB"), "L").shape == (40, 60, 1)

def test_palette():
    from pydicom.pixels import apply_color_lut
    path = SAMPLES/"examples_palette.dcm"
    ds = pydicom.dcmread(path)
    want = apply_color_lut(ds.pixel_array, ds)
    assert np.abs(load_image(path).astype(int) - np.rint(want/np.iinfo(want.dtype).max*255)).max() <= 1
    assert load_image(path).std() > 10

SCANS = ["CT_small", "MR_small", "MR_small_RLE", "MR_small_bigendian", "JPEG2000", "MR_small_jp2klossless", "examples_ybr_color", "SC_rgb_jpeg", "SC_rgb_rle_16bit",
                                  "SC_rgb_rle_32bit", "SC_rgb_small_odd", "liver_1frame", "rtdose_1frame", "examples_jpeg2k", "SC_ybr_full_422_uncompressed", "examples_overlay", "image_dfl", "color3d_jpeg_baseline"]
SCANS = [o for o in SCANS if (SAMPLES/f"{o}.dcm").exists()]       # each pydicom ships a few others

def test_there_are_files_from_scanners(): assert len(SCANS) >= 12

@pytest.mark.parametrize("name", SCANS)
def test_files_from_scanners(name):
    path = SAMPLES/f"{name}.dcm"
    given = dict(value_range=(0, float(load_values(path).max()))) if name == "rtdose_1frame" else {}      # 32 bits, and no window
    image = load_image(path, **given)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and image.shape[:2] == image_size(path) and image.max() > 40
    np.testing.assert_array_equal(image, decode(path.read_bytes(), **given))
    assert load_image(path, "raw", **given).shape[2] in (1, 3)

def test_rle_written_here():
    a = (RAMP*255).astype(np.uint8)
    np.testing.assert_array_equal(grey(dicom(a, rle=True)), a)

# ---- refusals

@pytest.mark.parametrize("data,reason", [
    (bytes(128) + b"DICM", "unsupported_format"), ((SAMPLES/"reportsi.dcm").read_bytes(), "unsupported_format"),
    (dicom((RAMP*255).astype(np.uint8))[:-500], "truncated"), ((SAMPLES/"waveform_ecg.dcm").read_bytes(), "unsupported_format"), (bytes(128) + b"DICM" + b"\xff"*300, None)])
def test_what_is_no_image_says_why(tmp_path, data, reason):
    (tmp_path/"scan.dcm").write_bytes(data)
    with pytest.raises(ImageReadError, match="scan.dcm") as e: load_image(tmp_path/"scan.dcm")
    assert reason is None or e.value.reason == reason, str(e.value)
    assert str(e.value).count("\n") == 2

def test_a_codec_that_is_not_installed_is_named(monkeypatch):
    path = next((o for o in (SAMPLES/f"{n}.dcm" for n in ("JPEG-LL", "SC_rgb_jls_lossy_line", "MR_small_jpeg_ls_lossless")) if o.exists()))
    try: assert load_image(path).max() > 0          # where the codec is installed
    except ImageReadError as e: assert e.reason == "unsupported_format" and "JPEG" in e.what and "Install" in e.fix

def test_without_pydicom_the_message_is_the_pip_line(monkeypatch, tmp_path):
    import sys
    data = dicom((RAMP*255).astype(np.uint8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    import visionlab.core.errors
    import importlib
    real = importlib.import_module
    def missing(name, *a):
        if name == "pydicom": raise ModuleNotFoundError("No module named 'pydicom'", name="pydicom")
        return real(name, *a)
    monkeypatch.setattr(visionlab.core.errors.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install 'visionlab\[dicom\]'"): load_image(data)
    for c in "ab":
        (tmp_path/c).mkdir()
        for i in range(3): (tmp_path/c/f"{i}.dcm").write_bytes(data)
    with pytest.raises(MissingDependencyError, match="dicom"): ImageDataModule(tmp_path, image_size=32).setup()       # not six damaged files

def test_size_limit_and_nothing_about_the_patient():
    data = dicom((RAMP*255).astype(np.uint8), PatientName="Doe^Jane", PatientID="12345", StudyDate="20200101")
    with pytest.raises(ImageReadError) as e: load_image(data, max_pixels=100)
    assert e.value.reason == "too_large"
    assert "Doe" not in str(dicom_info(data)) + str(e.value) and "12345" not in str(dicom_info(data))
    assert glance(data).size == (48, 64)

# ---- a folder of scans

def test_a_folder_of_scans_trains(tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("dense", 3000), ("soft", 800)):
        (tmp_path/name).mkdir()
        for i in range(16): (tmp_path/name/f"{i}.dcm").write_bytes(dicom((rng.random((40, 40))*900 + level).astype(np.uint16), 12))
    assert {".dcm", ".npy"} <= IMAGE_EXTENSIONS
    dm = ImageDataModule(tmp_path, image_size=32, batch_size=8, in_chans=1, val_split=.25)
    assert not len(dm.setup().catalog.skipped)
    learn = Learner(dm, "resnet9", lr=4e-3, device="cpu").fit(3)
    assert learn.history[-1]["accuracy"] > .8
    assert learn.predict(tmp_path/"soft"/"0.dcm").label in ("dense", "soft")

# ---- any number of channels

def npy(a):
    np.save(out := io.BytesIO(), a)
    return out.getvalue()

def tiff(a, **kw):
    tifffile.imwrite(out := io.BytesIO(), a, **kw)
    return out.getvalue()

@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 12])
def test_tiff_and_npy_keep_all_channels(n):
    a = np.random.default_rng(n).integers(0, 255, (33, 47, n), np.uint8)
    flat = a if n > 1 else a[..., 0]
    for data in (npy(a), npy(a.transpose(2, 0, 1)), npy(a.astype(np.uint16)*257), tiff(flat, photometric="rgb" if n == 3 else "minisblack", planarconfig="contig" if n > 1 else None),
                 *([tiff(a.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")] if n > 4 else [])):
        np.testing.assert_array_equal(load_image(data, "raw"), a)
        assert image_size(data) == (33, 47)
    np.testing.assert_array_equal(load_image(a, "raw"), a)
    np.testing.assert_array_equal(load_image(torch.from_numpy(a).permute(2, 0, 1), "raw"), a)

def test_stacks_take_their_first_step_in_time():
    a = np.random.default_rng(0).integers(0, 255, (3, 5, 20, 30), np.uint8)
    np.testing.assert_array_equal(load_image(tiff(a, imagej=True, metadata={"axes":"TCYX"}), "raw"), a[0].transpose(1, 2, 0))

def test_raw_leaves_other_modes_alone():
    png = io.BytesIO()
    Image.fromarray(np.dstack([photo("coffee")[:20, :30], np.full((20, 30), 7, np.uint8)])).save(png, "PNG")
    assert load_image(png.getvalue(), "raw").shape == (20, 30, 4) and load_image(png.getvalue()).shape == (20, 30, 3)
    for kind, n in (("JPEG", 3), ("PNG", 3)):
        Image.fromarray(photo("coffee")[:20, :30]).save(out := io.BytesIO(), kind)
        assert load_image(out.getvalue(), "raw").shape[2] == n
    Image.fromarray(photo("coffee")[:20, :30, 0]).save(out := io.BytesIO(), "JPEG")
    assert load_image(out.getvalue(), "raw").shape[2] == 1
    np.testing.assert_array_equal(load_image(npy(photo("coffee")[:20, :30])), photo("coffee")[:20, :30])
    with pytest.raises(ImageReadError) as e: load_image(npy(np.zeros((20, 30, 7), np.uint8)))
    assert e.value.reason == "unsupported_mode"

class Bomb:
    def __reduce__(self): return (exec, ("raise SystemExit('ran code')",))

@pytest.mark.parametrize("data,reason", [
    (npy(np.array([Bomb()], object)), "unsupported_mode"), (npy(np.zeros((20, 30), np.uint8))[:-5], "truncated"), (npy(np.zeros(20, np.uint8)), "unsupported_mode"),
    (npy(np.full((4, 4), -1.)), "bad_range"), (b"\x93NUMPY\x01\x00", "corrupt"), (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "corrupt"), (npy(np.zeros((0, 5), np.uint8)), "empty"),
    (tiff(np.zeros((20, 30, 6), np.uint8), photometric="minisblack")[:60], None)])
def test_hostile_files_are_refused(data, reason):
    with pytest.raises(ImageReadError) as e: load_image(data, "raw")
    assert reason is None or e.value.reason == reason, str(e.value)

def test_a_header_that_promises_too_much_is_not_believed():
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr="|u1", fortran_order=False, shape=(50_000, 50_000)))
    with pytest.raises(ImageReadError) as e: load_image(out.getvalue(), "raw")
    assert e.value.reason == "too_large"

@pytest.fixture(scope="module")
def four(tmp_path_factory):
    "Photographs with a fourth channel, half as TIFF and half as .npy"
    root = tmp_path_factory.mktemp("four")
    photo_folder(root/"rgb", n_train=12, n_val=4, size=40, classes=("brick", "coffee"))
    for p in sorted((root/"rgb").rglob("*.jpg")):
        rgb = np.asarray(Image.open(p))
        a = np.dstack([rgb, 255 - rgb[..., 0]])
        out = root/"four"/p.relative_to(root/"rgb")
        out.parent.mkdir(parents=True, exist_ok=True)
        if int(p.stem) % 2: np.save(out.with_suffix(".npy"), a)
        else: tifffile.imwrite(out.with_suffix(".tif"), a, photometric="rgb", extrasamples=["unspecified"])
    return root/"four"

def test_four_channels_from_files_to_predictions(four):
    dm = ImageDataModule(four, image_size=32, batch_size=8, in_chans=4)
    x, y = next(iter(dm.train_dataloader()))
    assert x.shape == (8, 4, 32, 32) and dm.stats[0] == (.485, .456, .406, .485)
    assert "without colour: 4 channels" in repr(dm) and not any("Color" in type(o).__name__ for o in dm.train_pipeline.ops)
    raw = ImageDataModule(four, image_size=32, in_chans=4).val_dataloader()
    back = dm.denormalize(next(iter(raw)).image)
    assert (back[:, 0] + back[:, 3] - 1).abs().mean() < .02
    learn = Learner(dm, "resnet9", lr=4e-3, device="cpu").fit(3)
    assert learn.history[-1]["accuracy"] >= .75
    assert learn.predict(next(four.rglob("*.npy"))).label in dm.classes
    assert learn.predict(np.zeros((40, 40, 4), np.uint8)).label in dm.classes
    with pytest.raises(ImageReadError, match="3 channels instead of 4"): learn.predict(photo("coffee"))
    again = pickle.loads(pickle.dumps(learn.predictor().prepare(next(four.rglob("*.tif")))))
    assert again.shape == (4, 32, 32) and again.dtype == torch.uint8

def test_a_timm_model_takes_four_channels(four):
    dm = ImageDataModule(four, image_size=32, batch_size=8, in_chans=4)
    learn = Learner(dm, "resnet18", pretrained=False, device="cpu")
    assert learn.model(next(iter(dm.val_dataloader())).image).shape == (8, 2)

def test_images_in_memory_with_four_channels():
    import pandas as pd
    pixels = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 4), np.uint8)
    cat = Catalog(pd.DataFrame(dict(path=[f"{i}" for i in range(20)], label=["a", "b"]*10, split="train")), ["a", "b"], pixels=pixels)
    dm = ImageDataModule(cat, batch_size=4)
    assert dm.in_chans == 4 and next(iter(dm.train_dataloader())).image.shape == (4, 4, 16, 16)

def test_an_image_with_other_channels_is_skipped_with_its_reason(four, tmp_path):
    import shutil
    shutil.copytree(four, tmp_path/"d")
    Image.fromarray(photo("coffee")[:40, :40]).save(tmp_path/"d"/"train"/"coffee"/"rgb.png")
    dm = ImageDataModule(tmp_path/"d", image_size=32, in_chans=4).setup()
    assert dm.catalog.skipped[["path", "reason"]].to_numpy().tolist() == [["train/coffee/rgb.png", "unsupported_mode"]]

def test_in_chans_that_no_image_has(four):
    with pytest.raises(ConfigError, match="in_chans"): ImageDataModule(four, image_size=32, in_chans=-1).in_chans
    with pytest.raises(ConfigError, match="in_chans=5.*4 channels instead of 5"): ImageDataModule(four, image_size=32, in_chans=5).setup()

def test_a_grey_model_from_photographs(tmp_path):
    dm = ImageDataModule(photo_folder(tmp_path, 8, 4, 40, ("brick", "coffee")), image_size=32, batch_size=8, in_chans=1)
    x, _ = next(iter(dm.train_dataloader()))
    assert x.shape == (8, 1, 32, 32) and len(dm.stats[0]) == 1
    learn = Learner(dm, "resnet9", lr=4e-3, device="cpu").fit(1)
    assert learn.predict(photo("coffee")).label in dm.classes
