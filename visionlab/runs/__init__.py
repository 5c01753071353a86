"What is kept: configurations, run folders, checkpoints, trainings from one call, evaluation."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    config="TrainConfig",
    checkpoints="Checkpoint NewerCheckpointError list_checkpoints",
    folder="RunFolder SaveCheckpoints",
    compare="Runs list_runs",
    tensorboard="TensorBoardLogger",
    wandb="WandbLogger",
    mlflow="MLflowLogger",
    model_card="BestEpoch",
    lightly="train_image_classification",
    evaluate="Evaluation evaluate",
    dry_run="dry_run",
    train="train"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
