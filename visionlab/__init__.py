"The image-classification lab in a notebook. `from visionlab.all import *` gives the names a person types."
__version__ = "0.1.0"
WINGS = ("core", "images", "transforms", "catalog", "data", "models", "training", "callbacks", "interpret", "export", "widgets", "runs")


def __getattr__(name):
    "Find a public name in its wing on first use, so that `import visionlab` stays light."
    from importlib import import_module
    if name in WINGS: return import_module(f"visionlab.{name}")
    if not name.startswith("_"):
        for wing in WINGS:
            names = import_module(f"visionlab.{wing}").NAMES
            if name in names: return names.thing(name)
    raise AttributeError(f"module 'visionlab' has no attribute {name!r}")


def __dir__():
    "List the public names and the wings."
    from importlib import import_module
    return sorted({"__version__", *WINGS, *(o for wing in WINGS for o in dir(import_module(f"visionlab.{wing}").NAMES))})
