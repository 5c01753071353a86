"""README.md's commands and code run as written, in a folder of their own.

Shell blocks (```sh): the `visionlab` commands of each line, a line being joined by `&&`; other programs are left out, and trainings get one epoch.
Python blocks (```python): all of them in order, in one process, showing each line's value as a notebook would.
`<!-- test: skip (reason) -->` on the line above a block leaves it out: for what needs the reader's own data or a download.
"""
import json, re, shlex
from collections import namedtuple
from pathlib import Path
import pytest
from visionlab.cli import _config, _parsed, _translated

ROOT = Path(__file__).resolve().parents[1]
Block = namedtuple("Block", "text line")      # `line`: number of the block's first line in the document
FENCE = re.compile(r"^```([\w+-]*)\s*$")
SKIP = re.compile(r"^<!-- test: skip(?: \((?P<reason>[^)]+)\))? -->$")
SHELL_WORDS = {"|", "||", "&", ";", "<", ">", ">>"}
BUDGET = {"demo":["--epochs", "1"], "train":["--epochs", "1"]}      # appended: the last value of a flag counts
SECONDS = 600
COMMAND = "import sys; from visionlab.cli import main; sys.exit(main())"
SESSION = """
import ast, sys
document,*blocks = sys.argv[1:]
names = {"__name__":"__main__"}
for block in blocks: exec(compile(ast.Interactive(ast.parse(block, document).body), document, "single"), names)
"""

# ---- reading a document

def is_skipped(above, line):
    "Say whether the last lines above a block skip it; a skip must say why"
    mark = SKIP.match(next((o for o in reversed(above) if o.strip()), "").strip())
    if mark and not mark["reason"]: raise ValueError(f"line {line}: say why in the mark: <!-- test: skip (reason) -->")
    return bool(mark)

def fences(lines):
    "Pair the lines that open and close blocks, as (opening, closing, language)"
    start = None
    for i,line in enumerate(lines):
        if not (fence := FENCE.match(line)): continue
        if start is None: start,lang = i, fence[1]
        elif not fence[1]:
            yield start, i, lang
            start = None
    if start is not None: raise ValueError(f"line {start+1}: the block does not end")

def blocks(text, lang, skipped=False):
    "List a document's blocks in a language, without the skipped ones unless they are asked for, too"
    lines = text.splitlines()
    return [Block("\n".join(lines[a+1:b]), a+2) for a,b,o in fences(lines) if o == lang and (skipped or not is_skipped(lines[:a], a+1))]

def split_at_and(words):
    "Split a line's words at `&&`"
    found = [[]]
    for word in words:
        if word == "&&": found.append([])
        else: found[-1].append(word)
    return found

def commands(block):
    "List the arguments of each `visionlab` command in a shell block"
    lines = block.text.replace("\\\n", " ").splitlines()
    parts = [o for line in lines for o in split_at_and(shlex.split(line, comments=True)) if o[:1] == ["visionlab"]]
    odd = [o for part in parts for o in part if o in SHELL_WORDS or "$" in o]
    if odd: raise ValueError(f"line {block.line}: {odd[0]!r} needs a shell; write plain commands")
    return [part[1:] for part in parts]

# ---- running it

def with_budget(args): return [*args, *BUDGET.get(args[0] if args else "", [])]

def run_shell(text, folder, run_python):
    "Run a document's `visionlab` commands; return how many there were"
    todo = [o for block in blocks(text, "sh") for o in commands(block)]
    for args in todo:
        code,said = run_python("-c", COMMAND, *with_budget(args), seconds=SECONDS, cwd=folder)
        assert code == 0, f"visionlab {shlex.join(args)} ended with {code}\n{said}"
    return len(todo)

def run_session(path, folder, run_python):
    "Run a document's Python blocks, with its own line numbers in tracebacks; return how many there were"
    todo = blocks(path.read_text(encoding="utf-8"), "python")
    code,said = run_python("-c", SESSION, path, *["\n"*(o.line-1) + o.text for o in todo], seconds=SECONDS, cwd=folder)
    assert code == 0, f"a Python block of {path.name} ended with {code}\n{said}"
    return len(todo)

