"CSV tables: every convention, with real files, and every way a table goes wrong."
import os, socket
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ClassMismatchError, ConfigError, DataError, EmptyDatasetError, TooManyBadFilesError
from visionlab.data.module import ImageDataModule
from visionlab.data.multilabel import MultiLabelImageDataModule
from visionlab.catalog.sheets import CsvError, is_csv

LABELS = dict(cat=3, dog=3)

@pytest.fixture
def pets(tmp_path):
    "A folder with images/cat/0.png … images/dog/2.png"
    for name,n in LABELS.items():
        for i in range(n): put(tmp_path/f"images/{name}/{i}.png")
    return tmp_path

def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")
    return path

def rows(sep=",", base="images/", **labels): return [f"{base}{n}/{i}.png{sep}{labels.get(n, n)}" for n,k in LABELS.items() for i in range(k)]

def table(root, *lines, name="t.csv", end="\n", encoding="utf-8"):
    path = root/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path

def three_lines(e): assert all((e.value.what, e.value.where, e.value.fix)) and str(e.value).count("\n") == 2, str(e.value)
def refused(kind, path, match=None, **kw):
    with pytest.raises(kind, match=match) as e: Catalog.from_csv(path, **kw)
    three_lines(e)
    return e.value
def whole(cat):
    assert cat.classes == ["cat", "dog"] and sorted(map(str, cat.frame["label"])) == ["cat"]*3 + ["dog"]*3
    assert all(map(os.path.isfile, cat.files())) and cat.task == "multiclass"
    return cat

# --- conventions

@pytest.mark.parametrize("column", ["image_path", "image", "file_name", "filename", "filepath", "path", "fname", "Image", "picture"])
def test_path_columns(pets, column): whole(Catalog.from_csv(table(pets, f"{column},label", *rows())))

def test_the_path_column_may_come_last(pets):
    whole(Catalog.from_csv(table(pets, "label,image_path", *(",".join(reversed(o.split(","))) for o in rows()))))

@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_delimiters(pets, sep):
    cat = whole(Catalog.from_csv(table(pets, sep.join(("image", "label")), *rows(sep))))
    assert cat.info["csv"]["delimiter"] == sep
    whole(Catalog.from_csv(table(pets, *rows(sep))))

@pytest.mark.parametrize("kw", [dict(encoding="utf-8-sig"), dict(end="\r\n"), dict(end="\r"), dict(encoding="utf-8-sig", end="\r\n")])
def test_marks_and_line_ends(pets, kw):
    whole(Catalog.from_csv(table(pets, "image_path,label", *rows(), **kw)))
    whole(Catalog.from_csv(table(pets, "image_path,label", *rows(), **kw), encoding="utf-8"))

def test_blank_lines_and_no_last_line_end(pets):
    path = pets/"t.csv"; path.write_text("image,label\n\n" + "\n\n".join(rows()))
    whole(Catalog.from_csv(path))

def test_no_header(pets): whole(Catalog.from_csv(table(pets, *rows())))
def test_no_header_and_a_missing_first_image(pets):
    assert refused(CsvError, table(pets, "images/cat/9.png,cat", *rows())).rows[0][1:] == (1, "images/cat/9.png", "missing")
def test_header_said(pets):
    path = table(pets, *rows())
    assert len(Catalog.from_csv(path, header=True, image_column=0, label_column=1)) == 5
    whole(Catalog.from_csv(path, header=False))

def test_quotes_spaces_and_unicode(pets):
    names = ["my photos/a, b.png", 'my photos/"quoted".png', "фото/ñandú 1.png", "  lead.png"]
    for o in names: put(pets/o)
    lines = ['"{}",{}'.format(o.replace('"', '""'), l) for o,l in zip(names, ("x", "y", "x", "y"))]
    cat = Catalog.from_csv(table(pets, "image,label", *lines))
    assert cat.frame["path"].tolist() == names

