"The data doctor: what it must find, what it must not invent, hostile names, edits and back, label issues."
import io, json, os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from defects import BROKEN, LOOKS, NEAR, PLAIN, TURNED, distinct, found_copies, jpeg, plant, recall
from PIL import Image
from visionlab.catalog import similar
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError, ImageReadError, UnknownOptionError
from visionlab.catalog import doctor
from visionlab.catalog.issues import ISSUES, SEVERITIES
from visionlab.catalog.edits import ACTIONS
from visionlab.catalog.label_issues import label_issues
from visionlab.catalog.doctor import check
from visionlab.images.decode import decode, load_image
from visionlab.images.sizes import glance

HOSTILE = "<img src=x onerror=alert(1)>"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    "600 pictures, 25 of each trouble"
    root = tmp_path_factory.mktemp("planted")/"photos"
    truth = plant(root, 600, 25)
    return Catalog.from_folder(root), truth, check(Catalog.from_folder(root), workers=2)


@pytest.fixture
def pictures(): return list(distinct(12, seed=4))


def write(root, files):
    "Write {name: image or bytes} below root"
    for name, what in files.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(what if isinstance(what, bytes) else jpeg(what))
    return root


def small_set(root, pictures):
    "Twelve pictures in two classes and two splits"
    return write(root, {f"{'val' if i % 3 == 2 else 'train'}/{'ab'[i % 2]}/{i}.jpg": o for i, o in enumerate(pictures)})


def issues(report): return report.frame.groupby("issue")["path"].apply(list).to_dict()


# ---- what it finds

@pytest.mark.parametrize("kind", [*BROKEN, *LOOKS, *TURNED, *PLAIN])
def test_every_planted_trouble_is_found(planted, kind): assert recall(planted[2], planted[1])[kind] == 1


@pytest.mark.parametrize("kind", [*NEAR, *(f"leak_{o}" for o in NEAR)])
def test_nearly_all_near_duplicates_are_found(planted, kind): assert recall(planted[2], planted[1])[kind] >= .9


def test_copies_together(planted):
    hit, n, false = found_copies(planted[2], planted[1])
    assert hit/n >= .95 and len(false) <= .01*(hit + len(false)), (hit, n, false)


def test_leaks_come_first_and_name_the_held_out_image(planted):
    frame = planted[2].frame
    assert frame["issue"].iloc[0] == "leak"
    leaks = frame[frame["issue"] == "leak"]
    assert set(leaks["split"]) == {"val"} and (leaks["severity"] == "error").all()
    split = planted[0].frame["split"]
    assert set(split.loc[leaks["row"]]) == {"val"} and set(split.loc[leaks["other"]]) == {"train"}


def test_severities_are_in_order(planted):
    rank = planted[2].frame["severity"].map(SEVERITIES.index)
    assert rank.is_monotonic_increasing and set(planted[2].frame["issue"]) <= set(ISSUES)
    assert not planted[2].ok and sum(planted[2].counts.values()) == len(planted[2].frame)


def test_few_good_pictures_are_blamed(planted):
    _, truth, report = planted
    for kind in ("dark", "bright", "blurry", "odd_aspect"):
        blamed = set(report.frame.loc[report.frame["issue"] == kind, "path"]) - truth[kind]
        assert len(blamed) <= .02*len(report.catalog), (kind, sorted(blamed)[:5])


def test_report_does_not_depend_on_threads_or_row_order(planted):
    cat, _, report = planted
    again = check(cat, workers=1)
    pd.testing.assert_frame_equal(again.frame, report.frame)
    pd.testing.assert_frame_equal(again.pairs(), report.pairs())
    pd.testing.assert_frame_equal(again.edits(), report.edits())
    shuffled = check(replace(cat, frame=cat.frame.sample(frac=1, random_state=0)))
    pairs = lambda r: {(a, b) for a, b in zip(r.pairs()["path"], r.pairs()["other_path"])}
    assert issues(shuffled).keys() == issues(report).keys() and len(pairs(shuffled) ^ pairs(report)) <= 2


