# Written by tools/stubs.py.
from visionlab.interpret.anomaly import AnomalyResult as AnomalyResult
from visionlab.interpret.anomaly import AnomalyScorer as AnomalyScorer
from visionlab.interpret.confusion import Confusion as Confusion
from visionlab.interpret.interpretation import Interpretation as Interpretation
from visionlab.interpret.gradcam import heat_maps as heat_maps
from visionlab.interpret.interpretation import interpret_folds as interpret_folds
from visionlab.interpret.interpretation import interpret_probs as interpret_probs
from visionlab.interpret.label_opinions import neighbours as neighbours
