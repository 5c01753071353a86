"The command line: every field a flag, AutoTrain's command lines, exit codes, logs and terminals, what a dry run says, evaluating and listing, scripts whose processes begin anew."
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from photos import photo_folder
from visionlab.cli import _COMMANDS, _parsed, main
from visionlab.runs.config import field_groups, TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--model", "resnet9", "--image-size", "16", "--num-workers", "0", "--device", "cpu", "--batch-size", "8", "--on-leak", "ignore"]


@pytest.fixture(autouse=True)
def own_place(monkeypatch, tmp_path):
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("VISIONLAB_PROGRESS", raising=False)
    (tmp_path/"here").mkdir()
    monkeypatch.chdir(tmp_path/"here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return photo_folder(tmp_path_factory.mktemp("cli"), n_train=8, n_val=4, size=32, classes=("brick", "chelsea", "coffee"))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", "--data", str(folder), "--out", str(runs/"first"), "--epochs", "2", *SMALL]) == 0
    return runs/"first"


def called(*argv, stdout=None):
    "Run a command here; return its exit code and what it wrote"
    with contextlib.redirect_stdout(stdout or io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: code = main([str(o) for o in argv])
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()


def started(*argv, cwd=None, **env):
    "Run Python in a process of its own"
    return subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}, capture_output=True, text=True, timeout=400)


# ---- flags and help

def test_every_field_is_a_flag_in_a_group():
    code, said, _ = called("train", "--help")
    assert code == 0 and max(map(len, said.splitlines())) <= 80
    places = [said.index(f"\n{group}:\n") for group in field_groups()]
    assert places == sorted(places) and list(field_groups()) == ["essentials", "data", "model", "training", "augmentation", "run", "hardware"]
    flags = [o.split()[0].replace("[no-]", "") for o in said.splitlines() if o.startswith("  --")]
    for f in fields(TrainConfig): assert flags.count(f"--{f.name.replace('_', '-')}") == 1, f.name
    assert "--data-path" not in flags and "[5]" in said                 # other libraries' names work unseen; defaults are shown


def test_the_first_help_is_short():
    code, said, _ = called("--help")
    assert code == 0 and len(said.splitlines()) <= 22 and max(map(len, said.splitlines())) <= 80
    for name in _COMMANDS:
        assert name in said
        code, more, _ = called(name, "--help")
        assert code == 0 and max(map(len, more.splitlines())) <= 80 and more.startswith(f"usage: visionlab {name}")


def test_flags_become_the_configuration(monkeypatch):
    import visionlab.runs.train
    seen = []
    monkeypatch.setattr(visionlab.runs.train, "train", seen.append)
    argv = ["--data", "d", "--classes", "cat", "dog", "--label-columns", "only", "--scheduler-args", "warmup_steps=5", "--optimizer-args", '{"betas": [0.8, 0.9]}', "--class-weights", "1", "2.5", "--mix-switch-off", "-2",
            "--no-pretrained", "--compile", "--ema", ".99", "--image-size", "[32, 48]", "--metrics", "accuracy", "f1_macro", "--normalize", "[[.5, .5, .5], [.2, .2, .2]]", "--save-checkpoint-args", "steps=3", "keep=1", "--cache", "none"]
    assert called("train", *argv)[0] == 0 and called("train", "--data", "d", "--class-weights", "auto")[0] == 0
    c, auto = seen
    assert c.classes == ["cat", "dog"] and c.label_columns == ["only"] and c.scheduler_args == dict(warmup_steps=5) and c.optimizer_args == dict(betas=[.8, .9])
    assert [float(o) for o in c.class_weights] == [1, 2.5] and c.mix_switch_off == -2 and c.pretrained is False and c.compile is True and c.ema == .99 and tuple(c.image_size) == (32, 48)
    assert c.metrics == ["accuracy", "f1_macro"] and c.normalize == ([.5]*3, [.2]*3) and c.save_checkpoint_args == dict(steps=3, keep=1) and c.cache == "none" and auto.class_weights in ("auto", ["auto"])


