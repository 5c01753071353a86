"Names that are imported on first use, so that importing a package stays light."
from importlib import import_module


class LazyNames:
    "Find the public names of a package in its modules: `folders=\"Name other_name\"` says what `folders` has."

    def __init__(self, package, modules):
        self.package = package
        self.home = {name: module for module, names in modules.items() for name in names.split()}

    def __contains__(self, name): return name in self.home

    def __dir__(self): return sorted(self.home)

    def thing(self, name):
        "Return what a public name stands for."
        return getattr(import_module(f"{self.package}.{self.home[name]}"), name)

    def get(self, name):
        "Return what stands behind `package.name`: a module of that name, as Python does once it is imported, else the thing."
        if name in self.home and name not in self.home.values(): return self.thing(name)
        if not name.startswith("_"):
            try: return import_module(f"{self.package}.{name}")
            except ModuleNotFoundError as e:
                if e.name != f"{self.package}.{name}": raise
        raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
