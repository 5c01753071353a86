"The data doctor: what it must find, what it must not invent, hostile names, edits and back, label issues."
import io, json, os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from defects import BROKEN, LOOKS, NEAR, PLAIN, TURNED, distinct, found_copies, jpeg, plant, recall
from PIL import Image
from visionlab.catalog import Catalog
from visionlab.core import ConfigError, DataError, ImageReadError, UnknownOptionError
from visionlab.doctor import ACTIONS, ISSUES, SEVERITIES, check, label_issues
from visionlab.items import decode, glance

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
