"Decisions about images without a browser: the file, its edges, and the views whose buttons write it."
import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, DataError, UnknownOptionError, VisionlabError
from visionlab.data.module import ImageDataModule
from visionlab.widgets.decisions import Decisions, edits_path
from visionlab.widgets.label_cleaner import LabelCleaner
from visionlab.widgets.doctor_view import DataDoctor
from visionlab.catalog.doctor import check
from visionlab.interpret.interpretation import Interpretation


def catalog(n=12, several=False, names=("a", "b", "=c, d")):
    "A catalog of noise in memory."
    names = list(names)
    labels = [tuple(names[:1 + i % 3]) if several else names[i % 3] for i in range(n)]
    frame = pd.DataFrame(dict(path=[f"{'train' if i < n-4 else 'val'}/{i:02}.png" for i in range(n)], label=pd.Series(labels, dtype=object), split=["train"]*(n-4) + ["val"]*4))
    return Catalog(frame, names, source="my photos/2026", pixels=np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8), **(dict(task="multilabel") if several else {}))


def answers(cat, several=False):
    "Answers that doubt the labels of images 1, 4 and 6."
    y = torch.as_tensor(cat.targets())
    n = len(cat)
    wrong = [1, 4, 6]
    if several:
        probs = torch.where(y > .5, .9, .1)
        probs[wrong, 2] = 1 - probs[wrong, 2]
        losses = torch.nn.functional.binary_cross_entropy(probs, y, reduction="none").mean(1)
    else:
        said = y.clone(); said[wrong] = (said[wrong] + 1) % 3
        probs = torch.full((n, 3), .05); probs[torch.arange(n), said] = .9
        probs[wrong[0]] += torch.tensor([0., 0, .06]); probs /= probs.sum(1, keepdim=True)
        losses = -probs.gather(1, y[:, None])[:, 0].log()
    return Interpretation(probs, y, losses, cat.classes, cat.frame["path"].tolist(), cat.frame.index.to_numpy(), cat.pixels.__getitem__, "multilabel" if several else "multiclass")


@pytest.fixture
def cat(): return catalog()


# ---- the file