@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
def test_spaces_around_quotes(pets, sep):
    for name in ("a, b.png", "a; b|c.png", 'the "big" one.png', "two\tparts.png"): put(pets/name)
    quoted = lambda o: '"' + o.replace('"', '""') + '"'
    lines = [f'{quoted("a, b.png")} {sep}cat', f' {quoted("a; b|c.png")}  {sep} "cat"  ', f'{quoted(chr(116)+"he " + chr(34) + "big" + chr(34) + " one.png")} {sep} "dog" ', f'"two\tparts.png"{sep} dog']
    for end in ("\n", "\r\n"):
        cat = Catalog.from_csv(table(pets, f'"image" {sep} label', *lines, end=end))
        assert cat.frame["path"].tolist() == ["a, b.png", "a; b|c.png", 'the "big" one.png', "two\tparts.png"] and cat.frame["label"].tolist() == ["cat", "cat", "dog", "dog"]
    assert "beyond line 3" in refused(CsvError, table(pets, f"image{sep}label", f'"a, b.png" {sep}cat', f'"a; b|c.png" x{sep}dog'), delimiter=sep).what

def test_accents_composed_or_apart(pets):
    put(pets/"cafe\u0301.png"); put(pets/"b.png")
    assert len(Catalog.from_csv(table(pets, "image,label", "caf\u00e9.png,x", "b.png,y"))) == 2

@pytest.mark.skipif(os.sep != "/", reason="a backslash is a separator there")
def test_paths_from_windows(pets): whole(Catalog.from_csv(table(pets, "image,label", *(o.replace("/", "\\") for o in rows()))))

def test_relative_to_the_table_to_image_dir_and_absolute(pets):
    whole(Catalog.from_csv(table(pets, "image,label", *rows())))
    whole(Catalog.from_csv(table(pets, "image,label", *rows(base=""), name="lists/t.csv"), image_dir=pets/"images"))
    cat = whole(Catalog.from_csv(table(pets, "image,label", *rows(base=f"{pets}/images/"), name="elsewhere/t.csv")))
    assert cat.root == pets/"images"
    whole(Catalog.from_csv(table(pets, "image,label", *rows(base=f"{pets}/images/"), name="elsewhere/t.csv"), image_dir=pets/"elsewhere"))

def test_tables_in_two_folders(pets):
    train,val = table(pets, "image,label", *rows(base="../images/"), name="a/t.csv"), table(pets, "image,label", "cat/0.png,cat", name="images/v.csv")
    put(pets/"images/cat/8.png"); val.write_text("image,label\ncat/8.png,cat\n")
    cat = Catalog.from_csv(train, val, allow_outside=True)
    assert cat.counts().to_numpy().tolist() == [[3, 1], [3, 0]] and all(map(os.path.isfile, cat.files()))

def test_separate_tables(pets):
    train,val,test = (table(pets, "image,label", *(o for o in rows() if f"/{i}.png" in o), name=f"{s}.csv") for i,s in enumerate(("train", "val", "test")))
    cat = whole(Catalog.from_csv(train, val, test))
    assert cat.counts().to_numpy().tolist() == [[1, 1, 1]]*2 and cat.source == "train.csv, val.csv, test.csv"
    assert Catalog.from_csv(train, test_csv=test).splits == ["train", "test"]

def test_split_columns(pets):
    lines = [f"{o},{s}" for o,s in zip(rows(), ["train", "Validation", "test"]*2)]
    assert whole(Catalog.from_csv(table(pets, "image,label,split", *lines))).counts().to_numpy().tolist() == [[1, 1, 1]]*2
    assert whole(Catalog.from_csv(table(pets, "image,label,part", *lines), label_column="label", split_column="part")).splits == ["train", "val", "test"]
    lines = [f"{o},{s}" for o,s in zip(rows(), ["False", "True", "0"]*2)]
    assert whole(Catalog.from_csv(table(pets, "image,label,is_valid", *lines))).counts().to_numpy().tolist() == [[2, 1]]*2
    e = refused(CsvError, table(pets, "image,label,split", *(f"{o},{s}" for o,s in zip(rows(), ["train", "oops", ""]*2))))
    assert [o[3] for o in e.rows] == ["split 'oops' is unknown", "missing split"]*2

