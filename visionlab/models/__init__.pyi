# Written by tools/stubs.py.
from visionlab.models.classifier import ImageClassifier as ImageClassifier
from visionlab.models.config import ModelConfig as ModelConfig
from visionlab.models.predictor import Prediction as Prediction
from visionlab.models.predictor import Predictions as Predictions
from visionlab.models.predictor import Predictor as Predictor
from visionlab.models.classifier import create_model as create_model
from visionlab.models.groups import layer_groups as layer_groups
from visionlab.models.registry import list_models as list_models
from visionlab.models.weights import load_weights as load_weights
from visionlab.models.resnet import resnet9 as resnet9
from visionlab.models.suggest import suggest_model as suggest_model