def test_file_appears_with_the_first_decision(cat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Decisions(cat)
    assert edits_path(cat).name == "2026-edits.csv" and not list(tmp_path.iterdir()) and len(mine) == 0 and not len(mine.frame)
    mine.decide(3, "exclude", note="=HYPERLINK(1)")
    assert [o.name for o in tmp_path.iterdir()] == ["2026-edits.csv"]
    assert Decisions(cat).frame.to_dict("records") == mine.frame.to_dict("records")
    assert mine.frame["note"][0] == "=HYPERLINK(1)" and b",=HYPER" not in (tmp_path/"2026-edits.csv").read_bytes()      # no formula for a spreadsheet


def test_apply_and_revert(cat, tmp_path):
    mine = Decisions(cat, tmp_path/"e.csv")
    mine.decide(0, "relabel", "=c, d"); mine.decide(1, "exclude"); mine.decide(2, "keep"); mine.decide(3, "move", "val")
    for got in (mine.apply(), cat.apply_edits(tmp_path/"e.csv")):
        assert got.frame.at[0, "label"] == "=c, d" and 1 not in got.frame.index and got.frame.at[3, "split"] == "val" and len(got) == 11
        pd.testing.assert_frame_equal(got.revert_edits().frame, cat.frame)
    assert Decisions(mine.apply(), tmp_path/"e.csv").frame["row"].tolist() == [0, 2, 3]        # what is left out is no longer asked about, and stays in the file
    Decisions(mine.apply(), tmp_path/"e.csv").decide(5, "keep")
    assert len(Decisions(cat, tmp_path/"e.csv")) == 5


def test_the_last_decision_counts_and_steps_are_undone(cat, tmp_path):
    mine = Decisions(cat, tmp_path/"e.csv")
    mine.decide(0, "keep"); mine.decide(0, "exclude"); mine.decide([0, 4], "relabel", "b")
    assert mine.frame["action"].tolist() == ["relabel"]*2
    assert sorted(mine.undo()) == [0, 4] and mine.frame["action"].tolist() == ["exclude"]
    mine.forget(0)
    assert len(mine) == 0
    assert mine.undo() == [0] and mine[0][1] == "exclude"
    mine.undo(); mine.undo()
    assert len(mine) == 0 and mine.undo() == []


def test_two_views_of_one_file_never_lose_each_others_work(cat, tmp_path):
    one, two = (Decisions(cat, tmp_path/"e.csv") for _ in range(2))
    for i in range(0, 8, 2): one.decide(i, "keep"); two.decide(i+1, "exclude")
    one.undo()
    assert sorted(Decisions(cat, tmp_path/"e.csv").frame["row"]) == [0, 1, 2, 3, 4, 5, 7] and len(one) == len(two) == 7


@pytest.mark.parametrize("action,value,text", [("relabel", "aa", "did you mean 'a'"), ("delete", None, "keep"), ("move", "vall", "val"), ("relabel", None, "unknown")])
def test_slips_are_refused_and_nothing_is_written(cat, tmp_path, action, value, text):
    mine = Decisions(cat, tmp_path/"e.csv")
    with pytest.raises(ConfigError, match=text): mine.decide(0, action, value)
    assert not mine.path.exists() and len(mine) == 0


def test_what_cannot_be_written_was_not_decided(cat, tmp_path):
    (tmp_path/"file").write_text("")
    mine = Decisions(cat, tmp_path/"file"/"e.csv")
    with pytest.raises(VisionlabError, match="could not be written"): mine.decide(0, "keep")
    assert len(mine) == 0


def test_a_file_from_a_spreadsheet_is_read(cat, tmp_path):
    (tmp_path/"e.csv").write_text("path;action;value;note\ntrain/02.png;relabel;a;\ngone.png;exclude;;\n", encoding="utf-8-sig")
    mine = Decisions(cat, tmp_path/"e.csv")
    assert 2 in mine and mine.frame["value"].tolist() == ["a"]
    mine.decide(3, "keep")
    assert "gone.png" in (tmp_path/"e.csv").read_text() and mine.apply().frame.at[2, "label"] == "a"
    mine.decide(2, "exclude")                                   # replaces the line without a number
    assert sum(o["path"] == "train/02.png" for o in csv.DictReader((tmp_path/"e.csv").open())) == 1
    mine.forget(2)
    assert 2 not in mine


# ---- whose decisions they are

def shades(root, n=6, more=0):
    "Write a folder with two classes of pictures that all differ."
    from PIL import Image
    for k, label in enumerate(("cat", "dog")):
        (root/label).mkdir(parents=True)
        for i in range(n): Image.fromarray(np.random.default_rng([k, i, more]).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root/label/f"{label}_{i:03}.png")
    return root


def another(place):
    "Save one more picture."
    from PIL import Image
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(place)


def said(decisions):
    "What is decided, by path."
    return {o.path: (o.action, o.value) for o in decisions.frame.itertuples()}


THREE = {"cat/cat_003.png": ("exclude", None), "cat/cat_005.png": ("relabel", "dog"), "dog/dog_002.png": ("exclude", None)}


def decided(root, path, data=None):
    "Decide on three images of a folder."
    cat = Catalog.from_folder(root)
    mine = Decisions(data or cat, path)
    mine.decide([3, 8], "exclude")
    mine.decide(5, "relabel", "dog")
    assert said(mine) == THREE
    return cat


def applied(cat, path):
    "What a catalog is like with the edits of a file: which images it has, and how one is labelled."
    frame = cat.apply_edits(path).frame
    return set(frame["path"]), frame.set_index("path").at["cat/cat_005.png", "label"]


@pytest.mark.parametrize("form", ["signed", "old"])
def test_decisions_survive_added_and_removed_files(tmp_path, recwarn, form):
    root, file = shades(tmp_path/"data"), tmp_path/"e.csv"
    decided(root, file)
    if form == "old": pd.read_csv(file).drop(columns=["content", "data"]).to_csv(file, index=False)
    another(root/"cat/a_first.png")
    cat = Catalog.from_folder(root)
    again = Decisions(cat, file)
    assert said(again) == THREE and applied(cat, file) == (set(cat.frame["path"]) - {"cat/cat_003.png", "dog/dog_002.png"}, "dog")
    row = cat.frame.index[cat.frame["path"] == "cat/cat_003.png"][0]
    again.decide(row, "keep")                                    # takes the place of the old line
    assert len(again) == 3 and len(pd.read_csv(file)) == 3
    assert again.undo() == [row] and said(Decisions(cat, file)) == THREE
    (root/"cat/a_first.png").unlink(); (root/"cat/cat_000.png").unlink()
    cat = Catalog.from_folder(root)
    assert said(Decisions(cat, file)) == THREE and applied(cat, file)[1] == "dog" and not len(recwarn)


def test_decisions_survive_a_reordered_table(tmp_path, recwarn):
    root, file = shades(tmp_path/"data"), tmp_path/"e.csv"
    rows = [f"{o.parent.name}/{o.name},{o.parent.name}" for o in sorted(root.glob("*/*.png"))]
    read = lambda part: ((root/"t.csv").write_text("\n".join(["image,label", *part])), Catalog.from_csv(root/"t.csv"))[1]
    decided(root, file, read(rows))
    for part in (rows[::-1], rows[3:] + rows[:3]): assert said(Decisions(read(part), file)) == THREE and applied(read(part), file)[1] == "dog"
    assert not len(recwarn)


def test_the_number_tells_rows_of_one_file_apart(tmp_path):
    root, file = shades(tmp_path/"data"), tmp_path/"e.csv"
    rows = ["cat/cat_001.png,cat", "cat/cat_002.png,cat", "cat/cat_001.png,cat", "dog/dog_001.png,dog"]
    read = lambda part: ((root/"t.csv").write_text("\n".join(["image,label", *part])), Catalog.from_csv(root/"t.csv"))[1]
    Decisions(read(rows), file).decide(2, "exclude")
    assert Decisions(read(rows), file).frame["row"].tolist() == [2] and read(rows).apply_edits(file).frame.index.tolist() == [0, 1, 3]
    more = ["dog/dog_002.png,dog", *rows]
    assert Decisions(read(more), file).frame["row"].tolist() == [3] and read(more).apply_edits(file).frame.index.tolist() == [0, 1, 2, 4]


def test_what_is_not_found_again_is_counted_aloud(tmp_path):
    root, file = shades(tmp_path/"data"), tmp_path/"e.csv"
    cat = decided(root, file)
    (root/"cat/cat_003.png").unlink()
    another(root/"dog/dog_002.png")                              # another picture under an old name
    less = Catalog.from_folder(root)
    with pytest.warns(UserWarning, match="e.csv: 2 of 3 decisions not found again.*cat_003.png' .no such image.*dog_002.png' .another picture"): mine = Decisions(less, file)
    assert said(mine) == {"cat/cat_005.png": ("relabel", "dog")} and "2 of 3 decisions not found again" in repr(mine) and len(pd.read_csv(file)) == 3
    with pytest.warns(UserWarning, match="2 of 3 edits not found again"): frame = less.apply_edits(file).frame
    assert len(frame) == 11 and frame.set_index("path").at["cat/cat_005.png", "label"] == "dog"
    dm = ImageDataModule(less, image_size=8, batch_size=4, num_workers=0, val_split=.2)
    from visionlab.interpret.interpretation import interpret_probs
    with pytest.warns(UserWarning, match="not found again"): cleaner = LabelCleaner(dm, interpret_probs(dm.catalog, np.full((11, 2), .5)), path=file)
    assert "1 of 11 decided" in cleaner.to_html() and "2 of 3 decisions not found again" in cleaner.to_html()
    assert len(cat) == 12


def test_an_image_left_out_is_not_missed(tmp_path, recwarn):
    cat = decided(shades(tmp_path/"data"), tmp_path/"e.csv")
    mended = cat.apply_edits(tmp_path/"e.csv")
    assert len(Decisions(mended, tmp_path/"e.csv")) == 1 and len(mended.apply_edits(tmp_path/"e.csv")) == 10 and not len(recwarn)


@pytest.mark.parametrize("same", [False, True])
def test_decisions_stay_with_their_data_set(tmp_path, monkeypatch, same):
    monkeypatch.chdir(tmp_path)
    a, b = (Catalog.from_folder(shades(tmp_path/o/"data", 4, 0 if same else i)) for i, o in enumerate("ab"))
    Decisions(a).decide([0, 1], "exclude")
    (file,) = tmp_path.glob("*.csv")
    for refused in (lambda: Decisions(b), lambda: b.apply_edits(file), lambda: LabelCleaner(b, pd.DataFrame(dict(suggested=["dog"], p_label=[.1], p_suggested=[.9]), index=[0])),
                    lambda: DataDoctor(check(b, progress=False, workers=1))):
        with pytest.raises(DataError, match="of another data set"): refused()
    assert len(Decisions(a).apply()) == 6 and len(Decisions(b, "b.csv").apply()) == 8


def test_tables_of_one_name_are_two_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = (shades(tmp_path/o, 4, i) for i, o in enumerate("ab"))
    for root in (a, b): (root/"train.csv").write_text("\n".join(["image,label", *(f"{o.parent.name}/{o.name},{o.parent.name}" for o in sorted(root.glob("*/*.png")))]))
    Decisions(Catalog.from_csv(a/"train.csv")).decide(0, "exclude")
    with pytest.raises(DataError, match="of another data set"): Decisions(Catalog.from_csv(b/"train.csv"))


def test_data_that_moved_keep_their_decisions(tmp_path, monkeypatch, recwarn):
    root, file = shades(tmp_path/"one"/"data"), tmp_path/"e.csv"
    decided(root, file)
    (tmp_path/"one").rename(tmp_path/"two")                      # the same pictures elsewhere
    assert said(Decisions(Catalog.from_folder(tmp_path/"two"/"data"), file)) == THREE
    (tmp_path/"two").rename(tmp_path/"three")
    shades(tmp_path/"four"/"data", more=1)                       # other pictures of the same names
    with pytest.raises(DataError, match="of another data set"): Decisions(Catalog.from_folder(tmp_path/"four"/"data"), file)
    project = tmp_path/"project"
    (tmp_path/"three").rename(project)
    monkeypatch.chdir(project)
    decided(project/"data", project/"mine.csv")
    assert str(tmp_path) not in (project/"mine.csv").read_text()       # within a project no absolute path is noted
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path/"moved")
    assert said(Decisions(Catalog.from_folder(tmp_path/"moved/data"), tmp_path/"moved/mine.csv")) == THREE and not len(recwarn)


