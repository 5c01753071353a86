"What is written and read: links, devices and pipes, files of others, full disks, impossible names, damaged and hostile files, texts that act on terminals, spreadsheets and cards."
import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from photos import photo_folder
from visionlab.core import files, settings, text
from visionlab.data import audit, shard_files
from visionlab.export import load
from visionlab.runs import checkpoints
from visionlab.core import errors as core
from visionlab.export import folder as deploy
from visionlab.catalog.catalog import Catalog
from visionlab.runs.checkpoints import sweep
from visionlab.cli import main
from visionlab.runs.config import TrainConfig
from visionlab.runs.config_files import read_settings_file
from visionlab.core.errors import CheckpointError, ConfigError, VisionlabError
from visionlab.core.files import atomic_write
from visionlab.catalog.doctor import check
from visionlab.runs.compare import list_runs
from visionlab.runs.logger import Logger
from visionlab.models.classifier import ImageClassifier
from visionlab.models.predictor import Prediction, Predictions
from visionlab.runs.folder import exported, RunFolder
from visionlab.data.shard_files import INDEX, write_shards
from visionlab.catalog.lightly_tables import read_settings

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name == "nt", reason="POSIX files")]
NASTY = "=cmd()|\x1b[31m"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory): monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path_factory.mktemp("cache")))

@pytest.fixture(scope="module")
def photos(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp("photos")/"p", n_train=4, n_val=2, size=24, classes=("brick", "coffee"))

@pytest.fixture
def catalog(photos): return Catalog.from_folder(photos)


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path/"there").mkdir()
    (tmp_path/"there/real.json").write_text("old")
    (tmp_path/"middle").symlink_to("there/real.json")
    (tmp_path/"link").symlink_to("middle")
    atomic_write(tmp_path/"link", "new")
    assert (tmp_path/"link").is_symlink() and (tmp_path/"middle").is_symlink() and (tmp_path/"there/real.json").read_text() == "new"
    (tmp_path/"hanging").symlink_to("there/later.json")
    atomic_write(tmp_path/"hanging", "x")
    assert (tmp_path/"hanging").is_symlink() and (tmp_path/"there/later.json").read_text() == "x"

def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path/"a").symlink_to("b")
    (tmp_path/"b").symlink_to("a")
    with pytest.raises(VisionlabError, match="cannot be written"): atomic_write(tmp_path/"a", "x")
    assert (tmp_path/"a").is_symlink()

def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path/"pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path/"pipe").read_bytes()), daemon=True)
    reader.start()
    atomic_write(tmp_path/"pipe", "a"*100_000)
    assert stat.S_ISFIFO(os.stat(tmp_path/"pipe").st_mode)
    reader.join(10)
    assert got == [b"a"*100_000] and [o.name for o in tmp_path.iterdir()] == ["pipe"]

def test_a_device_stays_a_device(tmp_path):
    try: os.mknod(tmp_path/"null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError: pytest.skip("nodes cannot be made here")
    try: open(tmp_path/"null", "wb").close()
    except PermissionError: opens = False
    else: opens = True
    if opens: atomic_write(tmp_path/"null", "x")
    else:
        with pytest.raises(VisionlabError): atomic_write(tmp_path/"null", "x")
    assert stat.S_ISCHR(os.stat(tmp_path/"null").st_mode)

def test_a_name_for_an_open_file_is_written_through_it(tmp_path):
    with open(tmp_path/"out", "wb", buffering=0) as f:
        f.write(b"before\n")
        (tmp_path/"link").symlink_to(f"/proc/self/fd/{f.fileno()}")
        atomic_write(tmp_path/"link", "between\n")
        f.write(b"after\n")
    assert (tmp_path/"out").read_text() == "before\nbetween\nafter\n" and (tmp_path/"link").is_symlink()

def test_a_private_file_stays_private(tmp_path):
    (tmp_path/"a").write_text("old")
    (tmp_path/"a").chmod(0o600)
    atomic_write(tmp_path/"a", "new")
    assert stat.S_IMODE((tmp_path/"a").stat().st_mode) == 0o600

def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path):
    atomic_write(tmp_path/("n"*255), "x")
    assert [len(o.name) for o in tmp_path.iterdir()] == [255]


# ---- every writer, against a full disk and impossible names

