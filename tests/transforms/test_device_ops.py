"The batched operations against torchvision's functions, image by image and number by number"
import math
import numpy as np, pytest, torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import InterpolationMode as How
from skimage import data as photos
from visionlab.transforms import color, geometry
from visionlab.transforms.augment import BatchAugment
from visionlab.transforms.color import dropped
from visionlab.core.errors import ConfigError
from visionlab.core.randomness import uniforms
from visionlab.transforms.geometry import (
    chains, compose, dropout_boxes, erasing_boxes, motion_taps, move, warp, warp_one)
from visionlab.transforms.presets import preset, PRESETS
from visionlab.transforms.ops import (
    Affine, AutoAugment, BrightnessContrast, ChannelDrop, CoarseDropout, ColorJitter, GaussianBlur, GaussNoise,
    Grayscale, HorizontalFlip, MotionBlur, OneOf, PadCrop, Perspective, RandomErasing, Resize, resize, Rotate90,
    VerticalFlip)
from visionlab.transforms.pipeline import Pipeline

SIZES = [(48, 64), (33, 47), (129, 131), (7, 5)]
N = 12

def images(size, channels, kind):
    "Cut `N` different pictures of this size, channels and type from a photo"
    cat = photos.chelsea()
    x = torch.from_numpy(np.stack([resize(np.ascontiguousarray(cat[9*i:9*i+180, 11*i:11*i+240]), size) for i in range(N)])).permute(0, 3, 1, 2)[:, :channels].contiguous()
    return x if kind == "uint8" else x/255

def numbers(op, seed=0): return uniforms(seed, 0, range(N), op.n_random, type(op).__name__).astype(np.float32)

def _on_device(op, x, u):
    original = color.some
    def some(x, hit, one, batch):
        rows = np.flatnonzero(hit)
        return x if not len(rows) else batch(rows, x) if len(rows) == len(x) else x.index_copy(0, at := torch.from_numpy(rows), batch(rows, x.index_select(0, at)))
    color.some = geometry.some = some
    try: return run(op, x, u)
    finally: color.some = geometry.some = original

def run(op, x, u): return move([op], x, [u]) if type(op) in geometry.MATRICES else {**color.BATCH, **geometry.BATCH}[type(op)](op, x, u)

def between(r, u): return r[0] + float(u)*(r[1]-r[0])

def filled(f, op, x):
    "Resample what is above the fill, so that the border is blended with it once; given `fill`, torchvision blends it twice"
    fill = op.fill if x.dtype == torch.uint8 else op.fill/255
    return f(x.float()-fill)+fill

def tv_affine(op, x, u):
    h,w = x.shape[1:]
    shear = (*op.shear, 0., 0.)
    if u[0] >= op.p: return x
    return filled(lambda x: TF.affine(x, angle=-between(op.degrees, u[1]), translate=[round((2*float(u[2])-1)*op.translate[0]*w), round((2*float(u[3])-1)*op.translate[1]*h)], scale=between(op.scale, u[4]),
                     shear=[-between(shear[:2], u[5]), -between(shear[2:4], u[6])], interpolation=How(op.interpolation)), op, x)

