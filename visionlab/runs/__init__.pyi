# Written by tools/stubs.py.
from visionlab.runs.model_card import BestEpoch as BestEpoch
from visionlab.runs.checkpoints import Checkpoint as Checkpoint
from visionlab.runs.evaluate import Evaluation as Evaluation
from visionlab.runs.mlflow import MLflowLogger as MLflowLogger
from visionlab.runs.checkpoints import NewerCheckpointError as NewerCheckpointError
from visionlab.runs.folder import RunFolder as RunFolder
from visionlab.runs.compare import Runs as Runs
from visionlab.runs.folder import SaveCheckpoints as SaveCheckpoints
from visionlab.runs.tensorboard import TensorBoardLogger as TensorBoardLogger
from visionlab.runs.config import TrainConfig as TrainConfig
from visionlab.runs.wandb import WandbLogger as WandbLogger
from visionlab.runs.checkpoints import list_checkpoints as list_checkpoints
from visionlab.runs.compare import list_runs as list_runs
from visionlab.runs.lightly import train_image_classification as train_image_classification