def _predictions(n=1): return Predictions(Prediction([("cat", .9)], torch.tensor([.9, .1]), f"{i}.jpg") for i in range(n))

WRITERS = dict(catalog=lambda c, at: c.save(at), config=lambda c, at: TrainConfig("x").save(at/"c.yaml"), report=lambda c, at: check(c).save(at),
               page=lambda c, at: check(c).save(at/"r.html"), predictions=lambda c, at: _predictions().to_csv(at/"p.csv"), shards=lambda c, at: write_shards(c, at))

@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_a_typed_error(name, catalog, tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(core.os, "fsync", full)
    with pytest.raises(VisionlabError, match="No space left"): WRITERS[name](catalog, tmp_path/"o")
    assert not [o for o in (tmp_path/"o").rglob("*") if o.suffix in (".json", ".csv", ".html", ".yaml", ".tmp")]

@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("at", ["nul\0byte", "n"*4000, "file/below"])
def test_impossible_names_are_typed_errors(name, at, catalog, tmp_path):
    (tmp_path/"file").write_text("a file")
    with pytest.raises(VisionlabError): WRITERS[name](catalog, tmp_path/at)
    assert (tmp_path/"file").read_text() == "a file"

@pytest.mark.parametrize("at", [".", "/", "folder"])
def test_a_folder_is_no_file(at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"folder").mkdir()
    with pytest.raises(VisionlabError, match="folder"): atomic_write(at, "x")

def test_the_error_of_writing_is_an_oserror_too(tmp_path):
    with pytest.raises(OSError) as e: atomic_write(tmp_path, "x")
    again = pickle.loads(pickle.dumps(e.value))
    assert isinstance(again, core.WriteError) and again.errno == e.value.errno == errno.EISDIR and str(again) == str(e.value)

def test_the_command_line_ends_with_one_line(photos, tmp_path, capsys):
    (tmp_path/"taken.json").write_text('{"mine": 1}')
    assert main(["check", str(photos), "--json", str(tmp_path/"taken.json")]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "not written" in error and (tmp_path/"taken.json").read_text() == '{"mine": 1}'


# ---- nobody else's file is replaced

@pytest.mark.parametrize("name,file", [("catalog", "catalog.csv"), ("catalog", "catalog.json"), ("config", "c.yaml"), ("report", "edits.csv"), ("report", "report.json"),
                                       ("page", "r.html"), ("predictions", "p.csv")])
def test_a_users_file_stays(name, file, catalog, tmp_path):
    (tmp_path/file).write_text("image,label\nmine.jpg,cat\n")
    with pytest.raises(VisionlabError, match="not written"): WRITERS[name](catalog, tmp_path)
    assert {o.name:o.read_text() for o in tmp_path.iterdir()} == {file:"image,label\nmine.jpg,cat\n"}

@pytest.mark.parametrize("name", [o for o in WRITERS if o != "shards"])
def test_ones_own_file_is_replaced(name, catalog, tmp_path):
    WRITERS[name](catalog, tmp_path)
    WRITERS[name](catalog, tmp_path)

def test_a_catalog_that_was_half_written_is_written_again(catalog, tmp_path):
    catalog.save(tmp_path)
    (tmp_path/"catalog.json").unlink()
    catalog.save(tmp_path)
    assert len(Catalog.load(tmp_path)) == len(catalog)

def test_overwrite_is_for_runs(tmp_path):
    (tmp_path/"README.md").write_text("mine")
    with pytest.raises(VisionlabError, match="no run"): RunFolder(tmp_path, overwrite=True)
    assert (tmp_path/"README.md").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1

@pytest.mark.parametrize("name", ["config.json", "figures/batch.png", "exported_models/exported_best/visionlab.json", "catalog/catalog.csv"])
def test_what_overwrite_refuses_is_what_it_would_remove(name, tmp_path):
    (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path/name).write_text("mine")
    with pytest.raises(VisionlabError, match="no run"): RunFolder(tmp_path, overwrite=True)
    assert (tmp_path/name).read_text() == "mine"

def test_what_a_run_does_not_write_is_no_obstacle(tmp_path):
    for o in ("figures/mine.png", "exported_models/mine.txt"):
        (tmp_path/o).parent.mkdir()
        (tmp_path/o).write_text("mine")
    for _ in range(2):                                # the second time it is a run
        RunFolder(tmp_path, overwrite=True).close()
        assert (tmp_path/"figures/mine.png").is_file() and (tmp_path/"exported_models/mine.txt").is_file()
    (tmp_path/"other").mkdir()
    (tmp_path/"other/catalog").write_text("mine")
    with pytest.raises(VisionlabError, match="no run"): RunFolder(tmp_path/"other", overwrite=True)

def test_starting_over_removes_an_export_without_its_name(tmp_path):
    RunFolder(tmp_path/"run").close()
    (tmp_path/"run/exported_models").mkdir()
    _export(tmp_path/"run/exported_models/.exported_best-0123abcd.old")
    assert exported(tmp_path/"run").name == ".exported_best-0123abcd.old"
    run = RunFolder(tmp_path/"run", overwrite=True)
    with pytest.raises(CheckpointError, match="no model yet"): exported(tmp_path/"run")
    run.close()

def test_a_run_leaves_a_users_probe(tmp_path):
    (tmp_path/".probe").write_text("mine")
    RunFolder(tmp_path, overwrite=True).close()
    assert (tmp_path/".probe").read_text() == "mine"

def test_sweeping_takes_only_its_own(tmp_path):
    users = [".tmp-work", ".trash-old", ".notes.tmp", ".tmp-deadbeef0", ".last.tmp"]
    for o in users: (tmp_path/o).mkdir()
    (tmp_path/".tmp-deadbeef").mkdir()
    (tmp_path/".tmp-deadbeef/thesis.tex").write_text("mine")
    (tmp_path/".tmp-0123abcd").mkdir()
    (tmp_path/".tmp-0123abcd/state.json").write_text("{")
    (tmp_path/".trash-0123abcd").mkdir()
    (tmp_path/".last.abcd_123.tmp").write_text("step")
    sweep(tmp_path)
    assert {o.name for o in tmp_path.iterdir()} == {*users, ".tmp-deadbeef"}


# ---- exports and shards that were interrupted

def _export(folder):
    folder.mkdir()
    (folder/deploy.MANIFEST).write_text(json.dumps(dict(kind=deploy._KIND)))

def test_left_folders_of_exports_go_by_their_own_form(tmp_path):
    for o in (".model-0123abcd.tmp", ".model-01234567.tmp", ".model-mine.tmp", ".other-0123abcd.tmp"): (tmp_path/o).mkdir()
    (tmp_path/".model-0123abcd.tmp/config.json").write_text("{")
    (tmp_path/".model-01234567.tmp/thesis.tex").write_text("mine")
    for o in tmp_path.iterdir(): os.utime(o, (1, 1))
    (tmp_path/".model-89abcdef.tmp").mkdir()             # of a process that is writing now
    with deploy.whole_folder(tmp_path/"model") as made: (made/"config.json").write_text("{}")
    assert {o.name for o in tmp_path.iterdir()} == {"model", ".model-01234567.tmp", ".model-mine.tmp", ".other-0123abcd.tmp", ".model-89abcdef.tmp"}

def test_an_export_is_there_after_a_kill_between_its_renames(tmp_path):
    _export(tmp_path/".model-0123abcd.old")
    with pytest.raises(VisionlabError, match="names no format"): load.load_model(tmp_path/"model")      # found, and read as far as it goes
    try:
        with deploy.whole_folder(tmp_path/"model"): raise OSError("broken disk")
    except OSError: pass
    assert [o.name for o in tmp_path.iterdir()] == ["model"] and (tmp_path/"model"/deploy.MANIFEST).is_file()

def test_interrupted_shards_are_refused_and_cleared(catalog, tmp_path, monkeypatch):
    from visionlab.data import shards
    write,done = shard_files._finished, []
    def stop(fs, writer):
        if len(done) == 2: raise KeyboardInterrupt
        done.append(1)
        return write(fs, writer)
    monkeypatch.setattr(shard_files, "_finished", stop)
    with pytest.raises(KeyboardInterrupt): write_shards(catalog, tmp_path/"s", max_count=3)
    monkeypatch.setattr(shard_files, "_finished", write)
    for o in (tmp_path/"s").glob("*.part"): o.unlink()         # killed between two shards
    for at in (tmp_path/"s", tmp_path/"s/*.tar", tmp_path/"s/train-000000.tar"):
        with pytest.raises(VisionlabError, match="interrupted"): Catalog.from_shards(at)
    write_shards(catalog, tmp_path/"s", max_count=100)
    assert len(Catalog.from_shards(tmp_path/"s")) == len(catalog)
    assert sorted(o.name for o in (tmp_path/"s").iterdir()) == ["train-000000.tar", "val-000000.tar", INDEX]

def test_tars_without_a_line_in_the_index_are_not_read(catalog, tmp_path):
    write_shards(catalog, tmp_path/"s")
    (tmp_path/"s/train-000007.tar").write_bytes((tmp_path/"s/val-000000.tar").read_bytes())
    for at in (tmp_path/"s", tmp_path/"s/*.tar"): assert len(Catalog.from_shards(at)) == len(catalog)

def test_shards_are_not_mixed_with_tars_of_others(catalog, tmp_path):
    (tmp_path/"train-000000.tar").write_bytes(b"mine")
    with pytest.raises(VisionlabError, match="already"): write_shards(catalog, tmp_path)
    assert (tmp_path/"train-000000.tar").read_bytes() == b"mine"


# ---- every reader, against damaged and hostile files

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}']*9)}]\n" for a,b in zip("abcdef", "bcdefg"))
HOSTILE = dict(bomb=_BOMB, date="data: 2024-13-45", key="? [a, b]\n: 1\n", mapping="? {a: 1}\n: 1\n", itself="data: &a [*a]", merged="data: &a {<<: *a}", deep="data: " + "["*20_000 + "]"*20_000,
               dict_deep="".join(" "*i + "a:\n" for i in range(300)), tag="data: !!python/object/apply:os.system [true]", number="data: !!int abc", binary="data: !!binary ä", nul="data: \0",
               control="\x1b[31m", unknown="data: *nowhere", empty="", text="word", half="data: [1", merge="<<: 5\ndata: x")

@pytest.mark.parametrize("name", HOSTILE)
def test_odd_yaml_is_a_typed_error(name, tmp_path):
    (path := tmp_path/"c.yaml").write_text(HOSTILE[name])
    (tmp_path/"config.yaml").write_text(HOSTILE[name])
    (tmp_path/"train.log").touch()
    for read in (read_settings_file, TrainConfig.load, read_settings):
        try: read(path)
        except VisionlabError: pass
    assert len(list_runs(tmp_path)) == 1

def test_a_bomb_of_aliases_costs_nothing():
    assert len(_BOMB) < 300
    start = time.process_time()
    with pytest.raises(ValueError, match="aliases"): settings.read_yaml(_BOMB)
    assert time.process_time() - start < .1

def test_aliases_may_be_used(): assert settings.read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == dict(a=dict(x=1), b=dict(x=1, y=2), c=dict(x=1))

def _damages(data, rng, n):
    "Yield versions of a file that was cut, overwritten, or filled with something else"
    for _ in range(n):
        i,j = sorted(rng.integers(0, len(data)+1, 2).tolist())
        yield data[:i]
        yield data[:i] + rng.bytes(min(j-i, 40)) + data[j:]
        yield data[:i] + rng.choice([b"null", b"[]", b"{}", b"-1", b"1e999", b'"', b"\xff", b"\0", b"[[[["]) + data[j:]
    yield from (b"", b"null", b"[]", b"{}", b"1", b"\0"*50, b"["*100_000, b'{"a":'*50_000)

def _swap_values(d, rng):
    "Yield JSON objects in which one value is of another kind"
    for k in d:
        for v in (None, -1, "x", [], {}, [[]], [None], {"a":1}, 1e308, [{}]): yield json.dumps(d | {k:v}).encode()

@pytest.mark.parametrize("file", ["catalog.json", "catalog.csv"])
def test_a_damaged_catalog_is_a_typed_error(file, catalog, tmp_path):
    catalog.save(tmp_path)
    whole,rng = (tmp_path/file).read_bytes(), np.random.default_rng(0)
    versions = [*_damages(whole, rng, 60), *(_swap_values(json.loads(whole), rng) if file.endswith("json") else ())]
    for o in versions:
        (tmp_path/file).write_bytes(o)
        try: Catalog.load(tmp_path)
        except VisionlabError: pass

def test_damaged_indexes_of_shards_are_typed_errors(catalog, tmp_path):
    write_shards(catalog, tmp_path)
    whole,rng = (tmp_path/INDEX).read_bytes(), np.random.default_rng(0)
    for o in [*_damages(whole, rng, 30), *_swap_values(json.loads(whole), rng)]:
        (tmp_path/INDEX).write_bytes(o)
        try: Catalog.from_shards(tmp_path, on_bad="skip")
        except VisionlabError: pass

def test_damaged_edits_are_typed_errors(catalog, tmp_path):
    check(catalog).save(tmp_path)
    whole,rng = (tmp_path/"edits.csv").read_bytes() + b"train/brick/0.jpg,exclude,,,1\n", np.random.default_rng(0)
    for o in _damages(whole, rng, 60):
        (tmp_path/"edits.csv").write_bytes(o)
        try: catalog.apply_edits(tmp_path/"edits.csv")
        except VisionlabError: pass

@pytest.mark.parametrize("note", ["5", "null", "{}", "[5]", "[[1]]", '[["a", "b"]]', "[" * 100_000, "[[1, 2, 3]]", "[[99999999, \"x\"]]", "[[null, null]]"])
def test_damaged_notes_of_an_audit_are_made_anew(note, catalog, tmp_path, monkeypatch):
    from visionlab.data import module as data
    from visionlab.data.images import Images
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path))
    audit.audit(catalog, Images(catalog, 3), 1)
    notes = [o for o in tmp_path.rglob("*.json")]
    assert notes
    for o in notes: o.write_text(note)
    assert audit.audit(catalog, Images(catalog, 3), 1) == []