def tv_perspective(op, x, u):
    h,w = x.shape[1:]
    if u[0] >= op.p: return x
    far = (int(op.distortion_scale*(w//2))+1, int(op.distortion_scale*(h//2))+1)
    dx,dy = [int(v*far[0]) for v in u[1::2]], [int(v*far[1]) for v in u[2::2]]
    start = [[0, 0], [w-1, 0], [w-1, h-1], [0, h-1]]
    end = [[dx[0], dy[0]], [w-1-dx[1], dy[1]], [w-1-dx[2], h-1-dy[2]], [dx[3], h-1-dy[3]]]
    return filled(lambda x: TF.perspective(x, start, end, interpolation=How(op.interpolation)), op, x)

def tv_jitter(op, x, u):
    if u[8] >= op.p: return x
    steps = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]
    factors = [between(r, u[k]) for r,k in zip(op.ranges, (0, 1, 2, 6))]
    for k in sorted(range(4), key=lambda k: (u[3], u[4], u[5], u[7])[k]): x = steps[k](x, factors[k]) if factors[k] != (k < 3) else x
    return x

def tv_blur(op, x, u):
    k = op.kernel[0] + 2*int(u[2]*((op.kernel[1]-op.kernel[0])//2+1))
    return TF.gaussian_blur(x, [k, k], [between(op.sigma, u[1])]*2) if u[0] < op.p else x

def tv_erase(op, x, u):
    top,left,h,w = erasing_boxes(op, u[None], *x.shape[1:])[0,0]
    return TF.erase(x, int(top), int(left), int(h), int(w), torch.full((1, 1, 1), op.value)) if u[0] < op.p else x

def tv_turn(op, x, u): return torch.rot90(x, int(u[1]*4), (-2, -1)) if u[0] < op.p else x

def tv_drop(op, x, u):
    x = x.clone()
    if u[0] < op.p:
        for top,left,h,w in dropout_boxes(op, u[None], *x.shape[1:])[0]: x[:, top:top+h, left:left+w] = op.fill if x.dtype == torch.uint8 else op.fill/255
    return x

WIDE = dict(degrees=(-40., 70.), translate=(.2, .1), scale=(.6, 1.5), shear=(-20., 12., -8., 15.))
# operation, torchvision's answer, largest error of 255 for bytes, for floats, channels
CASES = [(HorizontalFlip(.6), lambda op, x, u: TF.horizontal_flip(x) if u[0] < op.p else x, 0, 0, (1, 3)), (VerticalFlip(.6), lambda op, x, u: TF.vertical_flip(x) if u[0] < op.p else x, 0, 0, (1, 3)),
         (Affine(**WIDE), tv_affine, 1, .02, (1, 3)), (Affine(**WIDE, p=.5, fill=90), tv_affine, 1, .02, (1, 3)), (Affine((0., 0.), (.3, .3), p=.7), tv_affine, 1, .02, (1, 3)),
         (Affine(), tv_affine, .01, .01, (1, 3)),
         (Perspective(.5, p=.8), tv_perspective, 1, .1, (1, 3)), (Perspective(.9, p=1., fill=200), tv_perspective, 1, .1, (1, 3)), (Perspective(0., p=1.), tv_perspective, 1, .1, (1, 3)),
         (ColorJitter(.4, .4, .4, .1), tv_jitter, 5, .02, (3,)), (ColorJitter(.9, .9, .9, .5, p=.6), tv_jitter, None, .05, (3,)), (ColorJitter(.4, .4, p=.7), tv_jitter, 4, .02, (1, 3)),
         (ColorJitter(0., 0., 0., 0.), tv_jitter, 0, 0, (1, 3)), (ColorJitter((2., 3.), (0., 0.), 0.), tv_jitter, 3, .02, (1, 3)),
         (GaussianBlur((3, 7), (.1, 3.), p=.6), tv_blur, 1, .01, (1, 3)), (GaussianBlur((5, 5), (2., 2.), p=1.), tv_blur, 1, .01, (1, 3)), (GaussianBlur((1, 1), (1., 1.), p=1.), tv_blur, 0, 0, (1, 3)),
         (Grayscale(.6), lambda op, x, u: TF.rgb_to_grayscale(x, x.shape[0]) if u[0] < op.p else x, 1, .01, (1, 3)),
         (RandomErasing(.7, value=0.), tv_erase, 0, 0, (1, 3)), (CoarseDropout(p=.7, fill=40), tv_drop, 0, 1e-4, (1, 3))]

def name(case): return type(case[0]).__name__

@pytest.fixture(scope="module", autouse=True)
def one_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

def finish(op, x, u): return geometry.erase(op, x, u) if isinstance(op, RandomErasing) else run(op, x, u)

@pytest.mark.parametrize("way", ["processor", "device"])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_against_torchvision(case, way):
    op,want,bytes_off,floats_off,channels = case
    for size in SIZES:
        if min(size) < 8 and isinstance(op, GaussianBlur) and op.kernel[1]//2 >= min(size): continue
        for c in channels:
            for kind in ("uint8", "float"):
                x,u = images(size, c, kind), numbers(op)
                got = finish(op, x, u) if way == "processor" or isinstance(op, RandomErasing) else _on_device(op, x, u)
                unit = 1 if got.dtype == torch.uint8 else 255
                for k in range(N):
                    off = (got[k].float()*unit - want(op, x[k], u[k]).float()*(1 if kind == "uint8" else 255)).abs()
                    limit = bytes_off if kind == "uint8" else floats_off
                    if limit is not None: assert off.max() <= limit, (size, c, kind, k, float(off.max()))

@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_miss_changes_no_bit(case):
    op = case[0]
    u = numbers(op)
    u[:,8 if isinstance(op, ColorJitter) else 0] = .9999999
    op = type(op)(**{**vars(op), "p":.99})
    for kind in ("uint8", "float"):
        x = images((33, 47), 3, kind)
        got = finish(op, x, u)
        assert torch.equal(got if got.dtype == x.dtype else got, x if got.dtype == x.dtype else x/255)

STRONG = (HorizontalFlip(), Affine((-15., 15.), (.1, .1), (.8, 1.2), p=.5, keep_ratio=False), Perspective(p=.5), OneOf((MotionBlur(p=1.), GaussianBlur(p=1.), GaussNoise(p=1.)), p=.8), ColorJitter(.3, .3, .3, .1, p=.8),
          BrightnessContrast(p=.5), Grayscale(.3), ChannelDrop(2, (1., 1., 1.), p=.3), CoarseDropout(p=.5), RandomErasing(.5))

@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("size", [(33, 47), (129, 131)])
def test_any_batch_gives_the_same_bits(size, kind):
    run,x = BatchAugment(Pipeline(Resize(), (Rotate90(), *STRONG) if size[0] == size[1] else STRONG, size), seed=3), images(size, 3, kind)
    whole = run(x, np.arange(N), 2)
    for part in (slice(0, 1), slice(3, 8), slice(5, 12)): assert torch.equal(whole[part], run(x[part], np.arange(N)[part], 2))
    assert torch.equal(whole.flip(0), run(x.flip(0), np.arange(N)[::-1].copy(), 2))
    assert not torch.equal(whole, run(x, np.arange(N), 3))
    last = run(x.contiguous(memory_format=torch.channels_last), np.arange(N), 2)
    torch.testing.assert_close(last, whole, atol=2e-5, rtol=0)

@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_device_writes_into_given_memory(layout):
    for size in ((33, 47), (129, 131)):
        run,x = BatchAugment(Pipeline(Resize(), STRONG, size)), images(size, 3, "uint8")
        out = torch.full((N, 3, *size), float("nan")).contiguous(memory_format=layout)
        got = run.device(x, np.arange(N), 1, out=out)
        assert got.data_ptr() == out.data_ptr() and out.is_contiguous(memory_format=layout)
        torch.testing.assert_close(out, run.device(x, np.arange(N), 1), atol=2e-6, rtol=0)

def test_worker_and_device_share_the_pipeline():
    p = Pipeline(Resize(), (HorizontalFlip(), AutoAugment(), ColorJitter(.2), Affine((-9., 9.))), (129, 131))
    run,x,ids = BatchAugment(p), images((129, 131), 3, "uint8"), np.arange(N)
    half = run.worker(x, ids, 1)
    assert half.dtype == torch.uint8 and not torch.equal(half, x)
    assert torch.equal(run.device(half, ids, 1), run(x, ids, 1))
    plain = BatchAugment(Pipeline(Resize(), STRONG, (129, 131)))
    assert plain.worker(x, ids, 1) is x
    assert torch.equal(plain(x), plain.norm(x))                   # no ids, no chance

@pytest.mark.parametrize("ops,count", [((HorizontalFlip(1.), Affine((20., 20.)), Perspective(p=1.), VerticalFlip(1.), Affine((-20., -20.))), 1), ((HorizontalFlip(1.), VerticalFlip(1.)), 0),
                                       ((Affine((20., 20.)), ColorJitter(.1), Affine((20., 20.))), 2), ((Affine((20., 20.)), Affine((20., 20.), fill=9)), 2)])
def test_neighbours_resample_once(ops, count, monkeypatch):
    calls = []
    for f in ("warp", "warp_one"):
        original = getattr(geometry, f)
        counted = lambda x, *o, original=original, **kw: (calls.append(len(x) if x.ndim == 4 else 1), original(x, *o, **kw))[1]
        monkeypatch.setattr(geometry, f, counted)
        if f == "warp_one": monkeypatch.setattr("visionlab.transforms.augment.warp_one", counted)
    for size in ((33, 47), (129, 131)):
        calls.clear()
        BatchAugment(Pipeline(Resize(), ops, size))(images(size, 3, "uint8"), np.arange(N), 0)
        assert sum(calls) == count*N

def test_a_chain_is_its_operations_one_after_another():
    "Resampling once differs from resampling in turn only by the blur of doing it twice: on a smooth picture hardly at all"
    y,x = torch.meshgrid(torch.linspace(-1, 1, 101), torch.linspace(-1, 1, 101), indexing="ij")
    smooth = (.5 + .2*torch.sin(3*x+y) + .2*torch.cos(2*y-x)).expand(N, 1, -1, -1).contiguous()
    ops = [HorizontalFlip(1.), Affine((-20., 20.), (.05, .05), (.9, 1.1), (-5., 5.)), Perspective(.2, p=1.), Rotate90(1.), VerticalFlip(1.)]
    us = [numbers(o, k) for k,o in enumerate(ops)]
    turned = smooth
    for op,u in zip(ops, us): turned = move([op], turned, [u])
    off = (move(ops, smooth, us) - turned)[..., 30:-30, 30:-30].abs()
    assert off.max() < .005
    assert len(chains(ops)) == 1

@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_masks_follow(dtype):
    ops = (HorizontalFlip(), Rotate90(.5), Affine((-30., 30.), (.1, .1), (.7, 1.3)), ColorJitter(.3, .3, .3), GaussNoise(p=1.), OneOf((Perspective(p=1.), GaussianBlur(p=1.))), RandomErasing(.5))
    for n in (40, 81):
        run,ids = BatchAugment(Pipeline(Resize(), ops, (n, n))), np.arange(N)
        mask = torch.zeros(N, 1, n, n, dtype=dtype)
        mask[..., n//4:n//2, n//3:2*n//3] = 1
        moved = run.move(mask, ids, 1)
        assert moved.dtype == dtype and set(moved.unique().tolist()) <= {0, 1}
        still = BatchAugment(Pipeline(Resize(), tuple(o for o in ops if not isinstance(o, (ColorJitter, GaussNoise, RandomErasing))), (n, n)))
        picture = still.augment((mask.float()*255).byte().expand(-1, 3, -1, -1).contiguous(), ids, 1)[:, :1].float()/255
        assert (abs(picture - moved.float()) > .5).float().mean() < .004       # pixels of the edge, which the picture blends
    with pytest.raises(ConfigError, match="mask"): BatchAugment(Pipeline(Resize(), (AutoAugment(),), (40, 40))).move(mask, ids)

def test_bytes_and_floats_see_the_same_transform():
    "Half a level of rounding apart"
    op,size = Affine(**WIDE), (129, 131)
    m,_ = compose([op], [numbers(op)], *size)
    x = images(size, 3, "uint8")
    for k in range(N):
        a = torch.from_numpy(warp_one(np.ascontiguousarray(x[k].permute(1, 2, 0).numpy()), m[k])).permute(2, 0, 1).float()
        assert (a - warp(x[k:k+1]/255, m[k:k+1])[0]*255).abs().max() < .52

def test_motion_blur_keeps_the_level_and_blurs_along_a_line():
    u = numbers(op := MotionBlur((5, 9), p=1.))
    taps = motion_taps(op, u)
    np.testing.assert_allclose(taps.sum((1, 2)), 1, atol=1e-6)
    assert all(1 <= (t > 0).sum() <= 9 for t in taps)
    flat = torch.full((N, 3, 20, 30), 77, dtype=torch.uint8)
    assert torch.equal(run(op, flat, u), flat)
    cv2 = pytest.importorskip("cv2")
    x = images((33, 47), 3, "uint8")
    for got,image,t in zip(_on_device(op, x, u), x, taps):
        want = cv2.filter2D(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.CV_32F, t)
        assert np.abs(got.permute(1, 2, 0).numpy() - want).max() <= .51

def test_noise_has_its_law():
    for kind in ("uint8", "float"):
        op = GaussNoise((.05, .05), p=1.)
        x = torch.full((N, 3, 64, 65), 128, dtype=torch.uint8) if kind == "uint8" else torch.full((N, 3, 64, 65), .5)
        z = (run(op, x, numbers(op)).float()/(255 if kind == "uint8" else 1) - x.float()/(255 if kind == "uint8" else 1)).flatten(1)
        assert z.mean(1).abs().max() < .003 and (z.std(1) - .05).abs().max() < .002
        assert (torch.corrcoef(z) - torch.eye(N)).abs().max() < .04
        assert torch.equal(run(op, x, numbers(op)), _on_device(op, x, numbers(op)))

def test_channels_drop_by_weight():
    op = ChannelDrop(2, (1., 1., 2., 0.))
    gone = dropped(op, uniforms(0, 0, range(20_000), op.n_random))
    assert (gone.sum(1) == 2).all() and not gone[:,3].any()
    pairs = {(0, 1): 1/4*1/3*2, (0, 2): 1/4*2/3 + 2/4*1/2, (1, 2): 1/4*2/3 + 2/4*1/2}        # drawing one after another without putting back
    for (a,b),p in pairs.items(): assert abs((gone[:,a] & gone[:,b]).mean() - p) < .012

def test_boxes_have_torchvisions_law():
    from torchvision.transforms import RandomErasing as Theirs
    op,n,size = RandomErasing(1.), 4000, (60, 90)
    ours = erasing_boxes(op, uniforms(0, 0, range(n), 23), *size)[:,0]
    torch.manual_seed(0)
    theirs = np.array([Theirs.get_params(torch.empty(1, *size), op.scale, op.ratio, [0.])[:4] for _ in range(n)])
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=.06)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=.06)
    assert (ours[:,0]+ours[:,2] <= 60).all() and (ours[:,1]+ours[:,3] <= 90).all()

def test_erasing_covers_with_normalised_values():
    for size in ((33, 47), (129, 131)):
        run,x = BatchAugment(Pipeline(Resize(), (RandomErasing(1., value=0.),), size)), images(size, 3, "uint8")
        out = run(x, np.arange(N))
        for k in range(N):
            top,left,h,w = erasing_boxes(RandomErasing(1.), run._numbers(RandomErasing(1.), "RandomErasing0", np.arange(N)[k:k+1], 0), *size)[0,0]
            assert (out[k,:,top:top+h,left:left+w] == 0).all()
            assert (out[k] == 0).all(0).sum() == h*w

@pytest.mark.parametrize("name", [n for n in PRESETS if not any(o.place == "image" for o in PRESETS[n].ops)])
def test_presets_run_on_both_ways(name):
    "The way of a device and the way of a processor draw the same and differ by rounding"
    x,ids = images((96, 96), 3, "uint8"), np.arange(N)
    run = BatchAugment(preset(name, 96), seed=1)
    a = run.norm.undo(run(x, ids, 0))
    b = run.norm.undo(run(x/255, ids, 0))
    assert (a-b).abs().mean()*255 < 1.5 and torch.isfinite(run(x, ids, 0)).all()

def test_the_device_is_never_asked(monkeypatch):
    "No step of the batched way reads a number back: meta tensors hold none"
    from visionlab.transforms.ops import OneOf
    run = BatchAugment(Pipeline(Resize(), (Rotate90(.5), PadCrop(4), *STRONG, Affine((5., 5.), interpolation="nearest")), (64, 64)))
    x = torch.empty(N, 3, 64, 64, dtype=torch.uint8, device="meta")
    assert run(x, np.arange(N), 0).shape == (N, 3, 64, 64)
    assert run.move(torch.empty(N, 1, 64, 64, device="meta"), np.arange(N), 0).shape == (N, 1, 64, 64)

if torch.cuda.is_available():
    def test_a_gpu_agrees_and_never_waits():
        x,ids,run = images((96, 96), 3, "uint8"), np.arange(N), BatchAugment(preset("strong", 96), seed=1)
        want = run.norm.undo(run(x, ids, 0))
        y = x.cuda()
        run(y, ids, 0)
        torch.cuda.set_sync_debug_mode("error")
        try: got = run(y, ids, 0)
        finally: torch.cuda.set_sync_debug_mode("default")
        assert (run.norm.undo(got).cpu() - want).abs().mean()*255 < 1.5
