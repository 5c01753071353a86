"What judges a model: mistakes, heat maps, second opinions, anomaly scores."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    confusion="Confusion",
    interpretation="Interpretation interpret_folds interpret_probs",
    gradcam="heat_maps",
    label_opinions="neighbours",
    anomaly="AnomalyResult AnomalyScorer"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