def test_a_wider_folder_keeps_the_decisions_of_a_part(tmp_path, recwarn):
    shades(tmp_path/"data"/"train")
    frame = lambda part: Catalog.from_frame(pd.DataFrame([dict(path=str(o), label=o.parent.name) for o in sorted((tmp_path/"data").glob(part))]))
    decided(tmp_path/"data"/"train", tmp_path/"e.csv", frame("*/*/*.png"))
    another(tmp_path/"data"/"dog.png")
    (tmp_path/"data"/"dog").mkdir(); (tmp_path/"data"/"dog.png").rename(tmp_path/"data"/"dog"/"new.png")
    wide = frame("**/*.png")
    assert wide.root.name == "data"
    assert said(Decisions(wide, tmp_path/"e.csv")) == {f"train/{k}": v for k, v in THREE.items()} and not len(recwarn)


def test_edits_of_a_report_know_their_data_set(tmp_path):
    a, b = (shades(tmp_path/o/"data", 4, i) for i, o in enumerate("ab"))
    for root in (a, b): (root/"dog/copy.png").write_bytes((root/"dog/dog_001.png").read_bytes())
    check(a, progress=False, workers=1).save(tmp_path/"out")
    another(a/"cat/a_first.png")
    assert len(Catalog.from_folder(a).apply_edits(tmp_path/"out/edits.csv")) == 9
    with pytest.raises(DataError, match="of another data set"): Catalog.from_folder(b).apply_edits(tmp_path/"out/edits.csv")


