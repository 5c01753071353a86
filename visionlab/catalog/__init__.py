"Any source as one table of images, labels and splits, and what is wrong with it."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    labels="SPLITS",
    catalog="Catalog",
    builtins="BUILTINS Builtin",
    sheets="CsvError",
    leaks="LeakError",
    hugging_face="HFImages",
    issues="ISSUES",
    edits="find_images",
    report="Report",
    label_issues="label_issues",
    doctor="check"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
