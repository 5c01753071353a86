"What every wing stands on: errors, the machine, randomness, files, text, progress, figures."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    errors="VisionlabError DataError EmptyDatasetError ClassMismatchError TooManyBadFilesError ConfigError "
           "UnknownOptionError CheckpointError TrainingError ExportError PredictError BadInputError "
           "MissingDependencyError WriteError ImageReadError",
    machine="default_device is_main rank usable_cpus world_size",
    randomness="key set_seed uniforms",
    files="atomic_write cache_dir",
    show="show_image show_images"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