def test_a_file_and_flags_over_it(monkeypatch, tmp_path):
    import visionlab.runs.train
    seen = []
    monkeypatch.setattr(visionlab.runs.train, "train", seen.append)
    monkeypatch.setenv("WHERE", "pets")
    (tmp_path/"run.yaml").write_text("data: ${WHERE}/all\nepochs: 3\nlr: 0.01\n")
    (tmp_path/"autotrain.yaml").write_text(yaml.safe_dump(dict(task="image_classification", base_model="resnet9", project_name="my-project", log="none", backend="local",
        data=dict(path="pets", train_split="train", valid_split="validation", column_mapping=dict(image_column="image", target_column="labels")),
        params=dict(epochs=2, batch_size=4, lr=2e-5, optimizer="adamw_torch", scheduler="linear", gradient_accumulation=1, mixed_precision="fp16"), hub=dict(username="me", push_to_hub=False))))
    assert called("train", "--config", tmp_path/"run.yaml", "--epochs", "1", "--lr", "none")[0] in (0, 2)
    assert called("train", "--config", tmp_path/"run.yaml", "--epochs", "1")[0] == 0
    assert called("--config", tmp_path/"autotrain.yaml", "--batch-size", 5)[0] == 0
    a, b = seen[-2:]
    assert (a.data, a.epochs, a.lr) == ("pets/all", 1, .01)
    assert (b.data, b.model, b.out, b.batch_size, b.label_column, b.valid, b.precision, b.scheduler) == ("pets", "resnet9", "my-project", 5, "labels", "validation", "fp16", "linear")


# ---- AutoTrain's command lines

def autotrain(folder, tmp_path, kind):
    "Make what AutoTrain's documents train on: a folder with train and validation, or a table"
    place = tmp_path/"data"
    place.mkdir()
    if kind == "folder": [shutil.copytree(folder/source, place/name) for name, source in (("train", "train"), ("validation", "val"))]; return place
    paths = sorted((folder/"train").rglob("*.jpg"))
    if kind == "saved": return saved(folder, tmp_path/"my-saved"/"autotrain-data").parent
    pd.DataFrame(dict(image_path=map(str, paths), label=[o.parent.name for o in paths])).to_csv(place/"train.csv", index=False)
    return place/"train.csv"


def saved(folder, place):
    "Write a dataset as save_to_disk does, in columns of odd names"
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    names = ["brick", "chelsea", "coffee"]
    def part(split):
        paths = sorted((folder/split).rglob("*.jpg"))
        return Dataset.from_dict(dict(photo=list(map(str, paths)), kind=[names.index(o.parent.name) for o in paths], note=["x"]*len(paths)), features=Features(dict(photo=Image(), kind=ClassLabel(names=names), note=ClassLabel(names=["x"]))))
    DatasetDict(train=part("train"), validation=part("val")).save_to_disk(str(place))
    return place


DOCUMENTED = {
    "saved": "image-classification --train --model resnet9 --data-path DATA --project-name saved-classifier --image-column photo --target-column kind --train-split train --valid-split validation --epochs 1 --batch-size 8 --lr 5e-5",
    "folder": "image-classification --train --model resnet9 --data-path DATA --project-name my-classifier --train-split train --valid-split validation --epochs 2 --batch-size 8 --lr 5e-5 --scheduler cosine --weight-decay 0.01 --seed 42",
    "table": "image-classification --train --model resnet9 --data-path DATA --project-name table-classifier --image-column image_path --target-column label --epochs 1 --batch-size 4 --mixed-precision bf16 "
             "--gradient-accumulation 2 --early-stopping-patience 3 --early-stopping-threshold 0.01 --warmup-ratio 0.1 --optimizer adamw_torch --max-grad-norm 1.0 --save-total-limit 1 --logging-steps -1 --eval-strategy epoch "
             "--auto-find-batch-size --no-push-to-hub --username me --token secret-token --log none --backend local"}


@pytest.mark.parametrize("kind", list(DOCUMENTED))
def test_documented_command_lines_of_autotrain_run(kind, folder, tmp_path):
    data = autotrain(folder, tmp_path, kind)
    argv = DOCUMENTED[kind].replace("DATA", str(data)).split()
    code, said, err = called(*argv, "--image-size", 16, "--num-workers", 0, "--on-leak", "ignore")
    assert code == 0, err
    out = Path(argv[argv.index("--project-name")+1])
    assert (out/"exported_models"/"exported_last"/"model.safetensors").is_file() and "Validation: loss" in said
    config = TrainConfig.load(out/"config.yaml")
    assert config.data == str(data) and config.epochs == int(argv[argv.index("--epochs")+1])
    if kind == "folder": assert (config.lr, config.scheduler, config.valid) == (5e-5, "cosine", "validation")
    if kind == "saved": assert "3: brick, chelsea, coffee" in said and "24" in said and "12" in said
    if kind == "table": assert (config.gradient_accumulation, config.precision, config.optimizer) == (2, "bf16", "adamw_torch")
    assert not any(b"secret-token" in o.read_bytes() for o in out.rglob("*") if o.is_file())