def test_mended_set_has_no_errors(planted):
    cat, _, report = planted
    assert check(cat.apply_edits(report.edits())).frame.query("severity == 'error'")["issue"].isin(["empty"]).all()      # empty files were never in


def test_near_off(planted, pictures, tmp_path):
    root = write(small_set(tmp_path, pictures), {"val/a/copy.jpg": jpeg(pictures[0], 60)})
    assert check(root).frame["issue"].tolist()[0] == "leak"
    assert "leak" not in issues(check(root, near=False))


# ---- reading

@pytest.mark.parametrize("size", [(150, 200), (375, 500)])
def test_a_glance_refuses_what_decoding_refuses(size):
    rng = np.random.default_rng(0)
    whole = jpeg(next(iter(distinct(1, size))))
    reasons = []
    for k in range(120):
        data = bytearray(whole[:int(rng.uniform(.05, 1)*len(whole))] if k % 2 else whole)
        if k % 2 == 0: data[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        found = []
        for read in (decode, glance):
            try: read(bytes(data)); found.append(None)
            except ImageReadError as e: found.append(e.reason)
        assert found[0] == found[1], (k, found)
        reasons.append(found[0])
    assert {"truncated", None} <= set(reasons)


def test_a_pipe_is_not_opened(tmp_path, pictures):
    root = small_set(tmp_path, pictures)
    cat = Catalog.from_folder(root)
    (root/"train/a/0.jpg").unlink()
    os.mkfifo(root/"train/a/0.jpg")
    assert issues(check(cat))["not_regular_file"] == ["train/a/0.jpg"]
    assert issues(check(root))["not_regular_file"] == ["train/a/0.jpg"]


def test_a_file_that_vanished_is_missing(tmp_path, pictures):
    cat = Catalog.from_folder(small_set(tmp_path, pictures))
    report = check(cat)
    (tmp_path/"train/a/0.jpg").unlink()
    assert issues(check(cat))["missing"] == ["train/a/0.jpg"]
    assert "no picture" in check(cat).thumbnails("missing").html and report._repr_html_()


def test_an_oversized_header_is_refused(tmp_path, pictures):
    buf = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buf, "PNG")
    root = write(small_set(tmp_path, pictures), {"train/a/bomb.png": buf.getvalue()})
    assert issues(check(root))["too_large"] == ["train/a/bomb.png"]


def test_images_in_memory():
    cat = Catalog.from_builtin("FashionSample")
    pixels = cat.pixels[:400].copy()
    cat = Catalog(cat.frame.iloc[:400].assign(split=["train"]*300 + ["test"]*100), cat.classes, source="some", pixels=pixels)
    pixels[[350, 20]], pixels[30] = pixels[[5, 10]], 0
    report = check(cat)
    exact = report.pairs().query("kind == 'exact'")
    assert {(350, 5), (20, 10)} <= set(zip(exact["row"], exact["other"]))
    assert 350 in set(report.frame.query("issue == 'leak'")["row"])
    assert len(report.pairs()) < 20 and "<img" in report._repr_html_()


def test_small_pictures_that_look_alike_are_no_copies():
    cat = Catalog.from_builtin("FashionSample")
    assert check(cat).pairs().empty
    pixels = np.concatenate([cat.pixels[:1000], (cat.pixels[:25]*.9).astype(np.uint8)])
    rows = pd.concat([cat.frame[:1000], cat.frame[:25].assign(split="test")], ignore_index=True)
    pairs = check(Catalog(rows, cat.classes, pixels=pixels)).pairs()
    assert set(zip(pairs["row"], pairs["other"])) == {(1000+i, i) for i in range(25)}


def test_images_from_a_reader(pictures):
    data = [jpeg(o) for o in pictures[:6]]
    data[5], data[4] = data[0], data[1][:900]
    frame = pd.DataFrame(dict(path=[f"shard/{i}" for i in range(6)], label=list("ababab"), split=["train"]*5 + ["val"]))
    report = check(Catalog(frame, ["a", "b"], source="shards", reader=data))
    assert issues(report)["leak"] == ["shard/5"] and issues(report)["truncated"] == ["shard/4"] and "<img" in report._repr_html_()