def test_split_and_is_valid_must_agree(pets):
    lines = [f"{o},{s},{v}" for o,s,v in zip(rows(), ["train", "val", "test"]*2, ["False", "True", "0", "0", "1", ""])]
    cat = whole(Catalog.from_csv(table(pets, "image,label,split,is_valid", *lines)))
    assert cat.counts().to_numpy().tolist() == [[1, 1, 1]]*2 and any("'split' says the split; 'is_valid' agrees" in o for o in cat.notes)
    e = refused(CsvError, table(pets, "image,label,is_valid,split", *(f"{o},{v},{s}" for o,s,v in zip(rows(), ["train", "val", "train"]*2, "110"*2))))
    assert [(o[1], o[3]) for o in e.rows] == [(2, "split is train, is_valid is 1"), (5, "split is train, is_valid is 1")]
    e = refused(CsvError, table(pets, "image,label,is_valid,split", *(f"{o},{v},{s}" for o,s,v in zip(rows(), ["train", "val"]*3, "00"*3))))
    assert {o[3] for o in e.rows} == {"split is val, is_valid is 0"}
    assert Catalog.from_csv(table(pets, "image,label,split,is_valid", *lines), split_column="split").notes == []

def test_a_split_column_beside_several_tables_is_noted(pets):
    a,b = (table(pets, "image,label,split", *(f"{o},train" for o in part), name=f"{n}.csv") for n,part in (("a", rows()[:2]+rows()[3:5]), ("b", rows()[2::3])))
    assert any("'split' is not used" in o for o in Catalog.from_csv(a, b).notes)

def test_rows_to_predict_need_no_label(pets):
    cat = Catalog.from_csv(table(pets, "image,label,split", *(f"{o},train" for o in rows()[:-1]), "images/dog/2.png,,predict"))
    assert cat.frame["label"].iloc[-1] is None and cat.targets().tolist() == [0, 0, 0, 1, 1, -1]

def test_other_columns_stay(pets):
    cat = whole(Catalog.from_csv(table(pets, ",image,label,group,path", *(f"{i},{o},g{i % 2},x" for i,o in enumerate(rows()))), label_column="label"))
    assert cat.frame["group"].tolist() == ["g0", "g1"]*3 and "path (csv)" in cat.frame and "" not in cat.frame
    assert whole(Catalog.load(cat.save(pets/"saved"))).frame["group"].tolist() == ["g0", "g1"]*3

@pytest.mark.parametrize("kw", [dict(image_column="file", label_column="what"), dict(csv_image_column="file", csv_label_column="what"), dict(image_column=1, label_column=2)])
def test_named_columns(pets, kw): whole(Catalog.from_csv(table(pets, "n,file,what", *(f"7,{o}" for o in rows())), **kw))
def test_two_names_of_one_option(pets):
    with pytest.raises(ConfigError, match="same option"): Catalog.from_csv(table(pets, "image,label", *rows()), label_column="image", csv_label_column="label")

# --- labels

def test_labels_are_text(pets):
    assert Catalog.from_csv(table(pets, "image,label", *rows(cat="NA", dog="007"))).classes == ["007", "NA"]
    assert Catalog.from_csv(table(pets, "image,label", *rows(cat="null", dog="1e3"))).classes == ["1e3", "null"]
    assert Catalog.from_csv(table(pets, "image,label", *rows(cat="=1+1", dog="@x"))).classes == ["=1+1", "@x"]
def test_spaces_around_labels(pets): whole(Catalog.from_csv(table(pets, "image,label", *rows()[:3], *(o.replace(",dog", ", dog ") for o in rows()[3:]))))

def test_ids(pets):
    path = table(pets, "image,label", *rows(cat="7", dog="10"))
    assert Catalog.from_csv(path).classes == ["7", "10"]
    cat = Catalog.from_csv(path, classes={7:"cat", 10:"dog"})
    assert (whole(cat).info["class_ids"], cat.targets().tolist()) == ([7, 10], [0]*3 + [1]*3)
    cat = Catalog.from_csv(path, csv_label_type="id")
    assert (cat.classes, cat.info["class_ids"]) == (["7", "10"], [7, 10])
    whole(Catalog.from_csv(table(pets, "image,label", *rows(cat="0", dog="1"), name="z.csv"), classes=["cat", "dog"], label_type="id"))
    assert refused(CsvError, path, classes={7:"cat", 9:"dog"}).rows[0][3] == "label '10' is not a class"
    assert refused(CsvError, table(pets, "image,label", *rows()), label_type="id").rows[0][3] == "label 'cat' is not a whole number"
