"A small training that the tests of resuming stop and go on with, in this process and in others."
import hashlib
import json
from functools import lru_cache

import torch
from torch import nn

from visionlab.callbacks.ema import EMA
from visionlab.callbacks.one_cycle import Schedule
from visionlab.data.module import ImageDataModule
from visionlab.training.learner import Learner



def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.2), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

@lru_cache(None)
def data(workers=0, n=160): return ImageDataModule("FashionSample", batch_size=32, max_samples=n, num_workers=workers, cache=None, augmentation_preset="default", in_chans=3)
def learner(workers=0, images=160, **kw): return Learner(data(workers, images), net(), lr=5e-3, device="cpu", **kw)
def options(): return [Schedule("one_cycle"), EMA(.9)]
def told(learn):
    "Hash the weights and the records, times left out"
    h = hashlib.sha256()
    for k,v in learn.model.state_dict().items(): h.update(k.encode() + v.contiguous().numpy().tobytes())
    rows = [{k:v for k,v in r.items() if k != "time"} for r in learn.history]
    h.update(json.dumps([rows, [float(o) for o in learn.recorder.losses], learn.recorder.lrs, learn.recorder.sizes, learn.step, learn.epochs_done]).encode())
    return h.hexdigest()