def test_arrays_of_any_kind_from_a_reader(pictures):
    x = np.asarray(pictures[0].convert("L"))
    data = [x, x.astype(np.uint16)*257, x/255., np.stack([x]*3), np.stack([x]*3 + [x*0 + 255], -1)]
    frame = pd.DataFrame(dict(path=list("12345"), label=list("abaab"), split=["train"]*5))
    report = check(Catalog(frame, ["a", "b"], source="arrays", reader=data))
    assert report.measures["reason"].isna().all() and len(report.thumbnails("two_labels").html) > 1000


def test_the_longer_name_is_the_copy(tmp_path, pictures):
    root = write(small_set(tmp_path, pictures), {"train/a/0 (1).jpg": jpeg(pictures[0]), "train/a/0 (2).jpg": jpeg(pictures[0])})
    report = check(root)
    assert sorted(issues(report)["duplicate"]) == ["train/a/0 (1).jpg", "train/a/0 (2).jpg"] == sorted(report.edits()["path"])


def test_nothing_to_look_at():
    report = check(Catalog(pd.DataFrame(dict(path=[])), ["a", "b"]))
    assert report.ok and "nothing to mend" in repr(report) and report.edits().empty and report._repr_html_()


def test_a_common_trouble_is_said_once(tmp_path, pictures):
    rng = np.random.default_rng(0)
    root = small_set(tmp_path, [LOOKS["dark"](o, rng) for o in pictures])
    found = issues(check(root))
    assert "dark" not in found and len(found["usual"]) >= 1


# ---- classes

def class_catalog(counts):
    "Make a catalog of files that do not exist, with {class: (train, val)} images"
    rows = [(f"{s}/{c}/{i}.jpg", c, s) for c, n in counts.items() for s, k in zip(("train", "val"), n) for i in range(k)]
    return Catalog(pd.DataFrame(rows, columns=["path", "label", "split"]), list(counts), root="/nowhere")


def test_class_troubles():
    frame = check(class_catalog({"Cat": (120, 3), "cat ": (8, 1), "cafe\u0301": (12, 1), "caf\u00e9": (12, 0), "rare_bird": (2, 1), "rare bird": (6, 1)})).frame
    said = frame.groupby("issue")["detail"].apply(" | ".join)
    assert said["similar_names"].count("different classes") == 3
    assert "'rare_bird' has 2" in said["few_images"] and "60 times" in said["imbalance"] and "caf\u00e9" in said["missing_class"]


def test_no_class_trouble_where_there_is_none(tmp_path, pictures):
    assert not {"similar_names", "imbalance", "few_images", "missing_class"} & set(issues(check(small_set(tmp_path, pictures*2))))


# ---- the report

def test_hostile_names(tmp_path, pictures):
    root = write(tmp_path/HOSTILE, {f"train/{HOSTILE}/{i}.jpg": o for i, o in enumerate(pictures[:6])})
    write(root, {f"train/b/{i}.jpg": o for i, o in enumerate(pictures[6:])} | {"train/b/x\x1b[31mred\n.jpg": b"x", "train/=1+1.txt": b"x"})
    (root/"train/b"/HOSTILE.replace("/", "")).with_suffix(".jpg").write_bytes(jpeg(pictures[0]))
    report = check(root)
    pages = [report._repr_html_(), *(report.thumbnails(o).html for o in issues(report)), report.save(tmp_path/"r.html").read_text()]
    assert not any("<img src=x" in o or "\x1b" in o for o in pages)
    assert "\x1b" not in repr(report) and repr(report).count("\n") == len(report.summary()) + 1
    report.save(tmp_path/"out")
    assert not any(o.startswith("=") for row in pd.read_csv(tmp_path/"out/issues.csv", dtype=str, keep_default_na=False).to_numpy() for o in row)