def test_names_that_are_numbers_stay_names_beside_ids(pets):
    refused(CsvError, table(pets, "image,label", *rows(cat="7", dog="10")), classes={7:"cat", 10:"dog"}, label_type="name")
def test_names_with_ids_known(pets): whole(Catalog.from_csv(table(pets, "image,label", *rows()), classes={7:"cat", 10:"dog"}))

def test_a_comma_may_be_part_of_a_name(pets):
    assert Catalog.from_csv(table(pets, "image,label", *rows(cat='"cat, tabby"'))).classes == ["cat, tabby", "dog"]

def several(cat): return [set(o) for o in cat.frame["label"]]
WANT = [{"cat"}, {"cat", "dog"}, set(), {"dog"}, {"dog", "cat"}, {"cat"}]
FILES = [o.split(",")[0] for o in rows()]

@pytest.mark.parametrize("sep", [",", ";", "|"])
def test_labels_in_a_cell(pets, sep):
    lines = [f'{f},"{sep.join(sorted(w))}"' for f,w in zip(FILES, WANT)]
    for kw in (dict(task="multilabel"), dict(label_delimiter=sep)):
        cat = Catalog.from_csv(table(pets, "image,label", *lines), **kw)
        assert (several(cat), cat.task, cat.classes, cat.info["csv"]["label_delimiter"]) == (WANT, "multilabel", ["cat", "dog"], sep)
        assert cat.targets().dtype == np.float32 and cat.targets().sum(0).tolist() == [4, 3]

def test_ids_in_a_cell_without_a_header(pets):
    lines = [f'{f},"{",".join({"cat":"0", "dog":"2"}[o] for o in sorted(w))}"' for f,w in zip(FILES, WANT)]
    assert several(Catalog.from_csv(table(pets, *lines), task="multilabel", classes={0:"cat", 2:"dog"})) == WANT

def test_ids_in_a_cell_of_one_class_each_are_pointed_out(pets):
    path = table(pets, "image,label", *rows(cat="7", dog="10")[1:], f'{FILES[0]},"7,10"')
    for kw in (dict(classes={7:"cat", 10:"dog"}), dict(classes={"7":"cat", "10":"dog"}), dict(label_type="id"), dict(classes=["7", "10"])):
        e = refused(CsvError, path, **kw)
        assert [o[1:] for o in e.rows] == [(7, FILES[0], "2 labels where one is expected")] and "multilabel" in e.fix
    for ids in ({7:"cat", 10:"dog"}, {"7":"cat", "10":"dog"}): assert several(Catalog.from_csv(path, classes=ids, task="multilabel"))[-1] == {"cat", "dog"}

def test_two_possible_delimiters_are_a_question(pets):
    path = table(pets, "image,label", f'{FILES[0]},"a,b"', f"{FILES[1]},a;c")
    assert "label_delimiter" in refused(ConfigError, path, task="multilabel").fix
    assert Catalog.from_csv(path, label_delimiter=";").classes == ["a", "a,b", "c"]

ONE = {True:"1", False:"0"}
@pytest.mark.parametrize("yes,no", [("1", "0"), ("True", "False"), ("TRUE", ""), ("1.0", "0.0")])
def test_columns_of_0_and_1(pets, yes, no):
    lines = [f"{f},{yes if 'dog' in w else no},{yes if 'cat' in w else no},{yes}" for f,w in zip(FILES, WANT)]
    path = table(pets, "image_path,dog,cat,indoor", *lines)
    cat = Catalog.from_csv(path)
    assert (cat.classes, cat.task) == (["dog", "cat", "indoor"], "multilabel")
    assert several(Catalog.from_csv(path, label_columns=["cat", "dog"])) == WANT
    assert Catalog.from_csv(path, label_columns=["cat", "dog"]).classes == ["cat", "dog"]
    assert Catalog.from_csv(path, classes=["cat", "dog", "indoor"]).classes == ["cat", "dog", "indoor"]
    refused(ClassMismatchError, path, classes=["cat", "bird", "indoor"])