@pytest.mark.parametrize("argv,said", [
    ([], "no data"), (["--data-path", "d", "--data", "e"], "say the same"), (["--data", "d", "--backend", "spaces-a10g"], "backend='spaces-a10g' is not possible here"), (["--data", "d", "--push-to-hub"], "push_to_hub"),
    (["--data", "d", "--epochs", "three"], "epochs must be a whole number"), (["--data", "d", "--precision", "fp8"], "fp16"), (["--config", "gone.yaml"], "cannot be read"), (["--resume", "gone"], "no run to go on with"),
    (["--resume", "gone", "--config", "x.yaml"], "Keep one")])
def test_command_lines_that_cannot_be(argv, said):
    code, out, err = called("train", *argv)
    assert code == 2 and said in err and "fix:" in err and "Traceback" not in err and len(err.splitlines()) <= 3 and not out


@pytest.mark.parametrize("argv,said", [
    (["train", "--data", "d", "--bach-size", "3"], "did you mean --batch-size"), (["train", "photos"], "did you mean --data"), (["train", "--csv-options", "delimiter"], "is not NAME=VALUE"), (["trian"], "invalid choice"),
    (["predict", "m", "x.png", "--topk", "many"], "invalid int value"), (["train", "--data", "d", "--optimizer-args", "{x"], "is no JSON"),
    (["predict", "m"], "IMAGES, in its place or as --data"), (["check"], "DATA, in its place or as --data")])
def test_flags_that_do_not_exist(argv, said):
    code, out, err = called(*argv)
    assert code == 2 and said in err and not out


def test_the_command_alone_prints_its_help():
    code, out, err = called()
    assert code == 0 and "commands:" in out and "lr-find" in out and not err


@pytest.mark.parametrize("argv,name,value", [
    (["evaluate", "run", "--data", "photos", "--split", "test"], "data", "photos"), (["evaluate", "run", "photos"], "data", "photos"),
    (["check", "--data", "photos"], "data", "photos"), (["check", "photos", "--json", "-"], "data", "photos"),
    (["predict", "run", "--data", "a.png", "b.png"], "images", ["a.png", "b.png"]), (["predict", "run", "a.png", "b.png"], "images", ["a.png", "b.png"]),
    (["predict", "--data", "photos", "--topk", "3", "run"], "images", ["photos"]), (["lr-find", "--data", "photos"], "data", "photos"),
    (["train", "--data", "photos"], "data", "photos")])
def test_data_is_a_place_or_a_flag(argv, name, value):
    assert getattr(_parsed(argv), name) == value


# ---- exit codes and what is written where

def test_our_errors_have_three_lines_and_exit_code_1(folder, tmp_path):
    empty = tmp_path/"empty"
    empty.mkdir()
    for argv in (["train", "--data", empty, *SMALL], ["check", tmp_path/"gone"], ["evaluate", empty, folder], ["predict", empty, folder], ["export", empty, tmp_path/"model"], ["runs", tmp_path/"gone"]):
        code, out, err = called(*argv)
        assert code == 1 and err.startswith("visionlab: ") and "\n  fix: " in err and len(err.splitlines()) <= 3 and "Traceback" not in err, (argv, err)
    code, out, err = called("train", "--data", empty, "--debug")
    assert code == 1 and "Traceback" in err and "EmptyDatasetError" in err


def test_interrupted_and_warnings(monkeypatch):
    import warnings
    import visionlab.runs.train
    def stop(config): warnings.warn("the light flickers"); raise KeyboardInterrupt
    monkeypatch.setattr(visionlab.runs.train, "train", stop)
    code, out, err = called("train", "--data", "d")
    assert code == 130 and err.splitlines() == ["visionlab: warning: the light flickers", "visionlab: interrupted"]


class Terminal(io.StringIO):
    def isatty(self): return True


def test_a_log_has_one_line_an_epoch_and_a_terminal_a_moving_one(folder, monkeypatch):
    argv = ["train", "--data", folder, "--epochs", 3, *SMALL]
    code, said, err = called(*argv)
    rows = [o.split() for o in said.splitlines() if o.split()[:1] in (["1"], ["2"], ["3"])]
    assert code == 0 and len(rows) == 3 and "\r" not in said + err and "\x1b" not in said + err
    monkeypatch.setenv("NO_COLOR", "1")
    code, shown, err = called(*argv, stdout=Terminal())
    assert code == 0 and "\r" in shown and "\x1b" not in shown + err