def test_saved_forms(planted, tmp_path):
    report = planted[2]
    report.save(tmp_path/"out")
    assert {o.name for o in (tmp_path/"out").iterdir()} == {"report.html", "report.json", "issues.csv", "edits.csv"}
    data = json.loads((tmp_path/"out/report.json").read_text())
    assert len(data["issues"]) == len(report.frame) and data["counts"] == report.counts and data["images"] == len(report.catalog)
    assert len(pd.read_csv(tmp_path/"out/issues.csv")) == len(report.frame)
    page = (tmp_path/"out/report.html").read_text()
    assert page.startswith("<!doctype html>") and "data:image/jpeg;base64," in page and str(report.catalog.root) not in page
    assert len(report._repr_html_()) < 150_000


def test_thumbnails_of_an_unknown_issue(planted):
    with pytest.raises(UnknownOptionError, match="Did you mean 'leak'"): planted[2].thumbnails("leaks")


# ---- edits

@pytest.fixture
def cat(tmp_path, pictures):
    cat = Catalog.from_folder(small_set(tmp_path/"set", pictures))
    n = len(cat)
    return replace(cat, frame=cat.frame.assign(number=range(n), share=np.linspace(0, 1, n), good=[i % 2 == 0 for i in range(n)], day=pd.date_range("2026-01-01", periods=n)))


EDITS = [dict(path="train/a/0.jpg", action="exclude", note="dull"), dict(path="train/b/1.jpg", action="relabel", value="a"), dict(path="train/a/4.jpg", action="move", value="test"),
         dict(path="val/b/5.jpg", action="exclude"), dict(path="train/b/3.jpg", action="relabel", value="a", note="seen"), dict(path="train/b/3.jpg", action="exclude")]


def same(a, b):
    pd.testing.assert_frame_equal(a.frame, b.frame)
    pd.testing.assert_frame_equal(a.skipped, b.skipped)
    assert a.classes == b.classes and a.info == b.info


def test_edits_and_back(cat):
    files = {p: p.read_bytes() for p in cat.root.rglob("*.jpg")}
    before = cat.frame.copy()
    edited = cat.apply_edits(EDITS)
    assert edited.frame.set_index("path").loc[["train/b/1.jpg", "train/a/4.jpg"], ["label", "split"]].to_numpy().tolist() == [["a", "train"], ["a", "test"]]
    assert edited.skipped["reason"].tolist() == ["excluded: dull", "excluded", "excluded"] and len(edited) == len(cat) - 3
    assert edited.classes == cat.classes and len(edited.edit_log) == len(EDITS)
    pd.testing.assert_frame_equal(cat.frame, before)
    same(edited.revert_edits(), cat)
    assert {p: p.read_bytes() for p in cat.root.rglob("*.jpg")} == files


def test_edits_in_two_calls_are_taken_back_one_by_one(cat):
    one = cat.apply_edits(EDITS[:3])
    two = one.apply_edits(EDITS[3:])
    same(two.revert_edits(1), one)
    same(two.revert_edits(2), cat)
    same(two.revert_edits(), cat)
    with pytest.raises(ConfigError, match="edits were made 2 times"): two.revert_edits(3)


def test_edits_survive_saving(cat, tmp_path):
    cat.apply_edits(EDITS[:3]).apply_edits(EDITS[3:]).save(tmp_path/"saved")
    back = Catalog.load(tmp_path/"saved")
    assert len(back.edit_log) == len(EDITS)
    pd.testing.assert_frame_equal(back.revert_edits().frame, cat.frame, check_dtype=False)


@pytest.mark.parametrize("sep,bom", [(",", False), (";", True), ("\t", False)])
def test_edits_from_csv(cat, tmp_path, sep, bom):
    pd.DataFrame(EDITS).to_csv(tmp_path/"edits.csv", index=False, sep=sep, encoding="utf-8-sig" if bom else "utf-8")
    same(cat.apply_edits(tmp_path/"edits.csv").revert_edits(), cat)
    pd.testing.assert_frame_equal(cat.apply_edits(tmp_path/"edits.csv").frame, cat.apply_edits(EDITS).frame)


