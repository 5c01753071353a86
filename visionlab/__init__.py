"The image-classification lab in a notebook. `from visionlab.all import *` gives the names a person types."
__version__ = "0.1.0"


def __getattr__(name):
    "Find a public name on first use, so that `import visionlab` stays light."
    if name.startswith("_"): raise AttributeError(name)
    from importlib import import_module
    try: return import_module(f"visionlab.{name}")
    except ModuleNotFoundError as e:
        if e.name != f"visionlab.{name}": raise
    names = import_module("visionlab.all")
    if hasattr(names, name): return getattr(names, name)
    raise AttributeError(f"module 'visionlab' has no attribute {name!r}")