def test_columns_of_another_table_go_by_name(pets):
    line = lambda f, w, order: f"{f}," + ",".join(ONE[o in w] for o in order)
    train = table(pets, "image,cat,dog", *(line(f, w, ("cat", "dog")) for f,w in zip(FILES[:4], WANT)), name="a.csv")
    val = table(pets, "image,dog,cat", *(line(f, w, ("dog", "cat")) for f,w in zip(FILES[4:], WANT[4:])), name="b.csv")
    assert several(Catalog.from_csv(train, val)) == WANT
    refused(CsvError, train, "no label column 'dog'", val_csv=table(pets, "image,cat", f"{FILES[5]},1", name="c.csv"))

def test_columns_of_0_and_1_with_one_class_each(pets):
    whole(Catalog.from_csv(table(pets, "image,cat,dog", *(f"{f},{ONE['cat' in f]},{ONE['dog' in f]}" for f in FILES)), task="multiclass"))

def test_a_flag_that_is_none(pets):
    e = refused(CsvError, table(pets, "image,cat,dog", f"{FILES[0]},1,0", f"{FILES[3]},2,1"), label_columns=["cat", "dog"])
    assert e.rows[0][3] == "cat is '2', neither 0 nor 1"

def test_a_flag_that_is_none_among_columns_that_were_not_named(pets):
    path = table(pets, "image,cat,dog", *(f"{o},{ONE['cat' in o]},{'2' if i == 4 else ONE['dog' in o]}" for i,o in enumerate(FILES)))
    e = refused(CsvError, path, "1 cell in columns of 0 and 1 is neither")
    assert e.where == "t.csv:6 dog is '2'" and e.rows == [("t.csv", 6, "2", "dog is neither 0 nor 1")]
    e = refused(CsvError, table(pets, "image,cat,dog", *(f"{o},{ONE['cat' in o]},{ONE['dog' in o]}" for o in FILES), name="train.csv"), val_csv=path)
    assert ("t.csv", 6, FILES[4], "dog is '2', neither 0 nor 1") in e.rows
    refused(CsvError, table(pets, "image,a,b", *(f"{o},x,1" for o in FILES)), "several columns")

def test_a_label_column_beside_flags_goes_by_its_name(pets):
    path = table(pets, "image_path,label,occluded", *(f"{o},{ONE['dog' in o]},{i % 2}" for i,o in enumerate(FILES)))
    cat = Catalog.from_csv(path)
    assert (cat.task, cat.classes, cat.frame["occluded"].tolist()) == ("multiclass", ["0", "1"], ["0", "1"]*3)
    assert any("'label' has the label, by its name" in o and "'occluded'" in o for o in cat.notes) and "'occluded'" in repr(cat)
    assert Catalog.load(cat.save(pets/"saved")).notes == cat.notes
    both = Catalog.from_csv(path, task="multilabel")
    assert (both.classes, both.notes) == (["label", "occluded"], [])
    assert Catalog.from_csv(path, label_columns=["occluded", "label"]).classes == ["occluded", "label"]

def test_one_hot_that_was_inferred_is_noted(pets):
    path = table(pets, "image_path,cat,dog", *(f"{o},{ONE['cat' in o]},{ONE['dog' in o]}" for o in FILES))
    assert any("2 columns of 0 and 1, 'cat', 'dog', are read as classes" in o for o in Catalog.from_csv(path).notes)
    assert "are read as classes" in repr(ImageDataModule(path, image_size=8, val_split=2))
    for kw in (dict(label_columns=["cat", "dog"]), dict(task="multilabel")): assert Catalog.from_csv(path, **kw).notes == []

