"From a table to batches: caches, loaders, data modules, shards, defects, clips."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    cache_plan="CachePlan plan_cache",
    caches="caches clear_cache",
    loader="Loader",
    module="ImageDataModule list_images",
    benchmark="LoaderSpeed benchmark_loader",
    multilabel="MultiLabelImageDataModule",
    imagenet="ImageNetDataModule",
    shard_files="list_shards write_shards",
    shards="ShardedDataModule",
    defects="AnomalyDataModule",
    mvtec="MVTec3D MVTecAD",
    defect_folders="Folder Tabular",
    clips="Avenue"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
