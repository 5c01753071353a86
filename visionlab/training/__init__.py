"What learns: optimisers, schedules, losses, metrics, the loop, several processes."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    optim="OPTIMIZERS list_optimizers make_optimizer",
    schedules="SCHEDULES get_schedule plot_schedule",
    losses="LOSSES class_weights make_loss",
    counts="Metric",
    metrics="METRICS MULTILABEL_METRICS MetricConfig MetricManager",
    events="Callback CancelBatch CancelEpoch CancelFit CancelValid",
    recorder="Progress Recorder",
    guards="Advisor StopOnNaN",
    learner="Learner",
    distributed="Distributed",
    launch="ProcessError launch"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