def test_readme_commands_run(tmp_path, run_python):
    assert run_shell((ROOT/"README.md").read_text(encoding="utf-8"), tmp_path, run_python), "README.md shows no visionlab command"

def test_readme_python_runs(tmp_path, run_python):
    assert run_session(ROOT/"README.md", tmp_path, run_python), "README.md shows no Python"

def documents():
    "List everything that shows commands: pages of text, and the text of notebooks"
    for path in (*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")): yield path.name, path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("nbs/**/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n\n".join("".join(o["source"]) for o in cells if o["cell_type"] == "markdown")

def test_every_command_that_is_shown_is_understood(capsys):
    "Commands in skipped blocks cannot run here, but they are read by the parser as a user's would be"
    seen = []
    for name,text in documents():
        for args in (o for block in blocks(text, "sh", skipped=True) for o in commands(block)):
            seen.append(args)
            try: _parsed(_translated(args))
            except SystemExit as e: assert e.code == 0, f"{name}: visionlab {shlex.join(args)}\n{capsys.readouterr().err}"
    assert ["evaluate", "runs/birds", "--data", "photos/", "--split", "test"] in seen and len(seen) >= 8

# ---- the harness itself

SAMPLE = """# Title
```sh
pip install -e . && visionlab demo
```
words
<!-- test: skip (needs photographs) -->

```sh
visionlab train --data photos/
```
```sh
# a comment
visionlab train --data "my set" \\
    --out runs/a   # where
visionlab --help && echo done
ls
```
```python
a = 2
```
<!-- test: skip (needs photographs) -->
```python
raise ValueError
```
```
visionlab in a block without a language
```
```python
def f(x):
    return x + a

f(1)
```
"""

def sample(tmp_path, text=SAMPLE):
    (tmp_path/"PAGE.md").write_text(text, encoding="utf-8")
    return tmp_path/"PAGE.md"

def test_blocks_and_their_lines():
    assert [o.line for o in blocks(SAMPLE, "sh")] == [3, 12] and [o.text[:5] for o in blocks(SAMPLE, "python")] == ["a = 2", "def f"]

def test_commands_are_the_visionlab_ones():
    assert [o for b in blocks(SAMPLE, "sh") for o in commands(b)] == [["demo"], ["train", "--data", "my set", "--out", "runs/a"], ["--help"]]

def test_trainings_get_a_small_budget():
    assert with_budget(["train", "--epochs", "5"]) == ["train", "--epochs", "5", "--epochs", "1"] and with_budget(["--help"]) == ["--help"] and with_budget([]) == []

def test_session_shares_names_and_shows_values(tmp_path, run_python): assert run_session(sample(tmp_path), tmp_path, run_python) == 2

def test_failing_block_is_named_by_its_line(tmp_path, run_python):
    path = sample(tmp_path, "one\n```python\na = 1\n```\ntwo\n```python\na/0\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)PAGE\.md\", line 7.*ZeroDivisionError"): run_session(path, tmp_path, run_python)

def test_failing_command_is_quoted(tmp_path, run_python):
    with pytest.raises(AssertionError, match="visionlab nonsense --at 'all of it' ended with"):
        run_shell("```sh\nvisionlab nonsense --at 'all of it'\n```\n", tmp_path, run_python)

@pytest.mark.parametrize("text", ["```sh\nvisionlab demo\n", "<!-- test: skip -->\n```sh\nvisionlab demo\n```\n", "```sh\nvisionlab demo | tee log\n```\n",
                                  "```sh\nvisionlab train --data $HOME\n```\n"])
def test_what_cannot_be_run_is_refused(text):
    with pytest.raises(ValueError, match="line"): [commands(o) for o in blocks(text, "sh")]