def test_built_in_images_are_told_by_content(tmp_path):
    cat = Catalog.from_builtin("FashionSample")
    Decisions(cat, tmp_path/"e.csv").decide([5, 9], "exclude")
    assert Decisions(replace(cat, frame=cat.frame.iloc[::-1]), tmp_path/"e.csv").frame["path"].tolist() == cat.frame["path"][[9, 5]].tolist()
    other = cat.pixels.copy(); other[5] += 1
    with pytest.warns(UserWarning, match="1 of 2 decisions not found again"): assert len(Decisions(replace(cat, pixels=other), tmp_path/"e.csv")) == 1


# ---- labels

@pytest.mark.parametrize("by", ["confident", "loss", "margin"])
def test_doubted_labels_come_first(cat, tmp_path, by):
    cleaner = LabelCleaner(cat, answers(cat), by, tmp_path/"e.csv")
    assert set(cleaner.rows[:3]) == {1, 4, 6} and len(cleaner.rows) == 12
    assert cleaner.suggestions(4)[0] == ("=c, d", pytest.approx(.9, abs=1e-3))
    cleaner.suspects = "suspects"
    assert set(cleaner.rows) == {1, 4, 6}
    with pytest.raises(UnknownOptionError): LabelCleaner(cat, answers(cat), "worst")