def test_a_damaged_checkpoint_or_manifest_is_a_typed_error(tmp_path):
    made = tmp_path/"step-00000001"
    made.mkdir()
    for name in (checkpoints.MANIFEST, *checkpoints.FILES): (made/name).write_bytes(b"{}")
    for o in _damages(b'{"kind": "visionlab checkpoint", "format": 1, "files": {}, "sha256": "x"}', np.random.default_rng(0), 60):
        (made/checkpoints.MANIFEST).write_bytes(o)
        with pytest.raises(VisionlabError): checkpoints.Checkpoint.read(made)
        (made/deploy.MANIFEST).write_bytes(o)
        with pytest.raises(VisionlabError): load.load_model(made)


# ---- texts that act on spreadsheets, terminals and cards

def test_tables_of_answers_hold_no_formulas(tmp_path):
    found = Predictions([Prediction([(NASTY, .9)], torch.tensor([.9]), "=1+1.jpg")])
    rows = pd.read_csv(found.to_csv(tmp_path/"p.csv"))
    assert rows["path"][0] == "'=1+1.jpg" and rows["label"][0].startswith("'=")
    table = pd.read_csv(__import__("io").BytesIO(text.csv_bytes(pd.DataFrame({"=a":["@x", 1.5], "b":[-1.5, None]}, index=["+run", "r"]), "run")))
    assert table["run"].tolist() == ["'+run", "r"] and table["'=a"].tolist() == ["'@x", "1.5"] and table["b"].tolist()[0] == -1.5

