"Write visionlab/_methods.py: which page adds which method to which class, read from the `@patch` lines of all modules."
import ast
from pathlib import Path

PKG = Path(__file__).resolve().parents[1]/"visionlab"
HEAD = '"Which module adds which method to a class: written by tools/methods.py, read by core.extend."\n'


def modules():
    "List the modules of all wings as (dotted name, source)."
    for path in sorted(PKG.glob("*/*.py")):
        if path.stem != "__init__": yield f"{path.parent.name}.{path.stem}", ast.parse(path.read_text(encoding="utf-8"))


def patched(node):
    "List the classes that a top-level function is added to."
    if not isinstance(node, ast.FunctionDef) or not any("patch" in ast.unparse(o) for o in node.decorator_list): return []
    return ast.unparse(node.args.args[0].annotation).split(" | ")


def methods():
    "Map class → method → module, for methods that stand outside of the module of their class."
    home, found = {}, {}
    for module, tree in modules():
        home.update({node.name: module for node in tree.body if isinstance(node, ast.ClassDef)})
    for module, tree in modules():
        for node in tree.body:
            for cls in patched(node):
                if home[cls] != module: found.setdefault(cls, {})[node.name] = module
    return {cls: dict(sorted(names.items())) for cls, names in sorted(found.items())}


def text():
    "Write the table as Python."
    lines = [HEAD, "METHODS = {"]
    for cls, names in methods().items():
        lines.append(f"    {cls!r}: {{")
        lines += [f"        {name!r}: {module!r}," for name, module in names.items()]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__": (PKG/"_methods.py").write_text(text(), encoding="utf-8")
