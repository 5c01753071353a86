"What is seen: grids, controls, the label cleaner, the live chart."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    view="View",
    browse="Browser",
    batch_grid="BatchGrid",
    class_balance="ClassBalance class_pairs",
    controls="PipelinePanel",
    transform_code="pipeline_code transform_code",
    augmentation="AugmentationStudio",
    decisions="Decisions",
    label_cleaner="LabelCleaner",
    doctor_view="DataDoctor",
    confusion="ConfusionExplorer",
    lr_picker="LRPicker",
    predict_pad="PredictPad",
    active_labels="ActiveLabels",
    live_chart="LiveChart",
    background="Run"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