def test_a_reader_that_left_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.Popen([sys.executable, "-m", "visionlab", "--help"], stdout=write, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.communicate()[1] == b"" and done.returncode in (0, 141)        # argparse itself may swallow it
    os.close(write)


def test_help_does_not_wait_for_torch():
    done = started("-c", "import sys\nfrom visionlab.cli import main\ntry: main(['--help'])\nexcept SystemExit: print([o for o in ('torch', 'pandas', 'matplotlib', 'timm', 'PIL') if o in sys.modules])")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_python_m_visionlab_is_the_command(folder, tmp_path):
    done = started("-m", "visionlab", "train", "--data", folder, "--out", "run", "--epochs", "1", *SMALL, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and "\r" not in done.stdout and "Model: " in done.stdout, done.stderr
    assert (tmp_path/"run"/"exported_models"/"exported_last").is_dir()


# ---- dry runs

def test_a_dry_run_tells_all_and_writes_nothing(folder, tmp_path):
    data = tmp_path/"data"
    for split in ("train", "val"):
        for name in ("brick", "chelsea", "coffee"):
            (data/split/name).mkdir(parents=True)
            for o in (folder/split/name).iterdir(): (data/split/name/o.name).write_bytes(o.read_bytes())
    (data/"val"/"brick"/"copy.jpg").write_bytes((data/"train"/"brick"/"000.jpg").read_bytes())
    (data/"train"/"coffee"/"broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    before = sorted(tmp_path.rglob("*"))
    argv = [o for o in SMALL if o not in ("--on-leak", "ignore")]
    code, said, err = called("train", "--data", data, "--out", "run", "--epochs", 3, "--max-bad", ".2", *argv, "--batch-size", 5, "--dry-run")
    assert code == 0, err
    facts = dict(o.split(None, 1) for o in said.splitlines() if len(o.split()) > 1 and o.startswith("  "))
    assert "5 steps, everything learns" in said and facts["Steps"] == "15, each of 5 images"              # 24 images: four batches of five and one of four
    assert "3: brick, chelsea, coffee" in said and "1 ×" in facts["Skipped"] and "too good" in said and "resnet9" in facts["Model"] and facts["Run"] == "run"
    for name in ("Memory", "Time", "Fit", "Parameters"): assert name in facts
    assert [o for o in sorted(tmp_path.rglob("*")) if "cache" not in o.parts] == [o for o in before if "cache" not in o.parts]


def test_a_dry_run_of_a_run_that_is_there(trained, folder):
    assert called("train", "--data", folder, "--out", trained, "--dry-run", *SMALL)[1].splitlines()[-1].endswith(f"{trained}-2, because {trained} is there")
    assert "goes on from step-" in called("train", "--resume", trained, "--epochs", 4, "--dry-run")[1].splitlines()[-1]


# ---- evaluate, export, lr-find, runs

def test_evaluate_a_run_on_any_data(trained, folder, tmp_path):
    code, said, err = called("evaluate", trained, "--which", "best", "--json", tmp_path/"own.json", "--answers", tmp_path/"own.csv")
    assert (code, err) == (0, ""), err
    assert "12 images" in said and "brick" in said and "accuracy" in said
    own, answers = json.loads((tmp_path/"own.json").read_text()), pd.read_csv(tmp_path/"own.csv")
    assert own["split"] == "val" and own["images"] == len(answers) == 12 and np.isclose(own["scores"]["accuracy"], (answers["true"] == answers["predicted"]).mean())
    scores = json.loads((trained/"scores.json").read_text())["Validation"]
    assert np.isclose(own["scores"]["loss"], scores["loss"], atol=1e-5) and np.isclose(own["scores"]["f1_macro"], scores["f1_macro"], atol=1e-6)
    assert np.trace(own["confusion"]) == (answers["true"] == answers["predicted"]).sum()

    paths = sorted((folder/"val").rglob("*.jpg"))[::-1]
    frame = pd.DataFrame(dict(file=map(str, paths), what=[o.parent.name for o in paths]))
    frame.to_csv(tmp_path/"t.csv", index=False)
    code, said, err = called("evaluate", trained/"exported_models"/"exported_best", tmp_path/"t.csv", "--image-column", "file", "--label-column", "what", "--json", "-")
    assert code == 0 and json.loads(said)["scores"] == pytest.approx(own["scores"], abs=1e-5)
    frame[frame["what"] != "coffee"].assign(what=lambda t: t["what"].map(dict(brick=0, chelsea=1))).to_csv(tmp_path/"ids.csv", index=False)
    code, said, err = called("evaluate", trained, tmp_path/"ids.csv", "--label-column", "what", "--image-column", "file", "--json", "-")
    assert code == 0 and json.loads(said)["classes"]["coffee"]["support"] == 0 and json.loads(said)["classes"]["brick"]["recall"] == own["classes"]["brick"]["recall"]
    code, said, err = called("evaluate", trained, folder, "--split", "all", "--json", "-")
    assert code == 0 and json.loads(said)["images"] == 36


def test_evaluate_says_yes_or_no(trained):
    assert called("evaluate", trained, "--require", "accuracy=0", "loss=1e9")[0] == 0
    code, said, err = called("evaluate", trained, "--require", "accuracy=1.1")
    assert code == 1 and "accuracy is" in err and "should be at least 1.1" in err
    for wrong, text in ((["--require", "accurcy=.5"], "accuracy"), (["--require", "accuracy=much"], "no number"), (["--split", "test"], "Known: train, val, all"), (["--which", "first"], "best, last")):
        code, said, err = called("evaluate", trained, *wrong)
        assert code == 1 and text in err


def test_export_predict_and_lr_find(trained, folder, tmp_path):
    assert called("export", trained, tmp_path/"model", "--which", "last")[0] == 0
    picture = next((folder/"val"/"coffee").iterdir())
    lines = [called("predict", o, picture, "--which", "last")[1] for o in (trained, tmp_path/"model")]
    assert lines[0] == lines[1] and lines[0].startswith(str(picture))
    code, said, err = called("predict", tmp_path/"model", picture, folder/"gone.jpg", "--json", "-")
    found = json.loads(said)
    assert code == 1 and "gone.jpg" in err and found[0]["top"][0]["label"] in ("brick", "chelsea", "coffee") and "error" in found[1]
    (tmp_path/"own").mkdir(); (tmp_path/"own"/"thesis.txt").write_text("years of work")
    code, said, err = called("export", trained, tmp_path/"own")
    assert code == 1 and "thesis.txt" in err and (tmp_path/"own"/"thesis.txt").exists()
    code, said, err = called("lr-find", "--data", folder, "--rates", 20, *SMALL)
    found = json.loads(Path("lr_find/lr_find.json").read_text())
    assert code == 0 and f"{found['best']:.2e}" in said and len(found["lrs"]) == len(found["losses"]) <= 20 and Path("lr_find/lr_find.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_are_listed_and_sorted(trained, tmp_path):
    runs = trained.parent
    (runs/"second").mkdir(exist_ok=True)
    (runs/"second"/"metrics.csv").write_text((trained/"metrics.csv").read_text())
    (runs/"second"/"config.yaml").write_text("data: elsewhere\nlr: 0.5\n")
    code, said, err = called("runs", runs, "--sort", "accuracy")
    assert (code, err) == (0, "") and {o.split()[0] for o in said.splitlines()[2:]} == {"first", "second"} and "stopped" in said and "done" in said
    table = pd.read_csv(io.StringIO(called("runs", runs, "--csv", "-", "--sort", "epochs")[1]))
    rows = json.loads(called("runs", runs, "--json", "-")[1])
    assert set(table["run"]) == {o["run"] for o in rows} == {"first", "second"} and rows[0]["epochs"] == 2
    code, said, err = called("runs", runs, "--sort", "beauty")
    assert code == 1 and "beauty" in err


# ---- scripts

SCRIPT = """
    import multiprocessing, random
    from PIL import ImageOps
    from visionlab.all import ImageDataModule, Learner

    def noisy(image): return image if random.random() < .5 else ImageOps.mirror(image)

    def go(folder):
        multiprocessing.set_start_method("spawn", force=True)
        dm = ImageDataModule(folder, train_transforms=noisy, num_workers=1, image_size=16, batch_size=8, on_leak="ignore")
        learn = Learner(dm, "resnet9", device="cpu")
        learn.fit(1)
        print("road", learn.train_dl._custom_road, "epochs", len(learn.history))
"""


def test_a_guarded_script_trains_with_spawned_workers(folder, tmp_path):
    lightly = f"""
        from visionlab import train_image_classification
        train_image_classification(out="lightly", data=dict(train={str(folder/'train')!r}, val={str(folder/'val')!r}), model="resnet9", steps=3, batch_size=8, num_workers=1, transform_args=dict(image_size=(16, 16)), accelerator="cpu")
    """
    body = textwrap.dedent(SCRIPT) + "\nif __name__ == '__main__':\n    import sys\n    go(sys.argv[1])" + textwrap.indent(textwrap.dedent(lightly), "    ")
    (tmp_path/"script.py").write_text(body)
    done = started("script.py", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "road processes epochs 1" in done.stdout and (tmp_path/"lightly"/"exported_models"/"exported_last").exists()


def test_a_script_without_a_guard_says_so_once(folder, tmp_path):
    (tmp_path/"script.py").write_text(textwrap.dedent(SCRIPT) + "\nimport sys\ngo(sys.argv[1])\n")
    done = started("script.py", folder, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.rstrip().splitlines()[-1].strip() == 'fix: Put what it does under: if __name__ == "__main__":', done.stderr
    assert done.stderr.count("would begin again in each process") == 1


def test_processes_begin_as_the_script_has_chosen(monkeypatch):
    import multiprocessing
    from visionlab.core.machine import check_guarded, UNGUARDED
    from visionlab.training.launch import choose_start
    from visionlab.data.own_transforms import worker_context
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "spawn")
    assert choose_start(photo_folder) == "spawn" and worker_context() is None
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: None)
    assert choose_start(photo_folder) == "fork" and worker_context() == "fork"
    check_guarded()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit) as e: check_guarded()
    assert e.value.code == UNGUARDED


# ---- data by name or in their place

def test_data_may_follow_a_flag(trained, folder):
    place, flag = called("evaluate", trained, folder, "--split", "val", "--json", "-"), called("evaluate", trained, "--data", folder, "--split", "val", "--json", "-")
    assert place[0] == flag[0] == 0 and place[1] == flag[1] and json.loads(flag[1])["images"] == 12
    file = next((folder/"val"/"brick").iterdir())
    assert called("predict", trained, file)[:2] == called("predict", trained, "--data", file)[:2] == (0, called("predict", trained, file)[1])
    several = called("predict", trained, "--data", file, folder/"val"/"coffee")
    assert several[0] == 0 and len(several[1].splitlines()) == 5
    assert called("check", folder)[0] == called("check", "--data", folder)[0]
    for argv in (["check"], ["predict", trained]):
        code, said, err = called(*argv)
        assert code == 2 and "are required" in err and "--data" in err


# ---- one model of a run

def test_scores_card_answers_and_value_are_about_the_best_epoch(trained):
    history = pd.read_csv(trained/"metrics.csv")
    best = history.sort_values(["accuracy", "valid_loss"], ascending=[False, True]).iloc[0]
    scores = json.loads((trained/"scores.json").read_text())["Validation"]
    assert scores["accuracy"] == pytest.approx(best["accuracy"], abs=1e-6) and scores["loss"] == pytest.approx(best["valid_loss"], abs=1e-4)
    evaluated = json.loads(called("evaluate", trained, "--split", "val", "--json", "-")[1])
    assert evaluated["model"].endswith("exported_best") and evaluated["scores"]["accuracy"] == pytest.approx(best["accuracy"], abs=1e-6)
    assert f"| accuracy | {best['accuracy']:.4f} |" in (trained/"README.md").read_text()


@pytest.mark.parametrize("names", [("exported_best",), ("exported_best", "exported_last")])
def test_an_export_killed_between_its_renames_is_found_at_every_door(trained, folder, tmp_path, names):
    import torch
    from visionlab.export.load import load_model
    from visionlab.models.classifier import ImageClassifier
    from visionlab.runs.making import _model_folder
    run = Path(shutil.copytree(trained, tmp_path/"run"))
    right = json.loads(called("evaluate", run, "--split", "val", "--json", "-")[1])["scores"]
    for o in names: (run/"exported_models"/o).rename(run/"exported_models"/f".{o}-0123abcd.old")
    left = run/"exported_models"/".exported_best-0123abcd.old"
    image = next((folder/"val").rglob("*.jpg"), None) or next(folder.rglob("*.jpg"))
    for model in (run, run/"exported_models"/"exported_best"):
        found = json.loads(called("evaluate", model, "--split", "val", "--json", "-")[1])
        assert found["scores"] == right and found["model"] == str(left)
        assert called("predict", model, image)[0] == 0
        assert called("export", model, tmp_path/f"copy-{model.name}")[0] == 0
        assert torch.equal(next(ImageClassifier(str(model)).parameters()), next(load_model(left, "cpu").model.parameters()))
        assert _model_folder(str(model)) == str(left)
    assert left.is_dir()                              # who reads changes nothing