def test_the_table_of_runs_holds_no_formulas(tmp_path):
    (run := tmp_path/"=run").mkdir()
    (run/"config.yaml").write_text("data: x\nmodel: '=HYPERLINK(1)'\n")
    (run/"metrics.csv").write_text("epoch,accuracy\n1,.5\n")
    (other := tmp_path/"b").mkdir()
    (other/"config.yaml").write_text("data: x\nmodel: b\n")
    (other/"metrics.csv").write_text("epoch,accuracy\n1,.5\n")
    assert main(["runs", str(tmp_path), "--csv", str(tmp_path/"t.csv")]) == 0
    table = pd.read_csv(tmp_path/"t.csv").set_index("run")
    assert set(table.index) == {"'=run", "b"} and table.loc["'=run", "model"] == "'=HYPERLINK(1)"

def test_what_is_printed_commands_no_terminal(capsys, tmp_path):
    from visionlab.cli import _failed, _say, _tell
    p = Prediction([(NASTY, .9)], torch.tensor([.9]), "a\x1b]0;x\x07.jpg")
    _tell(p, False)
    _tell(Prediction([], torch.tensor([.9]), "b\x9b.jpg", error="\x1b[2J"), False)
    _failed(core.DataError("what \x1b[2J", "where \x9b1m"), False)
    _say("a\x1b[2J\nb")
    out,err = capsys.readouterr()
    for text in (out, err, repr(p)): assert all(o.isprintable() or o in "\n\t" for o in text)