def test_proposed_edits_round_trip_through_csv(planted, tmp_path):
    cat, _, report = planted
    report.save(tmp_path)
    a, b = cat.apply_edits(tmp_path/"edits.csv"), cat.apply_edits(report.edits())
    pd.testing.assert_frame_equal(a.frame, b.frame)
    assert len(a) == len(cat) - len(report.edits())
    pd.testing.assert_frame_equal(a.revert_edits().frame, cat.frame)


def test_all_wrong_edits_are_named_and_none_is_made(cat):
    wrong = [dict(path="nowhere.jpg", action="exclude"), dict(path="train/a/0.jpg", action="relabel", value="A"), dict(path="train/a/0.jpg", action="move", value="valid"),
             dict(path="train/a/0.jpg", action="delete"), dict(path="train/a/0.jpg", action="relabel")]
    with pytest.raises(DataError) as e: cat.apply_edits([*EDITS, *wrong])
    assert [n for n, _, _ in e.value.context["edits"]] == [7, 8, 9, 10, 11] and str(e.value).count("\n") == 2
    text = str(e.value)
    assert all(o in text for o in ("5 of 11 edits", "no such image", "did you mean 'a'?", "did you mean 'val'?", *ACTIONS))


def test_no_edits(cat):
    assert cat.apply_edits([]) is cat
    assert cat.apply_edits(pd.DataFrame(columns=["path", "action"])) is cat
    with pytest.raises(DataError, match="cannot be read"): cat.apply_edits("no such file.csv")


def test_edits_of_several_labels():
    frame = pd.DataFrame(dict(path=["1", "2"], label=[("a",), ("a", "b")], split=["train"]*2))
    cat = Catalog(frame, ["a", "b"], task="multilabel")
    edited = cat.apply_edits([dict(path="1", action="relabel", value='["b", "a"]'), dict(path="2", action="relabel", value=["b"])])
    assert edited.frame["label"].tolist() == [("b", "a"), ("b",)]
    same(edited.revert_edits(), cat)
    with pytest.raises(DataError, match="'c' is unknown"): cat.apply_edits([dict(path="1", action="relabel", value=["c"])])


def test_one_of_two_rows_of_a_file():
    cat = Catalog(pd.DataFrame(dict(path=["1.jpg", "1.jpg"], label=["a", "a"], split=["train"]*2)), ["a", "b"])
    assert cat.apply_edits([dict(path="1.jpg", action="exclude", row=1)]).frame.index.tolist() == [0]
    assert len(cat.apply_edits([dict(path="1.jpg", action="exclude")])) == 0


# ---- labels

def model_like(truth, n_classes, rng, sharp=4.):
    "Make probabilities as of a good model, surely wrong once in a hundred"
    seen = np.where(rng.uniform(size=len(truth)) < .99, truth, rng.integers(0, n_classes, len(truth)))
    logits = rng.normal(size=(len(truth), n_classes))
    logits[np.arange(len(truth)), seen] += rng.gamma(sharp, 1., len(truth))
    e = np.exp(logits)
    return e/e.sum(1, keepdims=True)


def test_planted_label_errors_are_ranked_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 10, 5000)
    probs = model_like(truth, 10, rng)
    wrong = rng.choice(5000, 250, replace=False)
    noisy = truth.copy()
    noisy[wrong] = (truth[wrong] + rng.integers(1, 10, 250)) % 10
    found = label_issues(noisy, probs)
    assert np.isin(found["row"].head(100), wrong).mean() >= .8
    assert np.isin(wrong, found["row"]).mean() > .5 and found["row"].is_unique
    assert np.isin(found["row"], wrong).mean() > .4


def test_label_issues_are_edits(tmp_path):
    cat = Catalog.from_builtin("FashionSample")
    test = cat.subset("test")
    truth = test.targets()
    probs = np.full((len(truth), 10), .01)
    probs[np.arange(len(truth)), truth] = .91
    wrong = test.frame.index[[3, 500]]
    labels = test.frame["label"].copy()
    labels[wrong] = ["Bag", "Bag"]
    cat = replace(cat, frame=cat.frame.assign(label=cat.frame["label"].where(~cat.frame.index.isin(wrong), "Bag")))
    found = label_issues(cat, probs, split="test")
    assert set(found["row"]) == {i for i in wrong if test.frame.at[i, "label"] != "Bag"}
    mended = cat.apply_edits(found)
    assert mended.targets("test").tolist() == truth.tolist()


