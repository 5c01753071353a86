"""Numbers of more than 8 bits: one range for a data set, wherever its images are decoded."""
import io, json, shutil, struct, warnings, zlib
from pathlib import Path
import numpy as np, pytest, tifffile
from PIL import Image
from visionlab.catalog.catalog import Catalog
from visionlab.runs.fingerprint import settings
from visionlab.cli import main
from visionlab.runs.config import TrainConfig
from visionlab.core.errors import ConfigError, ImageReadError
from visionlab.data.module import ImageDataModule
from visionlab.export.load import load_model
from visionlab.catalog.report import row_picture
from visionlab.catalog.doctor import check
from visionlab.runs.evaluate import evaluate
from visionlab.interpret.interpretation import interpret_probs
from visionlab.images.decode import load_image
from visionlab.training.learner import Learner
from visionlab.data.images import Images
from visionlab.runs.making import data_options
from visionlab.widgets.browse import _glimpse

RNG = np.random.default_rng

def png16(a):
    "Write a PNG of 16-bit colours, which Pillow cannot"
    h,w,c = a.shape
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind+data))
    rows = b"".join(b"\0" + a[y].astype(">u2").tobytes() for y in range(h))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {2:4, 3:2, 4:6}[c], 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

def npy(a):
    np.save(f := io.BytesIO(), a)
    return f.getvalue()

def tiff(a, **more):
    tifffile.imwrite(f := io.BytesIO(), a, **more)
    return f.getvalue()

def dataset(root, suffix, write, n=6):
    "Write a dark and a light class with `write(class, rng)`"
    for k,c in enumerate(("dark", "light")):
        (root/c).mkdir(parents=True)
        for i in range(n): (root/c/f"{i}{suffix}").write_bytes(write(k, RNG([k, i])))
    return root

def module(root, **more): return ImageDataModule(root, **dict(image_size=32, batch_size=4, num_workers=0) | more)

def pixels(dm):
    "Decode a module's images, by class"
    dm.setup()
    rows = dm.catalog.frame
    return [np.stack([dm._images[i] for i in rows.index[rows["label"] == c]]) for c in ("dark", "light")]

def counts(k, rng, top=3000): return rng.integers(0, top, (32, 32)) + 1000*k
def colours(k, rng): return np.stack([counts(k, rng)]*3, -1).astype(np.uint16)