def test_one_column_of_0_and_1_is_one_class_where_images_have_any_number(pets):
    path = table(pets, "path,defect", *(f"{o},{ONE['dog' in o]}" for o in FILES))
    cat = Catalog.from_csv(path, task="multilabel")
    assert (cat.classes, several(cat)) == (["defect"], [set()]*3 + [{"defect"}]*3)
    dm = MultiLabelImageDataModule(path, image_size=8, val_split=2, batch_size=4)
    assert dm.label_names == ["defect"] and next(iter(dm.train_dataloader())).target.shape == (4, 1)
    assert Catalog.from_csv(path).classes == ["0", "1"]                                                 # one class to an image
    assert Catalog.from_csv(table(pets, "path,label", *(f"{o},{ONE['dog' in o]}" for o in FILES)), task="multilabel").classes == ["0", "1"]      # ids, as its name says

def test_several_labels_for_one_class_each(pets):
    e = refused(CsvError, table(pets, "image,label", *rows()[1:], f'{FILES[0]},"cat,dog"'), task="multiclass", label_delimiter=",")
    assert e.rows[0][3] == "2 labels where one is expected" and "multilabel" in e.fix
def test_empty_labels(pets):
    path = table(pets, "image,label", *rows()[1:], f"{FILES[0]},")
    e = refused(CsvError, path)
    assert e.rows[0][1:] == (7, FILES[0], "missing label") and "multilabel" in e.fix
    assert several(Catalog.from_csv(path, task="multilabel"))[-1] == set()

# --- RELIABILITY 1C

def test_missing_and_renamed_columns(pets):
    e = refused(CsvError, table(pets, "image,label", *rows()), label_column="labels")
    assert "'label'" in e.fix and "'image'" in e.fix
    refused(CsvError, table(pets, "image,label", *rows()), image_column="img")
    e = refused(CsvError, table(pets, "image,a,label", *(f"{o.split(',')[0]},x,{o.split(',')[1]}" for o in rows())), "several columns")
    assert "label_column='label'" in e.fix
    refused(CsvError, table(pets, "image", *FILES), "no label column")
    refused(ConfigError, table(pets, "image,label", *rows()), label_columns=[])

def test_every_bad_row_is_named_with_its_line(pets):
    (pets/"notes.txt").write_text("x"); (pets/"images/cat/none.png").touch(); (pets/"folder.png").mkdir()
    bad = {"images/cat/9.png,cat":"missing", "notes.txt,cat":"extension .txt", "noext,cat":"no extension", "images/cat/none.png,cat":"empty", "folder.png,dog":"not_regular_file",
           ",cat":"missing path", f"{FILES[0]},":"missing label", "https://x.org/a.png,cat":"an address, which is not fetched", "file:///etc/a.png,cat":"an address, which is not fetched",
           "../../secret.png,dog":"outside root", f"{FILES[0]}":"1 field instead of 2", f"{FILES[0]},cat,dog":"3 fields instead of 2", "a\0.png,cat":"NUL byte",
           f'{FILES[0]},"two\nlines"':"line break in the label: is a quote not closed?", f"{FILES[0]},zebra":"label 'zebra' is not a class"}
    path = table(pets, "image,label", *rows(), *bad)
    e = refused(CsvError, path, classes=["cat", "dog"])
    assert [o[3] for o in e.rows] == list(bad.values())
    assert [o[1] for o in e.rows] == [*range(8, 22), 23] and {o[0] for o in e.rows} == {"t.csv"}
    assert "t.csv:8 'images/cat/9.png': missing" in e.where and "15 of 21 rows" in e.what
    cat = whole(Catalog.from_csv(path, classes=["cat", "dog"], on_bad="skip"))
    assert cat.skipped["reason"].tolist() == list(bad.values()) and len(cat.info["bad_rows"]) == 15
    assert Catalog.load(cat.save(pets/"saved")).info["bad_rows"][0] == ["t.csv", 8, "images/cat/9.png", "missing"]

def test_twenty_are_shown_and_all_are_kept(pets):
    e = refused(CsvError, table(pets, "image,label", *rows(), *(f"images/cat/no{i}.png,cat" for i in range(50))))
    assert e.where.count("missing") == 20 and "30 more" in e.where and len(e.rows) == 50