def test_filters_and_progress(cat, tmp_path):
    cleaner = LabelCleaner(cat, answers(cat), path=tmp_path/"e.csv")
    cleaner.label = "a"
    assert set(cat.frame.loc[cleaner.rows, "label"]) == {"a"}
    cleaner.split = "val"
    assert set(cleaner.rows) == {9}
    cleaner.keep()
    assert cleaner.progress == (1, 12)
    cleaner.split, cleaner.label = "", ""
    cleaner.status = "open"; assert 9 not in cleaner.rows and len(cleaner.rows) == 11
    cleaner.status = "decided"; assert list(cleaner.rows) == [9]
    cleaner.undo(); assert cleaner.current is None and "Nothing is listed" in cleaner.to_html()
    cleaner.press("k1xnp")                                      # with nothing in front, keys do nothing
    assert cleaner.progress[0] == 0
    with pytest.raises(UnknownOptionError): cleaner.status = "some"
    with pytest.raises(UnknownOptionError): cleaner.label = "z"


def test_keys_and_restart(cat, tmp_path):
    cleaner = LabelCleaner(cat, answers(cat), path=tmp_path/"e.csv")
    order = list(cleaner.rows)
    cleaner.press("1kxz?")
    assert [(int(o.row), o.action) for o in cleaner.edits.itertuples()] == sorted(zip(order[:3], ["relabel", "keep", "exclude"]))
    assert cleaner.current == order[3]
    again = LabelCleaner(cat, answers(cat), path=tmp_path/"e.csv")
    assert again.current == order[3] and again.progress == (3, 12)
    cleaner.press("u")
    assert cleaner.current == order[2] and again.progress == (2, 12)
    cleaner.press("ppp"); assert cleaner.at == 0
    cleaner.press("n"*50); assert cleaner.at == 11
    for status in ("open", "all"):
        again.status = status
        again.press("k"*30)
    assert again.progress == (12, 12) and len(again.edits) == 12


def test_controls_do_what_keys_do(cat, tmp_path):
    cleaner = LabelCleaner(cat, answers(cat), path=tmp_path/"e.csv")
    cleaner.widget
    first = cleaner.current
    before = cleaner._picture.value
    assert cleaner._buttons["1"].description == f"{cleaner.suggestions(first)[0][0]} (1)"
    cleaner._buttons["1"].click()
    assert cleaner.decisions[first][1] == "relabel" and cleaner._picture.value != before and cleaner._bar.value == 1
    for text in ("k", "kx", "kxu"): cleaner._keys.value = text
    assert cleaner.progress[0] == 2
    cleaner._other.value = "b"
    assert cleaner._other.value == "" and "b" in cleaner.edits["value"].tolist()
    cleaner._other.value = "nothing"
    assert "role='alert'" in cleaner._picture.value and "nothing" in cleaner._picture.value
    cleaner._keys.value = ""
    cleaner._keys.value = "k"*41
    assert cleaner._keys.value == "" and cleaner.progress == (12, 12)


def test_several_classes(tmp_path):
    cat = catalog(several=True)
    cleaner = LabelCleaner(cat, answers(cat, several=True), path=tmp_path/"e.csv")
    assert set(cleaner.rows[:3]) == {1, 4, 6} and cleaner.table.loc[1, "suggested"] == ("a", "b", "=c, d")
    cleaner.label = "=c, d"; assert all("=c, d" in o for o in cat.frame.loc[cleaner.rows, "label"])
    cleaner.label = ""
    cleaner.widget
    front = cleaner.current
    cleaner.press("1")
    cleaner._other.value = ("b",)
    other = cleaner.current
    next(o for o in cleaner.widget.children[2].children if getattr(o, "description", "") == "these are the classes").click()
    mended = Decisions(cat, tmp_path/"e.csv").apply()
    assert mended.frame.at[front, "label"] == cleaner.table.loc[front, "suggested"] and mended.frame.at[other, "label"] == ("b",)


