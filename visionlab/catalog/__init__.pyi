# Written by tools/stubs.py.
from visionlab.catalog.builtins import BUILTINS as BUILTINS
from visionlab.catalog.builtins import Builtin as Builtin
from visionlab.catalog.catalog import Catalog as Catalog
from visionlab.catalog.sheets import CsvError as CsvError
from visionlab.catalog.hugging_face import HFImages as HFImages
from visionlab.catalog.issues import ISSUES as ISSUES
from visionlab.catalog.leaks import LeakError as LeakError
from visionlab.catalog.report import Report as Report
from visionlab.catalog.labels import SPLITS as SPLITS
from visionlab.catalog.doctor import check as check
from visionlab.catalog.edits import find_images as find_images
