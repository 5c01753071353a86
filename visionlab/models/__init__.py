"What has weights: networks by name, their heads, weights, layer groups and answers."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    resnet="resnet9",
    config="ModelConfig",
    registry="list_models",
    weights="load_weights",
    classifier="ImageClassifier create_model",
    groups="layer_groups",
    suggest="suggest_model",
    predictor="Prediction Predictions Predictor"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
