"""Write the .pyi files that editors and type checkers read: names found on first use, and methods that other pages add.

    python tools/stubs.py

A package of names gets a list of imports; a module whose classes grow by `@patch` gets all its signatures, with the
added methods among them. A test compares what is written with what the sources say.
"""
import ast
import importlib
import sys
from pathlib import Path

from methods import PKG, methods, modules

sys.path.insert(0, str(PKG.parent))
HEAD = "# Written by tools/stubs.py.\n"
DECORATORS = {"cls_method": "classmethod", "as_prop": "property", "static_method": "staticmethod"}


def signature(node, first=None):
    "Write a function as a stub; `first` renames and frees its first parameter."
    args = ast.parse(ast.unparse(node.args).join(("def f(", "): ..."))).body[0].args
    args.defaults = [ast.Constant(...) for _ in args.defaults]
    args.kw_defaults = [o and ast.Constant(...) for o in args.kw_defaults]
    if first: (args.posonlyargs + args.args)[0].annotation = None
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(args)}){returns}: ..."


def kind_of(node):
    "Return the decorators of a stub for a function that is added to a class."
    given = [k.arg for o in node.decorator_list if isinstance(o, ast.Call) for k in o.keywords]
    return [DECORATORS[o] for o in given if o in DECORATORS]


def annotated(node):
    "List the names that the annotations of a method use."
    args = node.args
    every = [*[*args.posonlyargs, *args.args][1:], *args.kwonlyargs, args.vararg, args.kwarg]       # the first is `self`
    found = [o.annotation for o in every if o is not None and o.annotation is not None] + [node.returns]
    return {x.id for o in found if o is not None for x in ast.walk(o) if isinstance(x, ast.Name)}


def imported(tree, module):
    "Map each name of a module to the import line that brings it."
    wing = module.rpartition(".")[0]
    lines = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for o in node.names: lines[o.asname or o.name.split(".")[0]] = f"import {o.name}" + (f" as {o.asname}" if o.asname else "")
        elif isinstance(node, ast.ImportFrom):
            base = {0: node.module, 1: f"visionlab.{wing}.{node.module}", 2: f"visionlab.{node.module}"}[node.level]
            for o in node.names: lines[o.asname or o.name] = f"from {base} import {o.name}" + (f" as {o.asname}" if o.asname else "")
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            lines[node.name] = f"from visionlab.{module} import {node.name}"
    return lines


def attributes(node):
    "List the attributes that the methods of a class set on `self`."
    found = {x.attr for x in ast.walk(node) if isinstance(x, ast.Attribute) and isinstance(x.ctx, ast.Store)
             and isinstance(x.value, ast.Name) and x.value.id == "self"}
    known = {o.name for o in node.body if isinstance(o, ast.FunctionDef)}
    known |= {x.id for o in node.body if isinstance(o, (ast.Assign, ast.AnnAssign)) for x in ast.walk(o)
              if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
    return sorted(found - known)


def of_class(node, added):
    "Write a class with its own members and those that other modules add."
    bases = ", ".join(ast.unparse(o) for o in node.bases)
    lines = [f"@{ast.unparse(o)}" for o in node.decorator_list] + [f"class {node.name}({bases}):" if bases else f"class {node.name}:"]
    for o in node.body:
        if isinstance(o, ast.FunctionDef):
            lines += [f"    @{ast.unparse(d)}" for d in o.decorator_list] + [f"    {signature(o)}"]
        elif isinstance(o, ast.AnnAssign):
            lines.append(f"    {ast.unparse(o.target)}: {ast.unparse(o.annotation)}" + (" = ..." if o.value else ""))
        elif isinstance(o, ast.Assign):
            lines += [f"    {x.id}: Any" for t in o.targets for x in ast.walk(t) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)]
    lines += [f"    {o}: Any" for o in attributes(node)]
    for o in added: lines += [f"    @{d}" for d in kind_of(o)] + [f"    {signature(o, first=True)}"]
    return lines + (["    ..."] if len(lines) == 1 else [])


def of_module(module, trees, table):
    "Write the stub of a module whose classes grow."
    tree = trees[module]
    body, needed = [], {"from typing import Any"}
    own = {o.name for o in tree.body if isinstance(o, (ast.ClassDef, ast.FunctionDef))}
    here = {name: line for name, line in imported(tree, module).items() if name not in own}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            if not any("patch" in ast.unparse(d) for d in node.decorator_list): body.append(signature(node))
        elif isinstance(node, ast.ClassDef):
            added = added_to(node.name, module, trees, table)
            for o, home in added:
                lines = imported(trees[home], home)
                needed |= {lines[name] for name in annotated(o) if name in lines and name not in own}
            body += of_class(node, [o for o, _ in added])
        elif isinstance(node, ast.Assign):
            body += [f"{x.id}: Any" for t in node.targets for x in ast.walk(t) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)]
    text = "\n".join(body)
    used = {x.id for x in ast.walk(ast.parse(text)) if isinstance(x, ast.Name)}
    needed |= {line for name, line in here.items() if name in used}
    return HEAD + "\n".join(sorted(needed)) + "\n\n" + text + "\n"


def added_to(cls, module, trees, table):
    "List the methods that a class gets: on its own page behind it, and on others."
    found = []
    for home in [module, *sorted(set(table.get(cls, {}).values()))]:
        for node in trees[home].body:
            if not isinstance(node, ast.FunctionDef) or not any("patch" in ast.unparse(d) for d in node.decorator_list): continue
            if cls in ast.unparse(node.args.args[0].annotation).split(" | "): found.append((node, home))
    return found


def of_package(names):
    "Write the stub of a package whose names are found on first use."
    return HEAD + "\n".join(f"from visionlab.{module} import {name} as {name}" for name, module in sorted(names.items())) + "\n"


def stubs():
    "Return the text of every stub by its path."
    trees, table = dict(modules()), methods()
    home = {node.name: module for module, tree in trees.items() for node in tree.body if isinstance(node, ast.ClassDef)}
    texts = {f"{home[cls].replace('.', '/')}.pyi": of_module(home[cls], trees, table) for cls in table}
    everything = {}
    for wing in importlib.import_module("visionlab").WINGS:
        names = importlib.import_module(f"visionlab.{wing}").NAMES.home
        places = {name: f"{wing}.{module}" for name, module in names.items()}
        texts[f"{wing}/__init__.pyi"] = of_package({name: o for name, o in places.items() if name not in names.values()})
        everything |= places
    texts["__init__.pyi"] = of_package(everything) + "__version__: str\n"
    return texts


if __name__ == "__main__":
    for path, text in stubs().items(): (PKG/path).write_text(text, encoding="utf-8")