def test_a_table_of_ones_own(cat, tmp_path):
    table = pd.DataFrame(dict(suggested=["b", "a"], p_label=[.1, .2], p_suggested=[.9, .8]), index=[0, 7])
    cleaner = LabelCleaner(cat, table, path=tmp_path/"e.csv")
    cleaner.press("12")
    assert cleaner.edits[["row", "value"]].values.tolist() == [[0, "b"]] and "the model gives" in cleaner._card()
    with pytest.raises(ConfigError, match="number 99"): LabelCleaner(cat, table.set_axis([0, 99]))


def test_retraining_takes_one_line(cat, tmp_path):
    cleaner = LabelCleaner(ImageDataModule(cat, image_size=8, batch_size=4), answers(cat), path=tmp_path/"e.csv")
    cleaner.press("1")
    assert ImageDataModule(cleaner.apply(), image_size=8, batch_size=4).catalog.frame.at[int(cleaner.rows[0]), "label"] == cleaner.suggestions(int(cleaner.rows[0]))[0][0]


def opinions(cat, several=False):
    "Two opinions: one doubts the labels of images 1, 4 and 6, one those of 4 alone."
    one = answers(cat, several)
    other = answers(cat, several)
    y = one.targets if several else torch.nn.functional.one_hot(one.targets, 3).float()
    other.probs = other.probs.clone()
    for i in (1, 6): other.probs[i] = .9*y[i] + .05
    return one, other


def test_order_is_changed_live_and_disagreement_counts(cat, tmp_path):
    cleaner = LabelCleaner(cat, opinions(cat), path=tmp_path/"e.csv")
    assert cleaner.by == "disagreement" and cleaner.rows[0] == 4 and set(cleaner.rows[1:3]) == {1, 6}
    cleaner.widget
    assert "2 of 2 opinions are against it" in cleaner._picture.value
    cleaner.press("x")
    for by in cleaner.orders:
        cleaner.by = by
        assert set(cleaner.rows) == set(range(12)) and cleaner.decisions[4][1] == "exclude" and cleaner.progress[0] == 1
    one = LabelCleaner(cat, answers(cat), path=tmp_path/"e.csv")
    assert "disagreement" not in one.orders
    with pytest.raises(UnknownOptionError): one.by = "disagreement"
    assert one.by == "loss"
    with pytest.raises(ConfigError, match="several opinions"): LabelCleaner(cat, answers(cat), "disagreement", tmp_path/"e.csv")


def test_keys_change_one_class_among_several(tmp_path):
    cat = catalog(several=True)
    cleaner = LabelCleaner(cat, answers(cat, several=True), path=tmp_path/"e.csv")
    row = cleaner.current
    before = cat.frame.at[row, "label"]
    names = {key:name for key, (name, _) in cleaner.acts().items() if key in "12345"}
    key, name = next((k, o) for k, o in names.items() if o[0] in "+−" and k != "1")
    cleaner.press(key)
    after = cleaner.apply().frame.at[row, "label"]
    assert set(after) ^ set(before) == {name[2:]} and (name[2:] in after) == (name[0] == "+")


def files(root, n=4):
    "Write a folder with two classes, and a table of it."
    from PIL import Image
    for label in "ab":
        (root/label).mkdir(parents=True)
        for i in range(n): Image.fromarray(np.random.default_rng(i + 10*(label == "b")).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root/label/f"{i}.png")
    (root/"t.csv").write_text("\n".join(["image,label,tags", *(f'{o.parent.name}/{o.name},{o.parent.name},"{o.parent.name};c"' for o in sorted(root.glob("*/*.png")))]))


