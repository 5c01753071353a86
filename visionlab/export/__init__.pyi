# Written by tools/stubs.py.
from visionlab.export.folder import NewerFormatError as NewerFormatError
from visionlab.export.load import load_model as load_model
