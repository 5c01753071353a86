"What a fit can switch on: one cycle, the learning-rate finder, averages, stopping, precision."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    one_cycle="Schedule Steps",
    lr_find="LRFinder",
    kfold="OutOfFold out_of_fold",
    mixing="Mix",
    gradients="Accumulate ClipGrad GradientStats",
    ema="EMA",
    stopping="EarlyStopping KeepBest ValidateEvery",
    batch_size="AutoBatch",
    precision="Checkpointing Compile MatmulPrecision",
    sanity="StepTimer",
    transfer="BatchNormStatistics Distill ProgressiveResize",
    options="FitOptions"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
