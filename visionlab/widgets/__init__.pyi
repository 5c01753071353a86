# Written by tools/stubs.py.
from visionlab.widgets.active_labels import ActiveLabels as ActiveLabels
from visionlab.widgets.augmentation import AugmentationStudio as AugmentationStudio
from visionlab.widgets.batch_grid import BatchGrid as BatchGrid
from visionlab.widgets.browse import Browser as Browser
from visionlab.widgets.class_balance import ClassBalance as ClassBalance
from visionlab.widgets.confusion import ConfusionExplorer as ConfusionExplorer
from visionlab.widgets.doctor_view import DataDoctor as DataDoctor
from visionlab.widgets.decisions import Decisions as Decisions
from visionlab.widgets.lr_picker import LRPicker as LRPicker
from visionlab.widgets.label_cleaner import LabelCleaner as LabelCleaner
from visionlab.widgets.live_chart import LiveChart as LiveChart
from visionlab.widgets.controls import PipelinePanel as PipelinePanel
from visionlab.widgets.predict_pad import PredictPad as PredictPad
from visionlab.widgets.background import Run as Run
from visionlab.widgets.view import View as View
from visionlab.widgets.class_balance import class_pairs as class_pairs
from visionlab.widgets.transform_code import pipeline_code as pipeline_code