def test_a_training_says_nothing_that_commands_a_terminal(photos, tmp_path):
    import shutil
    from visionlab.runs.train import train
    shutil.copytree(photos, tmp_path/"p")
    for s in ("train", "val"): (tmp_path/"p"/s/"brick").rename(tmp_path/"p"/s/"[x](http:\x1b[31m")
    said = []
    learn = train(data=str(tmp_path/"p"), model="resnet9", image_size=16, epochs=1, num_workers=0, device="cpu", on_leak="ignore", out=str(tmp_path/"run"), precision="fp32", say=lambda o: said.append(str(o)))
    text = "\n".join([*said, repr(learn.data), (tmp_path/"run/train.log").read_text(), (tmp_path/"run/README.md").read_text()])
    assert "\\x1b" in text and all(o.isprintable() or o in "\n\t" for o in text)
    assert "\\[x\\](http" in (tmp_path/"run/README.md").read_text()
    from visionlab.runs.evaluate import evaluate
    found = evaluate(learn)
    assert all(o.isprintable() or o == "\n" for o in repr(found))
    rows = pd.read_csv(found.save(tmp_path/"answers.csv"))
    assert list(rows) == ["id", "path", "true", "predicted", "prob", "loss"] and len(rows) == len(found.found)

@pytest.mark.parametrize("text", ["[x](http://a.b)", "![i](x)", "<script>", "**b** _a_", "# h", "- x", "1. y", "~~a~~", "www.a.b", "a\n# b", "`c`", "http://a.b", "&lt;b&gt;"])
def test_a_card_shows_names_as_they_are(text):
    from markdown_it import MarkdownIt
    from visionlab.runs.model_card import _text
    html = MarkdownIt("commonmark", dict(html=True)).render(f"- {_text(text)}")
    import re
    assert set(re.findall(r"</?\w+", html)) == {"<ul", "</ul", "<li", "</li"} and "http://" not in _text(text) and "www." not in _text(text)