@pytest.mark.parametrize("probs,match", [(np.ones((3, 2))/2, "4 labels"), (np.ones((4, 2)), "no probabilities"), (np.full((4, 2), np.nan), "no probabilities"),
                                         (np.ones((4, 1)), "no column"), (np.ones(4), "4 labels")])
def test_wrong_probabilities(probs, match):
    with pytest.raises(ConfigError, match=match): label_issues([0, 1, 0, -1], probs)


def test_unlabelled_rows_and_absent_classes_are_no_suspects():
    probs = np.array([[.9, .1, 0], [.1, .9, 0], [.2, .8, 0], [0, 0, 1.]])
    assert label_issues([0, 1, -1, -1], probs).empty


# ---- similar by embedding

def colours(images):
    "Count colours: what turning and mirroring leave as it is"
    return np.stack([np.sqrt(np.histogramdd(o.reshape(-1, 3), 10, [(0, 256)]*3)[0].ravel()/o.size) for o in images])


@pytest.fixture
def turned(tmp_path, pictures):
    "Eleven pictures of train (the twelfth is cut from the same photo as another, and has its colours), a mirrored and a turned one again in val, one turned in train, one mirrored under another label, an identical one"
    a = [np.asarray(o) for o in pictures]
    more = {"val/a/mirrored.jpg": a[0][:, ::-1], "val/a/turned.jpg": np.rot90(a[2]), "train/a/turned again.jpg": np.rot90(a[4]), "train/b/other.jpg": a[6][:, ::-1]}
    files = {f"train/{'ab'[i % 2]}/{i}.jpg": Image.fromarray(o) for i, o in enumerate(a) if i != 7} | {k: Image.fromarray(np.ascontiguousarray(o)) for k, o in more.items()}
    root = write(tmp_path, files)
    (root/"train/a/8 (1).jpg").write_bytes((root/"train/a/8.jpg").read_bytes())
    (root/"train/a/broken.jpg").write_bytes(b"no picture at all")
    return Catalog.from_folder(root)


TURNED_PAIRS = {("val/a/mirrored.jpg", "train/a/0.jpg"), ("val/a/turned.jpg", "train/a/2.jpg"), ("train/a/turned again.jpg", "train/a/4.jpg"), ("train/b/other.jpg", "train/a/6.jpg")}


def named(report, kind="similar"):
    "List pairs of a kind by their paths"
    return {(o.path, o.other_path) for o in report.copies[report.copies["kind"] == kind].itertuples()}


def array_of(cat, how=colours):
    "Embed each row of a catalog; NaN where it cannot be read"
    def one(i):
        try: return how([load_image(cat.sources[i])])[0]
        except ImageReadError: return None
    found = [one(i) for i in cat.frame.index]
    return np.stack([np.full(1000, np.nan) if o is None else o for o in found])


def test_turned_and_mirrored_copies_are_similar(turned):
    plain, report = check(turned), check(turned, embeddings=colours)
    assert not named(plain, "near") & TURNED_PAIRS and named(plain) == set()
    assert named(report) == TURNED_PAIRS
    found = report.frame[report.frame["issue"] == "similar"].set_index("path")
    assert found["severity"].to_dict() == {"val/a/mirrored.jpg": "warning", "val/a/turned.jpg": "warning", "train/b/other.jpg": "warning", "train/a/turned again.jpg": "info"}
    assert "in train" in found.at["val/a/turned.jpg", "detail"] and "there 'a', here 'b'" in found.at["train/b/other.jpg", "detail"]
    assert report.frame["severity"].map(SEVERITIES.index).is_monotonic_increasing
    assert report.summary().set_index("issue").at["similar", "severity"] == "warning"
    assert report.edits().equals(plain.edits())      # a hint, so nothing is left out for it
    assert "similar" in repr(report) and "<img" in report.thumbnails("similar").html


