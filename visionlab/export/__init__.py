"What leaves the house: a folder that opens here, in timm and in transformers."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    folder="NewerFormatError",
    load="load_model"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