def test_json_that_is_nested_without_end_is_a_typed_error_or_ignored(tmp_path):
    deep = "["*100_000
    (tmp_path/"config.json").write_text(deep)
    (tmp_path/"model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError): ImageClassifier(str(tmp_path))
    log = Logger(tmp_path)
    log.journal = tmp_path/"config.json"
    assert log._noted() is None


# ---- writers of what a model gives, and the command line's, against full and read-only disks; the state of a training alone

@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    "A learner with a checkpoint, its export, and what it answered."
    from visionlab.data.module import ImageDataModule
    from visionlab.runs.evaluate import evaluate
    from visionlab.training.learner import Learner
    from visionlab.runs.folder import SaveCheckpoints
    root = tmp_path_factory.mktemp("trained")
    learn = Learner(ImageDataModule(photos, image_size=16, batch_size=4, num_workers=0), "resnet9", device="cpu", pretrained=False)
    learn.fit(1, callbacks=[SaveCheckpoints(root/"run/checkpoints")])
    learn.export(root/"model")
    (root/"run/config.yaml").write_text("data: x\nmodel: b\n")
    (root/"run/metrics.csv").write_text("epoch,accuracy\n1,.5\n")
    return learn, root, evaluate(learn)

class Full:
    "Let the disk refuse at a step of writing a file; those that are for other folders are done"
    def __init__(self, monkeypatch, step, number):
        def refuse(*args, **kwargs): raise OSError(number, os.strerror(number))
        if step == "open": monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
        else: monkeypatch.setattr(core.os, step, refuse)

def _main(*args): return main([str(o) for o in args])

GIVEN = dict(evaluation_json=("e.json", lambda t, at: t[2].save(at)), evaluation_csv=("e.csv", lambda t, at: t[2].save(at)), export=("model", lambda t, at: t[0].export(at)),
             answers=("a.csv", lambda t, at: _main("evaluate", t[1]/"model", _photos(t), "--answers", at)), evaluate_json=("a.json", lambda t, at: _main("evaluate", t[1]/"model", _photos(t), "--json", at)),
             predict_json=("p.json", lambda t, at: _main("predict", t[1]/"model", _photos(t), "--json", at)), html=("r.html", lambda t, at: _main("check", _photos(t), "--html", at)),
             check_json=("r.json", lambda t, at: _main("check", _photos(t), "--json", at)), runs_csv=("t.csv", lambda t, at: _main("runs", t[1], "--csv", at)), runs_json=("t.json", lambda t, at: _main("runs", t[1], "--json", at)))

def _photos(t): return t[0].data.catalog.root

def _content(folder): return {str(o.relative_to(folder)):o.read_bytes() for o in sorted(folder.rglob("*")) if o.is_file()}

@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read_only"])
@pytest.mark.parametrize("name", GIVEN)
def test_what_a_model_gives_is_written_whole_or_not_at_all(name, number, trained, tmp_path, monkeypatch, capsys):
    file,write = GIVEN[name]
    write(trained, tmp_path/file)                              # one's own of before
    before = _content(tmp_path)
    assert before
    for step in ("fsync", "replace", "open") if name != "export" else ("fsync", "rename", "open"):
        with monkeypatch.context() as m:
            Full(m, step, number)
            capsys.readouterr()
            try: code = write(trained, tmp_path/file)
            except VisionlabError as e: code,said = 1, str(e)
            else: said = capsys.readouterr().err
        assert code == 1 and os.strerror(number) in said and "Traceback" not in said, step
        assert _content(tmp_path) == before and len(list(tmp_path.iterdir())) == 1, step

@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("name", [o for o in GIVEN if o != "export"])
def test_a_link_to_the_full_device_is_a_typed_error(name, trained, tmp_path, capsys):
    file,write = GIVEN[name]
    (tmp_path/file).symlink_to("/dev/full")
    try: code = write(trained, tmp_path/file)
    except VisionlabError as e: code,said = 1, str(e)
    else: said = capsys.readouterr().err
    assert code == 1 and "No space left" in said and (tmp_path/file).is_symlink() and len(list(tmp_path.iterdir())) == 1

def _sealed_again(folder):
    "Let the manifest of a checkpoint say what its files are now"
    d = json.loads((folder/checkpoints.MANIFEST).read_text())
    del d["sha256"]
    d["files"] = {o:dict(bytes=(folder/o).stat().st_size, sha256=files.file_sha256(folder/o)) for o in checkpoints.FILES}
    (folder/checkpoints.MANIFEST).write_bytes(checkpoints._sealed(d))

def test_a_damaged_state_is_a_typed_error_though_its_manifest_agrees(trained, tmp_path):
    import shutil
    learn,root,_ = trained
    shutil.copytree(checkpoints.list_checkpoints(root/"run/checkpoints")[0], made := tmp_path/"step-00000001")
    whole,rng = (made/"state.json").read_bytes(), np.random.default_rng(0)
    state = json.loads(whole)
    within = [json.dumps(state | {k:json.loads(v)}).encode() for k in ("position", "optimizer", "callbacks") for v in _swap_values(state[k], rng)]
    missing = [json.dumps({k:v for k,v in state.items() if k != o}).encode() for o in state]
    read = 0
    for o in [whole, *_damages(whole, rng, 20), *_swap_values(state, rng), *within, *missing]:
        (made/"state.json").write_bytes(o)
        _sealed_again(made)
        try:
            found = checkpoints.Checkpoint.read(made)
            repr(found), found.step, found.nbytes, found.weights(learn.model)
            learn.resume(found)
            read += 1
        except VisionlabError: pass
        finally: learn.pending = None
    assert read
    manifest = made/checkpoints.MANIFEST
    manifest.unlink()
    for o in [*_damages(whole, rng, 10), *_swap_values(state, rng), *(json.dumps(state | dict(network=json.loads(v))).encode() for v in _swap_values(state["network"], rng))]:
        (made/"state.json").write_bytes(o)
        try: ImageClassifier(made)
        except VisionlabError: pass


@pytest.mark.parametrize("sign", ["checkpoints/epoch=3.ckpt", "train.log", ".lock"])
def test_a_project_of_somebody_else_is_no_run(tmp_path, sign):
    for name in (sign, "README.md", "config.yaml"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("years of work")
    with pytest.raises(ConfigError, match="no run, and holds what one would replace"): RunFolder(tmp_path, overwrite=True)
    assert (tmp_path/"README.md").read_text() == (tmp_path/"config.yaml").read_text() == "years of work"
