# Written by tools/stubs.py.
from visionlab.images.sizes import Glance as Glance
from visionlab.images.decode import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS
from visionlab.images.batch import ImageBatch as ImageBatch
from visionlab.images.batch import ImageItem as ImageItem
from visionlab.images.decode import MAX_PIXELS as MAX_PIXELS
from visionlab.images.reasons import REASONS as REASONS
from visionlab.images.values import Values as Values
from visionlab.images.dicom import dicom_info as dicom_info
from visionlab.images.sizes import glance as glance
from visionlab.images.sizes import image_size as image_size
from visionlab.images.dicom import load_dicom as load_dicom
from visionlab.images.decode import load_image as load_image