KINDS = { # suffix, how a class's image is written, (low, high) of the data set
    "float tiff": (".tif", lambda k, r: tiff((r.random((32, 32))*(.9, 200)[k]).astype(np.float32)), (0, 255)),
    "float npy": (".npy", lambda k, r: npy(r.random((32, 32))*(.9, 1.7)[k]), None),
    "half npy": (".npy", lambda k, r: npy((r.random((32, 32))*(.3, .9)[k]).astype(np.float16)), (0, 1)),
    "uint16 tiff": (".tif", lambda k, r: tiff(counts(k, r).astype(np.uint16)), (0, 4095)),
    "uint16 png": (".png", lambda k, r: (Image.fromarray(counts(k, r).astype(np.uint16)).save(f := io.BytesIO(), "PNG"), f.getvalue())[1], (0, 4095)),
    "48-bit png": (".png", lambda k, r: png16(colours(k, r)), (0, 4095)),
    "64-bit png": (".png", lambda k, r: png16(np.dstack([colours(k, r), np.full((32, 32), 65535)])), (0, 4095)),
    "rgb16 tiff": (".tif", lambda k, r: tiff(colours(k, r), photometric="rgb"), (0, 4095)),
    "uint16 npy": (".npy", lambda k, r: npy(counts(k, r).astype(np.uint16)), (0, 4095)),
    "big-endian npy": (".npy", lambda k, r: npy(counts(k, r).astype(">u2")), (0, 4095)),
    "int32 tiff": (".tif", lambda k, r: tiff(counts(k, r).astype(np.int32)), (0, 4095)),
    "int64 npy": (".npy", lambda k, r: npy(counts(k, r)), (0, 4095)),
    "uint32 npy": (".npy", lambda k, r: npy((counts(k, r)*100).astype(np.uint32)), (0, 2**20-1)),
    "dim": (".tif", lambda k, r: tiff((counts(k, r, 400)//6).astype(np.uint16)), (0, 255)),
    "14 bits": (".tif", lambda k, r: tiff((counts(k, r)*3).astype(np.uint16)), (0, 16383)),
    "16 bits": (".tif", lambda k, r: tiff((counts(k, r)*16).astype(np.uint16)), (0, 65535)),
    "mark of no data": (".tif", lambda k, r: tiff(np.where(r.random((32, 32)) < .02, 65535, counts(k, r)).astype(np.uint16)), (0, 4095)),
    "minus 9999": (".npy", lambda k, r: npy(np.where(r.random((32, 32)) < .02, -9999, counts(k, r)).astype(np.int16)), (0, 4095)),
    "nan": (".npy", lambda k, r: npy(np.where(r.random((32, 32)) < .02, np.nan, r.random((32, 32))*(.2, .9)[k])), (0, 1)),
    "infinite": (".npy", lambda k, r: npy(np.where(r.random((32, 32)) < .02, np.inf*(-1)**k, r.random((32, 32))*(.2, .9)[k])), (0, 1)),
}

@pytest.mark.parametrize("kind", KINDS)
def test_dark_images_stay_darker_than_light_ones(tmp_path, kind):
    suffix,write,value_range = KINDS[kind]
    dm = module(dataset(tmp_path/"d", suffix, write))
    dark,light = pixels(dm)
    assert dark.mean() + 10 < light.mean() and len(np.unique(light)) > 25
    if value_range is not None: assert dm.value_range == value_range
    else: assert dm.value_range[0] == 0 and 1.5 < dm.value_range[1] <= 1.7

@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_thirteen_bands_of_twelve_bits(tmp_path, planar):
    def write(k, r):
        a = (r.integers(0, 3000, (13, 32, 32)) + 1000*k).astype(np.uint16)
        return tiff(a if planar == "separate" else a.transpose(1, 2, 0), photometric="minisblack", planarconfig=planar)
    dm = module(dataset(tmp_path/"d", ".tif", write, n=4), in_chans=13)
    dark,light = pixels(dm)
    assert dm.value_range == (0, 4095) and dark.shape[-1] == 13
    assert abs(dark.mean() - 1500/4095*255) < 2 and abs(light.mean() - 2500/4095*255) < 2 and len(np.unique(dark)) > 150

def test_numbers_are_exact(tmp_path):
    a = np.array([[0, 100, 2000, 4095]], np.uint16)
    want = np.rint(a/4095*255).astype(int).tolist()
    for data in (npy(a), tiff(a), npy(a.astype(np.int64)), npy(a.astype(np.float64)), png16(np.dstack([a]*3)), tiff(np.dstack([a]*3), photometric="rgb")):
        assert load_image(data, value_range=(0, 4095))[..., 0].tolist() == want
    assert load_image(png16(np.dstack([a]*3 + [np.array([[65535, 0, 65535, 32768]], np.uint16)])), value_range=(0, 4095))[0, :, 0].tolist() == [0, 255, 125, 255]
    assert load_image(np.array([[-50, 0, 150, 400]]), "L", value_range=(0, 300)).ravel().tolist() == [0, 0, 128, 255]

@pytest.mark.parametrize("a", [np.array([[0, .9]]), np.array([[0, 1.5]]), np.array([[0, 200.]]), np.array([[0, 300]]), np.array([[0, 200]], np.int32), np.array([[0, 900]], np.uint16)])
def test_a_single_image_is_read_by_its_type_or_refused_with_advice(a):
    "The neighbour that is twice as bright is twice as bright"
    def level(x):
        try: return load_image(x.astype(a.dtype), "L").max()
        except ImageReadError as e:
            assert e.reason == "bad_range" and "value_range=" in e.fix
            return None
    once,half = level(a), level(a/2)
    if once is not None: assert abs(int(once) - 2*int(half)) <= 2
    if a.max() > 255 and a.dtype != np.uint16 or a.dtype.kind == "f" and a.max() > 1: assert once is None

def test_eight_bits_are_left_as_they_are(tmp_path):
    a = RNG(0).integers(0, 256, (9, 7, 3), np.uint8)
    for o in (a, npy(a), tiff(a, photometric="rgb")): np.testing.assert_array_equal(load_image(o, value_range=(0, 4095)), a)
    np.testing.assert_array_equal(load_image(np.eye(4, dtype=bool), "L", value_range=(0, 4095))[..., 0], np.eye(4)*255)
    dm = module(dataset(tmp_path/"d", ".npy", lambda k, r: npy(r.integers(0, 256, (32, 32, 3), np.uint8))))
    assert dm.value_range is None and "value_range" not in dm.catalog.info and "Values" not in dict(dm.facts())

@pytest.mark.parametrize("bad", [(4095, 0), (0, 0), (0, np.nan), (0, np.inf), 4095, (1, 2, 3), "x"])
def test_a_range_that_is_none_is_refused(tmp_path, bad):
    with pytest.raises(ConfigError, match="value_range"): load_image(np.zeros((2, 2)), value_range=bad)

@pytest.mark.parametrize("said", ["0,4095", ["0", "4095"], [0, 4095], (0, 4095)])
def test_a_configuration_says_the_range_as_a_shell_does(tmp_path, said):
    config = TrainConfig("d", value_range=said)
    root = dataset(tmp_path/"d", ".tif", KINDS["16 bits"][1])
    assert module(root, value_range=data_options(config)["value_range"]).value_range == (0, 4095)
    with pytest.raises(ConfigError, match="value_range"): TrainConfig("d", value_range=(5, 1))

def test_the_shell_checks_in_a_given_range(tmp_path, capsys):
    root = dataset(tmp_path/"d", ".tif", KINDS["uint16 tiff"][1])
    main(["check", str(root), "--value-range", "0,1000", "--json", str(tmp_path/"r.json")])
    assert "read as 0…1000" in str(json.loads((tmp_path/"r.json").read_text()))

def test_fractions_beside_whole_numbers_ask(tmp_path):
    root = dataset(tmp_path/"d", ".npy", lambda k, r: npy(r.random((32, 32)) if k else counts(k, r).astype(np.uint16)))
    with pytest.raises(ConfigError, match="fractions") as e: module(root).setup()
    assert "value_range=" in e.value.fix
    assert module(root, value_range=(0, 4095)).value_range == (0, 4095)

@pytest.mark.parametrize("cache", ["ram", "disk", None])
def test_the_range_is_one_in_every_cache_and_remembered(tmp_path, cache):
    root = dataset(tmp_path/"d", ".tif", KINDS["uint16 tiff"][1])
    first,again = pixels(module(root, cache=cache)), pixels(module(root, cache=cache))
    given = pixels(module(root, cache=cache, value_range=(0, 65535)))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(again, pixels(module(root, cache=cache)))
    assert np.max(given) <= 16 < np.max(first)

def test_the_range_goes_with_the_catalog(tmp_path):
    dm = module(dataset(tmp_path/"d", ".tif", KINDS["uint16 tiff"][1])).setup()
    dm.catalog.save(tmp_path/"saved")
    cat = Catalog.load(tmp_path/"saved")
    assert module(cat).value_range == (0, 4095)
    np.testing.assert_array_equal(Images(cat)[cat.frame.index[0]], dm._images[cat.frame.index[0]])

def trained(root, **more):
    dm = module(root, **more)
    learn = Learner(dm, "resnet9")
    learn.fit(1)
    return dm, learn

def test_export_predict_evaluate_and_checkpoint_use_the_range(tmp_path):
    root = dataset(tmp_path/"d", ".tif", KINDS["float tiff"][1])
    dm,learn = trained(root)
    assert settings(learn)["value_range"] == [0, 255]
    predictor = load_model(learn.export(tmp_path/"model"))
    assert predictor.value_range == (0, 255) and json.loads((tmp_path/"model"/"visionlab.json").read_text())["model"]["value_range"] == [0, 255]
    files = sorted(root.glob("*/*"))
    dark,light = (predictor.prepare(o).float().mean() for o in (files[0], files[-1]))
    assert dark < 2 and light > 50
    np.testing.assert_allclose(predictor.probabilities(files), learn.predictor().probabilities(files), atol=1e-6)
    loader = dm.predict_dataloader([files[0]])
    np.testing.assert_array_equal(loader.images[int(loader.ids[0])], load_image(files[0], value_range=(0, 255)))
    right = [o.label == Path(o.path).parent.name for o in predictor.predict(files)]
    assert evaluate(tmp_path/"model", root, split="all").scores["accuracy"] == pytest.approx(np.mean(right))

def test_a_model_of_another_range_says_so(tmp_path):
    _,learn = trained(dataset(tmp_path/"a", ".tif", KINDS["uint16 tiff"][1]))
    model = learn.export(tmp_path/"model")
    other = dataset(tmp_path/"b", ".tif", KINDS["16 bits"][1])
    dm = module(other)
    with pytest.warns(UserWarning, match=r"trained on numbers 0…4095, and these images hold 0…65535"): dm.adapt(load_model_config(model)).setup()
    assert dm.value_range == (0, 4095)
    with pytest.warns(UserWarning, match="0…65535"): evaluate(model, other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = module(dataset(tmp_path/"c", ".tif", KINDS["uint16 tiff"][1])).adapt(load_model_config(model)).setup()
    assert same.value_range == (0, 4095)

def load_model_config(folder): return load_model(folder).model.config

def test_previews_show_what_training_reads(tmp_path):
    root = dataset(tmp_path/"d", ".tif", KINDS["float tiff"][1])
    for dm in (module(root), module(root, value_range=(0, 255))):
        rows = dm.as_read().frame
        shown = [_glimpse(dm.as_read(), i, 96)[0].mean() for i in rows.index]
        assert max(o for o,c in zip(shown, rows["label"]) if c == "dark") < 2 < 50 < min(o for o,c in zip(shown, rows["label"]) if c == "light")
    report = check(root)
    assert {row_picture(report.catalog, i).mean() > 50 for i in report.catalog.frame.index[report.catalog.frame["label"] == "light"]} == {True}

def test_every_door_to_the_picture_of_a_row_is_as_training_reads_it(tmp_path):
    dm = module(dataset(tmp_path/"d", ".tif", KINDS["float tiff"][1])).setup()
    found = interpret_probs(dm.catalog, np.full((len(dm.catalog), 2), .5))
    for i in dm.catalog.frame.index: np.testing.assert_array_equal(found.picture(i), load_image(dm.catalog.sources[i], value_range=(0, 255)))

def test_the_doctor_says_what_the_files_use_and_what_to_pass(tmp_path):
    report = check(dataset(tmp_path/"d", ".tif", KINDS["uint16 tiff"][1]))
    said = report.frame.set_index("issue")["detail"].get("values")
    assert "16-bit files that use 0…4095: read as 0…4095" in said and "value_range=(0, 4095)" in said
    assert "usual" not in set(report.frame["issue"]) and (report.measures["blank"] > .3).all()
    dim = check(dataset(tmp_path/"e", ".tif", KINDS["dim"][1]), value_range=(0, 1000))
    assert "read as 0…1000" in dim.frame.set_index("issue")["detail"].get("values")

def test_dicom_without_a_window_shares_one_range(tmp_path):
    from test_dicom import dicom
    dm = module(dataset(tmp_path/"d", ".dcm", lambda k, r: dicom((r.random((32, 32))*(300, 3000)[k]).astype(np.uint16))), in_chans=1)
    dark,light = pixels(dm)
    assert dm.value_range == (0, 4095) and dark.max() < 20 and light.max() > 150


@pytest.fixture
def twelve(tmp_path):
    "A folder of 12-bit grey images in 16-bit files, the lightest of which stands last"
    return dataset(tmp_path/"twelve", ".tif", lambda c, rng: tiff(rng.integers(0, 1000 + 3000*c, (16, 16)).astype(np.uint16)))

def test_a_bare_catalog_is_looked_at_in_the_range_of_all(twelve):
    from visionlab.widgets.label_cleaner import LabelCleaner
    cat = Catalog.from_folder(twelve)
    wanted = [load_image(o, "RGB", value_range=(0, 4095)) for o in cat.files()]
    same = lambda seen: all(np.array_equal(a, b) for a,b in zip(seen, wanted))
    assert same(cat.browse().tiles()[0]) and same(ImageDataModule(cat, val_split=.3).browse().tiles()[0])
    found = interpret_probs(cat, np.full((len(cat), 2), .5))
    assert same([found.picture(i) for i in cat.frame.index])
    cleaner = LabelCleaner(cat, found, path=twelve.parent/"e.csv")
    assert same([cleaner._reader.read(i, 16) for i in cat.frame.index])
    given = Catalog.from_folder(twelve)
    given.info["value_range"] = [0, 2000]
    assert np.array_equal(given.browse().tiles()[0][0], load_image(given.files()[0], "RGB", value_range=(0, 2000)))

def test_eight_bit_images_are_not_read_all_to_look_at_some(tmp_path, monkeypatch):
    from visionlab.data import module as data
    root = dataset(tmp_path, ".png", lambda c, rng: png16(np.zeros((8, 8, 3), np.uint16)), n=2)
    for f in root.rglob("*.png"): Image.new("RGB", (8, 8)).save(f)
    monkeypatch.setattr(data, "audit", lambda *o, **k: pytest.fail("all were read"))
    Catalog.from_folder(root).browse().tiles()

def test_export_of_a_run_that_stopped_keeps_the_range_it_trained_in(twelve, tmp_path):
    from visionlab.runs.evaluate import export_run
    from visionlab.runs.train import train
    config = TrainConfig(data=str(twelve), out=str(tmp_path/"run"), model="resnet9", image_size=16, epochs=1, pretrained=False, num_workers=0, device="cpu")
    train(config)
    shutil.rmtree(tmp_path/"run"/"exported_models")      # as where it was stopped
    (twelve/"light"/"new.tif").write_bytes(tiff(np.full((16, 16), 60000, np.uint16)))
    assert load_model(export_run(tmp_path/"run", tmp_path/"model")).value_range == (0, 4095)
