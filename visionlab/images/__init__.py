"The pixels of one file: decoding, orientation, value ranges, sizes, DICOM, items and batches."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    reasons="REASONS",
    values="Values",
    decode="IMAGE_EXTENSIONS MAX_PIXELS load_image",
    sizes="Glance glance image_size",
    batch="ImageBatch ImageItem",
    dicom="dicom_info load_dicom"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