def test_repeated_and_conflicting_rows(pets):
    cat = Catalog.from_csv(table(pets, "image,label", *rows(), rows()[0]))
    assert any("repeats" in o for o in cat.notes)
    assert [o[3] for o in refused(CsvError, table(pets, "image,label", *rows(), f"{FILES[0]},dog")).rows] == ["listed with two labels"]*2
    lines = [f"{o},train" for o in rows()] + [f"{rows()[0]},test"]
    assert [o[3] for o in refused(CsvError, table(pets, "image,label,split", *lines)).rows] == ["listed in two splits"]*2
    assert len(Catalog.from_csv(table(pets, "image,label", f'{FILES[0]},"b,a"', f'{FILES[0]},"a,b"'), task="multilabel")) == 2
    assert len(refused(CsvError, table(pets, "image,label", f'{FILES[0]},"b,a"', f"{FILES[0]},b"), task="multilabel").rows) == 2

def test_paths_that_lead_out(pets):
    put(pets.parent/f"{pets.name}-out.png")
    lines = [*rows(), f"../{pets.name}-out.png,cat"]
    assert "allow_outside" in refused(CsvError, table(pets, "image,label", *lines)).fix
    refused(CsvError, table(pets, "image,label", *rows(), f"images/../../{pets.name}-out.png,cat"))
    assert len(Catalog.from_csv(table(pets, "image,label", *lines), allow_outside=True)) == 7
    assert len(Catalog.from_csv(table(pets, "image,label", *rows(), f"{pets.parent}/{pets.name}-out.png,cat"))) == 7

def test_other_encodings(pets):
    lines = ["image,label", *rows(cat="Müller")]
    assert "latin-1" in refused(CsvError, table(pets, *lines, encoding="latin-1"), "not UTF-8: byte 0xfc in line 2").fix
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        assert "utf-16" in refused(CsvError, table(pets, *lines, encoding=encoding), "UTF-16").fix
    for encoding in ("utf-16", "latin-1"): assert Catalog.from_csv(table(pets, *lines, encoding=encoding), encoding=encoding).classes == ["Müller", "dog"]
    with pytest.raises(ConfigError, match="klingon"): Catalog.from_csv(table(pets, *lines), encoding="klingon")

@pytest.mark.parametrize("text,match", [("", "is empty"), ("\n \n", "is empty"), ("image,label\n", "no row of data"), ("image,label", "no row of data")])
def test_empty_tables(pets, text, match):
    (pets/"t.csv").write_text(text)
    refused(EmptyDatasetError, pets/"t.csv", match)

def test_two_columns_of_one_name(pets): refused(CsvError, table(pets, "image,label,label", *(f"{o},x" for o in rows())), "Two columns are called 'label'")
def test_a_quote_that_is_not_closed(pets): refused(CsvError, table(pets, "image,label", *rows()[:2], f'{FILES[3]},"dog', *rows()[3:]), "beyond line 4")
def test_no_such_table(pets):
    table(pets, "image,label", *rows(), name="train.csv")
    assert "'train.csv'" in refused(CsvError, pets/"trian.csv", "does not exist").fix
    refused(CsvError, pets/"images", "is a folder")
    refused(DataError, pets/"train.csv", image_dir=pets/"nowhere")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_opened(pets):
    os.mkfifo(pets/"t.csv")
    refused(CsvError, pets/"t.csv", "not a regular file")

def test_addresses_are_never_opened(pets, monkeypatch):
    def no(*a, **k): raise AssertionError("a network was asked")
    monkeypatch.setattr(socket, "socket", no); monkeypatch.setattr(socket, "create_connection", no)
    assert len(Catalog.from_csv(table(pets, "image,label", *rows(), "http://example.org/x.png,cat"), on_bad="skip")) == 6

def test_classes_of_val_that_train_lacks(pets):
    train,val = table(pets, "image,label", *rows(), name="a.csv"), table(pets, "image,label", "images/cat/z.png,zebra", name="b.csv")
    put(pets/"images/cat/z.png")
    with pytest.raises(ClassMismatchError, match="zebra"): Catalog.from_csv(train, val)
