"The names a person types in a notebook: `from visionlab.all import *`."
from visionlab.core.errors import VisionlabError
from visionlab.core.machine import default_device, is_main
from visionlab.core.randomness import set_seed
from visionlab.core.show import show_image, show_images
from visionlab.images.decode import load_image
from visionlab.images.batch import ImageBatch, ImageItem
from visionlab.catalog.catalog import Catalog
from visionlab.catalog.builtins import BUILTINS
from visionlab.catalog.label_issues import label_issues
from visionlab.catalog.doctor import check
from visionlab.transforms.pipeline import Pipeline
from visionlab.transforms.presets import (
    compare_backends, eval_pipeline, from_transform_args, list_presets, list_transform_presets, preset, PRESETS,
    recommend_backend)
from visionlab.transforms.color import Normalize
from visionlab.transforms.augment import BatchAugment
from visionlab.transforms.mixup import cutmix, draw_mix, mix, mixup
from visionlab.transforms.interop import to_albumentations, to_torchvision
from visionlab.data.cache_plan import plan_cache
from visionlab.data.caches import caches, clear_cache
from visionlab.transforms.reading import read_transform
from visionlab.data.loader import Loader
from visionlab.data.module import ImageDataModule
from visionlab.data.benchmark import benchmark_loader, LoaderSpeed
from visionlab.data.multilabel import MultiLabelImageDataModule
from visionlab.data.imagenet import ImageNetDataModule
from visionlab.data.shard_files import write_shards
from visionlab.data.shards import ShardedDataModule
from visionlab.data.mvtec import MVTec3D, MVTecAD
from visionlab.data.defect_folders import Folder, Tabular
from visionlab.data.clips import Avenue
from visionlab.models.resnet import resnet9
from visionlab.models.registry import list_models
from visionlab.models.classifier import create_model, ImageClassifier
from visionlab.models.suggest import suggest_model
from visionlab.training.optim import list_optimizers, OPTIMIZERS
from visionlab.training.schedules import plot_schedule, SCHEDULES
from visionlab.training.losses import LOSSES
from visionlab.training.metrics import MetricConfig, MetricManager, METRICS, MULTILABEL_METRICS
from visionlab.training.events import Callback, CancelBatch, CancelEpoch, CancelFit
from visionlab.training.learner import Learner
from visionlab.callbacks.one_cycle import Schedule, Steps
from visionlab.callbacks.mixing import Mix
from visionlab.callbacks.kfold import out_of_fold
from visionlab.callbacks.gradients import Accumulate, ClipGrad, GradientStats
from visionlab.callbacks.ema import EMA
from visionlab.callbacks.stopping import EarlyStopping, KeepBest, ValidateEvery
from visionlab.callbacks.batch_size import AutoBatch
from visionlab.callbacks.precision import Checkpointing, Compile, MatmulPrecision
from visionlab.callbacks.sanity import StepTimer
from visionlab.callbacks.transfer import BatchNormStatistics, Distill, ProgressiveResize
from visionlab.callbacks.options import FitOptions
from visionlab.interpret.anomaly import AnomalyScorer
from visionlab.runs.checkpoints import Checkpoint
from visionlab.runs.folder import RunFolder, SaveCheckpoints
from visionlab.runs.compare import list_runs
from visionlab.training.distributed import Distributed
from visionlab.training.launch import launch
from visionlab.export.load import load_model
from visionlab.interpret.interpretation import interpret_folds, interpret_probs, Interpretation
from visionlab.interpret.gradcam import heat_maps
from visionlab.interpret.label_opinions import neighbours
from visionlab.runs.tensorboard import TensorBoardLogger
from visionlab.runs.wandb import WandbLogger
from visionlab.runs.mlflow import MLflowLogger
from visionlab.widgets.browse import Browser
from visionlab.widgets.batch_grid import BatchGrid
from visionlab.widgets.decisions import Decisions
from visionlab.widgets.label_cleaner import LabelCleaner
from visionlab.widgets.doctor_view import DataDoctor
from visionlab.widgets.confusion import ConfusionExplorer
from visionlab.widgets.lr_picker import LRPicker
from visionlab.widgets.augmentation import AugmentationStudio
from visionlab.widgets.class_balance import class_pairs, ClassBalance
from visionlab.runs.config import TrainConfig
from visionlab.widgets.predict_pad import PredictPad
from visionlab.widgets.active_labels import ActiveLabels
from visionlab.widgets.live_chart import LiveChart
from visionlab.widgets.background import Run
from visionlab.runs.train import train
from visionlab.runs.lightly import train_image_classification
from visionlab.runs.evaluate import evaluate, Evaluation
from visionlab.runs.dry_run import dry_run

__all__ = [name for name in dir() if not name.startswith("_")]