@pytest.mark.parametrize("source", ["folder", "csv", "several"])
def test_folders_tables_and_several_classes(tmp_path, source):
    "From a data module to decisions in a file, a new session, and training on what is mended."
    files(tmp_path/"p")
    options = dict(image_size=24, batch_size=4, val_split=.25, num_workers=0, augmentation_preset="none")
    make = dict(folder=lambda: ImageDataModule(tmp_path/"p", **options), csv=lambda: ImageDataModule(train_csv=tmp_path/"p/t.csv", label_column="label", **options),
                several=lambda: ImageDataModule(train_csv=tmp_path/"p/t.csv", label_column="tags", label_delimiter=";", **options))[source]
    dm = make()
    cat = dm.catalog
    probs = cat.targets()*.8 + .1 if source == "several" else np.eye(2)[1 - cat.targets()]*.8 + .1
    if source == "several": probs[:, 0] = 1 - probs[:, 0]
    from visionlab.interpret.interpretation import interpret_probs
    cleaner = LabelCleaner(dm, interpret_probs(cat, probs), path=tmp_path/"e.csv")
    first, second = (int(o) for o in cleaner.rows[:2])
    assert "<img" in cleaner.to_html()
    cleaner.press("1x")
    told = cleaner.suggestions(first)[0][0]
    again = make()                                               # another session
    mended = again.catalog.apply_edits(tmp_path/"e.csv")
    assert mended.frame.at[first, "label"] == told != cat.frame.at[first, "label"] and second not in mended.frame.index
    better = cleaner.mended()
    assert better.catalog.frame.equals(mended.frame) and better.batch_size == 4 and len(dm.catalog) == len(better.catalog) + 1
    seen = torch.cat([b.index for split in better.catalog.splits for b in better.loader(split)]).tolist()
    assert second not in seen and sorted(seen) == sorted(mended.frame.index)
    pd.testing.assert_frame_equal(mended.revert_edits().frame, cat.frame)


# ---- the doctor

@pytest.fixture
def sick(tmp_path):
    "A report on a catalog with a leak, a copy, two labels, and an image that cannot be read."
    cat = catalog()
    pixels = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    pixels[9] = pixels[0]; pixels[3] = pixels[6]; pixels[4] = pixels[5]
    return check(replace(cat, pixels=pixels), progress=False, workers=1)


def test_doctor_goes_through_kinds(sick, tmp_path):
    doctor = DataDoctor(sick, tmp_path/"e.csv")
    assert {"leak", "two_labels", "duplicate"} <= set(doctor.kinds) and doctor.kind == "leak"
    row, other = doctor._pair()
    doctor.press("a")
    assert doctor.apply().frame["split"].value_counts()["val"] == 4 and "leak" not in set(check(doctor.apply(), progress=False, workers=1).frame["issue"])
    doctor.kind = "two_labels"
    row, other = doctor._pair()
    doctor.press("r")
    assert doctor.apply().frame.at[row, "label"] == sick.catalog.frame.at[other, "label"]
    doctor.press("u"); doctor.press("o")
    assert doctor.decisions[row][1] == "keep" and doctor.decisions[other][1] == "exclude"
    doctor.press("u"); assert row not in doctor.decisions and other not in doctor.decisions
    doctor.press("x"); assert doctor.decisions[row][1] == "exclude"
    with pytest.raises(UnknownOptionError, match="leak"): doctor.kind = "leek"


def test_doctor_remembers_through_kinds_status_and_restart(sick, tmp_path):
    doctor = DataDoctor(sick, tmp_path/"e.csv")
    first = doctor.current
    doctor.press("x")
    for kind in (*doctor.kinds, doctor.kinds[0]):
        doctor.kind = kind
        for status in ("open", "decided", "all"): doctor.status = status
        assert doctor.decisions[first][1] == "exclude"
    doctor.status = "decided"
    assert doctor.current == first
    again = DataDoctor(check(sick.catalog, progress=False, workers=1), tmp_path/"e.csv")       # a new kernel
    assert again.decisions[first][1] == "exclude" and again.progress == doctor.progress
    again.status = "decided"
    assert again.current == first and "left out" in again._card()
    pd.testing.assert_frame_equal(again.apply().frame, doctor.apply().frame)
    pd.testing.assert_frame_equal(doctor.apply().revert_edits().frame, sick.catalog.frame)


