"The names a person types in a notebook: `from visionlab.all import *`."
from visionlab.core import VisionlabError, default_device, set_seed, show_image, show_images
from visionlab.items import ImageBatch, ImageItem, load_image
from visionlab.catalog import BUILTINS, Catalog
from visionlab.doctor import check, label_issues
from visionlab.transforms import PRESETS, Pipeline, eval_pipeline, list_presets, preset
from visionlab.batch import BatchAugment, Normalize
from visionlab.loader import Loader
from visionlab.data import ImageDataModule
from visionlab.multilabel import MultiLabelImageDataModule
from visionlab.imagenet import ImageNetDataModule
from visionlab.shards import ShardedDataModule, write_shards
from visionlab.modalities import Folder, MVTec3D, MVTecAD, Tabular
from visionlab.clips import Avenue
from visionlab.models import ImageClassifier, create_model, list_models, resnet9, suggest_model
from visionlab.optim import OPTIMIZERS, SCHEDULES, plot_schedule
from visionlab.metrics import METRICS, MULTILABEL_METRICS
from visionlab.learner import Callback, CancelBatch, CancelEpoch, CancelFit, Learner
from visionlab.callbacks import Schedule
from visionlab.kfold import out_of_fold
from visionlab.anomaly import AnomalyScorer
from visionlab.deploy import load_model
from visionlab.interpret import Interpretation
from visionlab.widgets import AugmentationStudio, BatchGrid, ClassBalance
from visionlab.train import TrainConfig, train

__all__ = [name for name in dir() if not name.startswith("_")]