def test_array_dict_and_function_agree_in_any_row_order(turned):
    report, x = check(turned, embeddings=colours), array_of(turned)
    for given in (x, torch.from_numpy(x), x.tolist(), dict(zip(turned.frame.index, x))):
        pd.testing.assert_frame_equal(check(turned, embeddings=given).frame, report.frame)
    mixed = replace(turned, frame=turned.frame.sample(frac=1, random_state=1))
    assert named(check(mixed, embeddings=array_of(mixed))) == TURNED_PAIRS
    assert named(check(mixed, embeddings=dict(zip(turned.frame.index, x)))) == TURNED_PAIRS


def test_pairs_known_by_pixels_are_not_repeated(planted):
    cat, _, report = planted
    some = np.unique(report.copies.query("kind == 'near'")[["row", "other"]].to_numpy()[:20])
    cat = replace(cat, frame=cat.frame.loc[some])
    both = check(cat, embeddings=np.ones((len(cat), 3)))      # everything is like everything
    pairs = [frozenset(o) for o in both.copies[["row", "other"]].to_numpy().tolist()]
    assert len(set(pairs)) == len(pairs) and {"near", "similar"} <= set(both.copies["kind"])
    pd.testing.assert_frame_equal(both.copies[both.copies["kind"] != "similar"], check(cat).copies)


