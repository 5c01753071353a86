"Runs are found wherever they lie, whole or not, and compared in one table."
import json
import os
import time

import pytest

from visionlab.runs.compare import higher_is_better, read_config, list_runs
from visionlab.core.errors import ConfigError, DataError, UnknownOptionError

ROWS = "epoch,train_loss,valid_loss,accuracy,lr,time\n0,.9,.8,.5,.001,2.5\n1,.7,.6,.75,.0005,2.5\n2,.6,.65,.7,.0001,2.5\n"

def make(path, config="epochs: 3\nlr: 0.004\n", rows=ROWS, card=True, log="2026-01-02 03:04:05 begun\n", name="config.yaml"):
    path.mkdir(parents=True)
    for o,text in ((name, config), ("train.log", log), ("metrics.csv", rows), ("README.md", "# a card" if card else None)):
        if text is not None: (path/o).write_bytes(text if isinstance(text, bytes) else text.encode())
    (path/"exported_models"/"exported_last").mkdir(parents=True)
    (path/"exported_models"/"exported_last"/"config.json").write_text("{}")
    return path


def test_nested_old_and_new(tmp_path):
    make(tmp_path/"a", json.dumps(dict(epochs=3, lr=.004, opt="adamw", csv_options=dict(header=True))), name="config.json")
    make(tmp_path/"deep"/"er"/"b", "epochs: 3\nlr: 0.01\nopt: adamw\ncsv_options: {header: false}\nout: /somewhere\n", log="2026-01-03 03:04:05 begun\n")
    (tmp_path/"notes").mkdir(); (tmp_path/"notes"/"metrics.txt").write_text("")
    found = list_runs(tmp_path)
    assert [o.name for o in found] == ["a", "deep/er/b"] and found.metric == "accuracy"
    assert list(found.frame.index) == ["deep/er/b", "a"]                        # the newest first
    assert set(found.differing) == {"lr", "csv_options.header"}
    row = found.frame.loc["a"]
    assert (row["state"], row["best accuracy"], row["best epoch"], row["epochs"], row["accuracy"], row["seconds"], row["lr"]) == ("done", .75, 2, 3, .7, 7.5, .004)
    assert str(row["started"]) == "2026-01-02 03:04:05" and row["MB"] > 0
    assert repr(found) == "Runs: 2, 2 done" and found["a"].best("valid_loss") == (2, .6)
    assert [o.name for o in list_runs(tmp_path/"a")] == ["a"] and len(list_runs([tmp_path/"a", tmp_path/"deep"])) == 2
    assert list_runs(tmp_path, "valid_loss").best() is not None and found.best("train_loss").name in ("a", "deep/er/b")

@pytest.mark.parametrize("options,state,reason", [
    (dict(), "done", ""),
    (dict(card=False), "stopped", ""),
    (dict(card=False, rows=None), "stopped", ""),
    (dict(log="2026-01-02 03:04:05 begun\n2026-01-02 03:04:06 Interrupted after 2 epochs: what has been learned\n"), "stopped", ""),
    (dict(log="2026-01-02 03:04:05 x\n2026-01-02 03:04:06 Interrupted after 2 epochs\n2026-01-02 03:04:07 Going on from Checkpoint\n"), "done", ""),
    (dict(config="epochs: [1\n"), "damaged", "config.yaml cannot be read"),
    (dict(config="just words"), "damaged", "holds no names and values"),
    (dict(config=b"\xff\xfe\x00"), "damaged", "cannot be read"),
    (dict(config="{", name="config.json"), "damaged", "config.json cannot be read"),
    (dict(rows="epoch,accuracy\n0,what\n"), "damaged", "metrics.csv cannot be read"),
    (dict(rows="epoch,accuracy\n0\n"), "damaged", "metrics.csv cannot be read"),
    (dict(rows=b"\x00\xff\xfe"), "damaged", "cannot be read"),
])
def test_states(tmp_path, options, state, reason):
    make(tmp_path/"good"); make(tmp_path/"run", **options)
    found = list_runs(tmp_path)
    run = found["run"]
    assert run.state == state and reason in run.reason and bool(reason) == bool(run.reason)
    assert len(found.frame) == 2 and found.best().name in ("good", "run")
    assert "run" in found._repr_html_() and len(found.plot().axes[0].lines) == sum(bool(o.values("accuracy")) for o in found)

def test_a_run_that_goes_on_after_its_end_and_stops(tmp_path):
    path = make(tmp_path/"run")
    assert list_runs(tmp_path)["run"].state == "done"
    os.utime(path/"README.md", (1, 1))
    assert list_runs(tmp_path)["run"].state == "stopped"

def test_a_run_that_is_written_now(tmp_path):
    from visionlab.runs.folder import RunFolder
    run = RunFolder(tmp_path/"now")
    found = list_runs(tmp_path)["now"]
    assert found.state == "running" and found.best("accuracy") == (None, None) and found.history == []
    run.close()
    assert list_runs(tmp_path)["now"].state == "stopped"
    RunFolder(tmp_path/"now", resume=True).close()              # looking took nothing

def test_values_that_are_no_numbers(tmp_path):
    make(tmp_path/"run", rows="epoch,accuracy,note\n0,,1\n1,nan,1\n2,.5,1\n")
    assert list_runs(tmp_path)["run"].values("accuracy") == [(3, .5)]

def test_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"): list_runs(tmp_path/"none")
    none = list_runs(tmp_path)
    assert len(none) == 0 and len(none.frame) == 0 and "No runs" in none._repr_html_() and none.plot() is not None
    with pytest.raises(DataError, match="No run has measured"): none.best()

def test_names_that_are_not_there(tmp_path):
    make(tmp_path/"run")
    with pytest.raises(UnknownOptionError, match="accuracy"): list_runs(tmp_path, "acuracy")
    with pytest.raises(UnknownOptionError, match="'run'"): list_runs(tmp_path)["rum"]

def test_html_is_escaped(tmp_path):
    make(tmp_path/"<b>bold</b>", "epochs: 3\nlr: <script>\n"); make(tmp_path/"x")
    page = list_runs(tmp_path)._repr_html_()
    assert "<script>" not in page and "<b>bold" not in page and "&lt;script&gt;" in page

def test_which_way_is_up():
    assert [higher_is_better(o) for o in ("accuracy", "f1_macro", "top5_accuracy", "valid_loss", "calibration_error", "images_per_second")] == [True, True, True, False, False, True]

def test_a_config_is_read_as_it_was_written(tmp_path):
    make(tmp_path/"run", "data: ${PHOTOS}\nhub: {name: x}\n")
    assert read_config(tmp_path/"run") == dict(data="${PHOTOS}", hub=dict(name="x")) and read_config(tmp_path) == {}

def test_five_hundred_runs(tmp_path):
    "Listed, with sizes and states, in less than two seconds of a processor."
    config = "".join(f"option_{i}: {i}\n" for i in range(70))
    for i in range(500): make(tmp_path/f"group{i % 7}"/f"run{i}", config + f"lr: {i/1000}\n")
    began = time.process_time()
    found = list_runs(tmp_path)
    assert len(found.frame) == 500 and list(found.differing) == ["lr"] and "the 50 newest" in found._repr_html_()
    assert time.process_time()-began < 2
    assert len(found.plot().axes[0].lines) == 12
