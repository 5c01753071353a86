"The names a person types in a notebook: `from visionlab.all import *`."
from visionlab.core import VisionlabError, default_device, is_main, set_seed, show_image, show_images
from visionlab.items import ImageBatch, ImageItem, load_image
from visionlab.catalog import BUILTINS, Catalog
from visionlab.doctor import check, label_issues
from visionlab.transforms import Pipeline
from visionlab.presets import PRESETS, compare_backends, eval_pipeline, from_transform_args, list_presets, list_transform_presets, preset, recommend_backend
from visionlab.colour import Normalize
from visionlab.batch import BatchAugment
from visionlab.mix import cutmix, draw_mix, mix, mixup
from visionlab.backends import to_albumentations, to_torchvision
from visionlab.cache import caches, clear_cache, plan_cache
from visionlab.reading import read_transform
from visionlab.loader import Loader
from visionlab.data import ImageDataModule
from visionlab.speed import LoaderSpeed, benchmark_loader
from visionlab.multilabel import MultiLabelImageDataModule
from visionlab.imagenet import ImageNetDataModule
from visionlab.shards import ShardedDataModule, write_shards
from visionlab.modalities import Folder, MVTec3D, MVTecAD, Tabular
from visionlab.clips import Avenue
from visionlab.models import ImageClassifier, create_model, list_models, resnet9, suggest_model
from visionlab.optim import OPTIMIZERS, list_optimizers
from visionlab.schedules import SCHEDULES, plot_schedule
from visionlab.losses import LOSSES
from visionlab.metrics import METRICS, MULTILABEL_METRICS, MetricConfig, MetricManager
from visionlab.learner import Callback, CancelBatch, CancelEpoch, CancelFit, Learner
from visionlab.callbacks import Schedule, Steps
from visionlab.mixing import Mix
from visionlab.kfold import out_of_fold
from visionlab.gradients import Accumulate, ClipGrad, GradientStats
from visionlab.averages import EMA
from visionlab.stopping import EarlyStopping, KeepBest, ValidateEvery
from visionlab.batch_size import AutoBatch
from visionlab.precision import Checkpointing, Compile, MatmulPrecision
from visionlab.checks import StepTimer
from visionlab.transfer import BatchNormStatistics, Distill, ProgressiveResize
from visionlab.options import FitOptions
from visionlab.anomaly import AnomalyScorer
from visionlab.checkpoints import Checkpoint
from visionlab.runs import RunFolder, SaveCheckpoints
from visionlab.compare import runs
from visionlab.distributed import Distributed, launch
from visionlab.deploy import load_model
from visionlab.interpret import Interpretation, interpret_folds, interpret_probs
from visionlab.gradcam import heat_maps
from visionlab.opinions import neighbours
from visionlab.loggers import MLflowLogger, TensorBoardLogger, WandbLogger
from visionlab.widgets import BatchGrid, Browser
from visionlab.decisions import DataDoctor, Decisions, LabelCleaner
from visionlab.explore import ConfusionExplorer, LRPicker
from visionlab.studio import AugmentationStudio
from visionlab.balance import ClassBalance, class_pairs
from visionlab.config import TrainConfig
from visionlab.answers import ActiveLabels, PredictPad
from visionlab.live import LiveChart, Run
from visionlab.train import train
from visionlab.lightly import train_image_classification
from visionlab.evaluation import Evaluation, evaluate
from visionlab.dryrun import dry_run

__all__ = [name for name in dir() if not name.startswith("_")]