def test_blocks_do_not_matter():
    x = np.random.default_rng(3).normal(size=(400, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cos = x.astype(float) @ x.astype(float).T
    a, b = np.nonzero(np.triu(cos > .8, 1))
    known = np.array([a[0]*400 + b[0]])
    found = [similar._closest(x, .8, known, block) for block in (1, 4000, 10**7)]
    for pairs, score, missed in found:
        assert {*map(tuple, pairs.tolist())} == {*zip(a[1:].tolist(), b[1:].tolist())} and missed == 0
        assert np.array_equal(pairs, found[0][0]) and np.array_equal(score, found[0][1]) and (np.diff(score) < 1e-6).all()
    for block in (1, 4000, 10**7):
        pairs, score, missed = similar._closest(x, .8, known, block, most=20)
        assert np.array_equal(pairs, found[0][0][:20]) and missed == len(a) - 21


def test_very_many_similar_pairs_are_capped_with_a_note(turned, monkeypatch):
    monkeypatch.setattr(similar._closest, "__defaults__", (*similar._closest.__defaults__[:-1], 5))
    report = check(turned, embeddings=lambda images: np.ones((len(images), 2)))
    assert len(named(report)) == 5
    assert "more pairs are similar" in report.frame.set_index("issue").at["not_compared", "detail"]


def test_a_vector_of_zeros_is_like_none(turned): assert named(check(turned, embeddings=np.zeros((len(turned), 4)))) == set()


@pytest.mark.parametrize("wrong,match", [
    (lambda n: np.ones((n-1, 3)), "embeddings"), (lambda n: np.ones(n), "shape"), (lambda n: np.full((n, 2), np.nan), "NaN"), (lambda n: np.full((n, 2), np.inf), "NaN or infinity"),
    (lambda n: [["a", "b"]]*n, "no array"), (lambda n: [[1.]]*(n-1) + [[1., 2.]], "no array"), (lambda n: {0: [1., 2.]}, "have no embedding"), (lambda n: lambda images: np.ones((1, 2)), "made"),
    (lambda n: lambda images: None, "no array|shape")])
def test_wrong_embeddings(turned, wrong, match):
    with pytest.raises(ConfigError, match=match): check(turned, embeddings=wrong(len(turned)))


@pytest.mark.parametrize("similar", [0, 1, 1.5, "much", None])
def test_wrong_threshold(turned, similar):
    with pytest.raises(ConfigError, match="cosine"): check(turned, embeddings=colours, similar=similar)


class Colours(torch.nn.Module):
    "Features that turning and mirroring leave as they are"
    def __init__(self):
        super().__init__()
        self.drop, self.modes = torch.nn.Dropout(), []
    def features(self, x):
        self.modes.append(self.drop.training)
        return torch.stack([torch.histc(o, 32, -3, 3).sqrt() for o in x.flatten(0, 1)]).reshape(len(x), -1)


def test_a_data_module_embeds_what_the_model_sees(turned):
    from visionlab.data.module import ImageDataModule
    dm = ImageDataModule(turned, image_size=64, resize="squash", val_split=0, num_workers=0)
    model = Colours()
    x = dm.embed(model)
    assert x.shape == (len(turned), 96) and not any(model.modes) and model.training and model.drop.training
    assert not x[turned.frame["path"] == "train/a/broken.jpg"].any()
    assert TURNED_PAIRS <= named(dm.check(embed=model, similar=.99, progress=False))
    assert dm.check(progress=False).frame.equals(check(turned).frame)
    with pytest.raises(ConfigError, match="no features"): dm.check(embed=3)


def test_an_image_classifier_embeds(turned):
    from visionlab.data.module import ImageDataModule
    from visionlab.models.classifier import ImageClassifier
    model = ImageClassifier("resnet9", 2)
    assert ImageDataModule(turned, image_size=32, val_split=0, num_workers=0).embed(model).shape == (len(turned), 128)
    with pytest.raises(ConfigError, match="channels"): ImageDataModule(turned, image_size=32, val_split=0).embed(ImageClassifier("resnet9", 2, in_chans=1))


def test_without_the_internet_a_model_is_asked_for(turned, monkeypatch):
    import timm
    from visionlab.data.module import ImageDataModule
    def refuse(*args, **kwargs): raise OSError("no network")
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match="cannot be had"): ImageDataModule(turned, val_split=0).check(embed=True)


# ---- one background, two subjects

def scene(subject, seed=0):
    "Make a detailed picture with a small subject before it."
    rng = np.random.default_rng(seed)
    ground = np.asarray(Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((240, 240), Image.Resampling.BICUBIC)).copy()
    ground[100:118, 110:128] = dict(nut=(200, 40, 30), bolt=(30, 60, 200), none=(0, 0, 0))[subject]
    return Image.fromarray(ground)


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "val")])
def test_two_subjects_before_one_background_are_to_be_looked_at(tmp_path, splits):
    for k, (subject, split) in enumerate(zip(("nut", "bolt"), splits)):
        (tmp_path/split/subject).mkdir(parents=True)
        scene(subject).save(tmp_path/split/subject/"1.jpg", quality=92)
        for i in range(6):
            (tmp_path/"train"/subject).mkdir(parents=True, exist_ok=True)
            scene(subject, seed=10 + 10*k + i).save(tmp_path/"train"/subject/f"other{i}.jpg")
    report = check(tmp_path, progress=False, workers=1)
    found = report.frame.set_index("issue")
    assert "near" in set(report.copies["kind"])
    assert not {"two_labels", "leak"} & set(found.index) and found.loc["look_alike", "severity"] == "warning"
    assert "here 'nut'" in found.loc["look_alike", "detail"] or "here 'bolt'" in found.loc["look_alike", "detail"]
    assert not len(report.edits())


@pytest.mark.parametrize("format", ["bmp", "png", "tif"])
def test_the_same_pixels_in_another_file_have_one_label(tmp_path, format):
    for label in ("nut", "bolt"):
        (tmp_path/label).mkdir()
        for i in range(5): scene(label, seed=20 + i + 10*(label == "nut")).save(tmp_path/label/f"{i}.png")
    Image.open(tmp_path/"nut"/"0.png").save(tmp_path/"bolt"/f"copy.{format}", **(dict(compress_level=1) if format == "png" else {}))
    report = check(tmp_path, progress=False, workers=1)
    issue = report.frame[report.frame["issue"] == "two_labels"]
    assert list(issue["severity"]) == ["error"] and "same pixels" in issue.iloc[0]["detail"]
    assert {Path(o).name for o in report.edits()["path"]} == {"0.png", f"copy.{format}"} and not report.ok