def test_doctor_of_a_data_module_gives_it_back_mended(tmp_path):
    files(tmp_path/"p", 6)
    (tmp_path/"p/b/copy.png").write_bytes((tmp_path/"p/b/1.png").read_bytes())
    dm = ImageDataModule(tmp_path/"p", image_size=24, batch_size=4, val_split=.25, num_workers=0)
    doctor = dm.doctor(tmp_path/"e.csv", progress=False, workers=1)
    doctor.kind = next(o for o in doctor.kinds if o in ("duplicate", "leak"))
    assert None not in doctor._pair() and doctor._card().count("<img") == 2              # side by side
    doctor.press("a")
    assert len(doctor.mended().catalog) == len(dm.catalog) - 1 and doctor.mended().given == dm.given


def test_doctor_all_as_proposed_is_one_step(sick, tmp_path):
    doctor = DataDoctor(sick, tmp_path/"e.csv")
    doctor.kind = "two_labels"
    doctor.all_as_proposed()
    assert len(doctor.edits) == 2 and set(doctor.edits["action"]) == {"exclude"}
    doctor.undo(); assert not len(doctor.edits)


def test_labels_are_taken_over_only_where_they_differ(sick, tmp_path):
    doctor = DataDoctor(sick, tmp_path/"e.csv")
    doctor.kind = "duplicate"
    doctor.widget
    assert doctor._buttons["r"].disabled
    doctor.press("r"); assert not len(doctor.edits)


def test_decisions_are_shared_by_doctor_and_cleaner(sick, tmp_path):
    doctor = DataDoctor(sick, tmp_path/"e.csv")
    cleaner = LabelCleaner(sick.catalog, answers(sick.catalog), path=tmp_path/"e.csv")
    doctor.press("x"); cleaner.press("1")
    assert len(doctor.edits) == len(cleaner.edits) == 2


def test_healthy_data_have_an_empty_doctor(tmp_path):
    cat = catalog(n=200)
    doctor = DataDoctor(check(replace(cat, pixels=np.random.default_rng(1).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)), progress=False, workers=1), tmp_path/"e.csv")
    assert doctor.kinds == [] and doctor.current is None
    doctor.widget; doctor.press("kxorau"); doctor.all_as_proposed()
    assert not len(doctor.edits) and "Nothing" in doctor._picture.value + doctor.note or "nothing" in doctor._picture.value


def test_an_image_that_cannot_be_read_has_a_place(tmp_path):
    from PIL import Image
    for label in "ab":
        (tmp_path/"p"/label).mkdir(parents=True)
        for i in range(6): Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path/"p"/label/f"{i}.png")
    (tmp_path/"p/a/half.png").write_bytes((tmp_path/"p/a/1.png").read_bytes()[:500])
    doctor = DataDoctor(check(tmp_path/"p", progress=False, workers=1), tmp_path/"e.csv")
    doctor.kind = next(o for o in doctor.kinds if "trunc" in o)
    doctor.widget
    assert "half.png" in doctor._picture.value and "cannot be read" in doctor._picture.value and "role='alert'" not in doctor._picture.value
    doctor.press("a"); assert doctor.edits["action"].tolist() == ["exclude"]


# ---- what all views promise

def views(cat, sick, path): return [LabelCleaner(cat, answers(cat), path=path/"a.csv"), DataDoctor(sick, path/"b.csv")]


def test_pictures_stand_alone_and_are_escaped(sick, tmp_path):
    cat = catalog(names=("<script>x</script>", "\" onload='x'", "&amp;"))
    for view in views(cat, sick, tmp_path):
        html = view.to_html()
        assert "<script" not in html and "<script" not in view._live() and html.count("<img") == html.count("alt=") > 0 and len(html) < 150_000
        assert set(view._repr_mimebundle_()) == {"text/plain", "text/html"}
        view.save(tmp_path/"a.png"); view.save(tmp_path/"a.html")
        assert not list(tmp_path.glob("*.csv"))                  # looking writes nothing


def test_long_work_leaves_no_widgets_behind(cat, sick, tmp_path):
    from ipywidgets.widgets import widget
    count = lambda: len(widget._instances if hasattr(widget, "_instances") else widget.Widget.widgets)
    for view in views(cat, sick, tmp_path):
        view.widget
        before = count()
        for _ in range(25): view.press("kun")
        assert count() == before
