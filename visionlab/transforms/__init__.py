"What is random about an image: operations, pipelines, presets, mixing, other libraries' transforms."
from visionlab._lazy import LazyNames

NAMES = LazyNames(__name__, dict(
    ops="Affine AugMix AutoAugment BrightnessContrast ChannelDrop CoarseDropout ColorJitter GaussNoise "
        "GaussianBlur Grayscale HorizontalFlip MotionBlur OneOf PadCrop Perspective RandAugment RandomErasing "
        "RandomResizedCrop Resize Rotate90 TrivialAugmentWide VerticalFlip",
    pipeline="IMAGENET_MEAN IMAGENET_STD Pipeline",
    custom="Custom",
    color="Normalize",
    presets="PRESETS compare_backends eval_pipeline from_transform_args list_presets list_transform_presets "
            "preset recommend_backend",
    augment="BatchAugment",
    mixup="cutmix draw_mix mix mixup",
    interop="to_albumentations to_torchvision",
    reading="read_transform"))
__getattr__ = NAMES.get
__all__ = dir(NAMES)