def test_val_that_lacks_a_class_keeps_the_numbers(pets):
    train,val = table(pets, "image,label", *rows()[1:], name="a.csv"), table(pets, "image,label", rows()[0].replace("cat/0", "cat/00"), name="b.csv")
    put(pets/"images/cat/00.png")
    assert Catalog.from_csv(train, val).targets("val").tolist() == [0]

def test_a_class_that_loses_every_row(pets):
    path = table(pets, "image,label", *rows()[:3], "images/dog/9.png,dog")
    with pytest.raises(TooManyBadFilesError, match="dog"): Catalog.from_csv(path, on_bad="skip")
    with pytest.raises(EmptyDatasetError): Catalog.from_csv(table(pets, "image,label", "x.png,cat"), on_bad="skip")
def test_one_class(pets):
    with pytest.raises(DataError, match="one class only"): Catalog.from_csv(table(pets, "image,label", *rows()[:3]))
    assert len(Catalog.from_csv(table(pets, "image,label", *rows()[:3]), allow_single=True)) == 3
@pytest.mark.parametrize("kw", [dict(on_bad="ignore"), dict(task="both"), dict(label_type="ids"), dict(delimiter="ab")])
def test_options_that_do_not_exist(pets, kw):
    with pytest.raises(ConfigError): Catalog.from_csv(table(pets, "image,label", *rows()), **kw)

def test_hostile_values_are_shown_escaped(pets):
    e = refused(CsvError, table(pets, "image,label", *rows(), "\x1b[2J.png,cat"))
    assert "\x1b" not in str(e)
    cat = Catalog.from_csv(table(pets, "image,label", *rows(cat="<script>alert(1)</script>")))
    assert "<script" not in cat._repr_html_()

# --- through the data module

def test_data_module(pets):
    path = table(pets, "image,label", *rows())
    for dm in (ImageDataModule(**o, image_size=8, val_split=2, batch_size=4) for o in (dict(data_dir=path), dict(data_dir=str(path)), dict(train_csv=path))):
        assert dm.classes == ["cat", "dog"] and len(dm.catalog.subset("val")) == 2 and next(iter(dm.train_dataloader())).target.tolist().count(0) == 2
    train,val = table(pets, "f,l,x", *(f"{o},1" for o in rows(base="")[1:]), name="a.csv"), table(pets, "f,l,x", f"{rows(base='')[0]},1", name="b.csv")
    dm = ImageDataModule(train_csv=train, val_csv=val, image_dir=pets/"images", image_column="f", label_column="l")
    assert dm.catalog.splits == ["train", "val"]
    with pytest.raises(ConfigError, match="image_dir"): ImageDataModule(pets/"images", image_dir=pets)
    with pytest.raises(CsvError, match="does not exist"): ImageDataModule(pets/"nowhere.csv")
    assert is_csv("a.CSV") and is_csv(Path("a.tsv")) and not is_csv("a") and not is_csv(None)


def test_a_link_leads_no_table_out_of_its_folder(tmp_path):
    from PIL import Image
    (tmp_path/"out").mkdir(); (tmp_path/"in").mkdir()
    for i,name in enumerate(("out/a.png", "out/b.png", "in/c.png", "in/d.png")): Image.new("RGB", (8, 8), (i*60, 0, 0)).save(tmp_path/name)
    (tmp_path/"in/file.png").symlink_to("../out/a.png"); (tmp_path/"in/folder").symlink_to("../out"); (tmp_path/"in/here.png").symlink_to("c.png")
    t = tmp_path/"in/t.csv"
    t.write_text("image,label\nc.png,x\nd.png,y\nhere.png,x\nfile.png,x\nfolder/b.png,y\n")
    cat = Catalog.from_csv(t, on_bad="skip")
    assert sorted(cat.frame["path"]) == ["c.png", "d.png", "here.png"] and set(cat.skipped["reason"]) == {"outside root"}
    with pytest.raises(CsvError, match="outside root"): Catalog.from_csv(t)
    assert len(Catalog.from_csv(t, allow_outside=True)) == 5
