"The store of decoded pixels: killed while it is filled, filled by several at once, damaged, on a full disk, of every shape; and the plan, the list and the removal."
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import visionlab.data.store as cache
from visionlab.data import cache_plan, caches as caches_page, disk_store, pixel_keys
from visionlab.data.store import MemoryStore
from visionlab.data.disk_store import DiskStore
from visionlab.data.pixel_keys import cache_key
from visionlab.data.cache_plan import cache_limit, CachePlan, Free, image_sizes, kept_size, plan_cache, read_bytes_count
from visionlab.data.caches import caches, clear_cache, make_room, open_store
from visionlab.catalog.catalog import Catalog
from visionlab.core.errors import ConfigError, UnknownOptionError
from visionlab.images.decode import load_image

pytestmark = pytest.mark.usefixtures("one_thread")
GB = 2**30
ABOUT = dict(key="k", source="made up", keep=True, images=0)


def image(i, shape=None, channels=3):
    "Make row `i`'s pixels: any size, unless one is given."
    rng = np.random.default_rng(i)
    return rng.integers(0, 256, (*(shape or rng.integers(3, 90, 2)), channels), np.uint8)


def opened(path, n=80, channels=3, shape=None, **kw):
    return DiskStore(path, n, channels, shape, ABOUT, **{"reserve": 0, **kw})


def right(store, want):
    "Count the rows that are there, all of which must be right."
    got = [store.get(i) for i in range(len(want))]
    for g, w in zip(got, want): assert g is None or np.array_equal(g, w)
    return sum(g is not None for g in got)


def in_child(f):
    "Run `f` in a forked process that never returns here; give its id."
    pid = os.fork()
    if pid: return pid
    try: f(); os._exit(0)
    except BaseException: os._exit(1)


def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- what a store answers

STORES = {"memory": lambda path, *a: MemoryStore(*a), "disk": lambda path, n, c, shape=None: opened(path, n, c, shape)}

@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("shape", [None, (28, 20)])
@pytest.mark.parametrize("kind", STORES)
def test_what_goes_in_comes_out(kind, shape, channels, tmp_path):
    store = STORES[kind](tmp_path/"a.pixels", 20, channels, shape)
    want = [image(i, shape if i % 7 else None, channels) for i in range(20)]
    for i in range(19): assert store.get(i) is None and store.put(i, want[i]) and store.put(i, want[i])
    assert (len(store), store.complete, store.nbytes) == (19, False, sum(o.nbytes for o in want[:19]))
    assert store.put(19, want[19]) and store.complete and store.has().all() and right(store, want) == 20
    assert not store.get(3).flags.writeable
    assert np.shares_memory(store.get(3), store.get(3))
    store.close()
    assert store.get(3) is None and len(store) == 0 and store.nbytes == 0


@pytest.mark.parametrize("kind", STORES)
def test_images_of_one_size_are_one_array(kind, tmp_path):
    want = np.stack([image(i, (9, 8)) for i in range(30)])
    store = STORES[kind](tmp_path/"a.pixels", 30, 3, (9, 8))
    for i in range(29): store.put(i, want[i])
    assert store.block() is None and store.batch([3, 29]) is None
    out = np.empty((3, 9, 8, 3), np.uint8)
    assert store.batch([5, 0, 28], out) is out and np.array_equal(out, want[[5, 0, 28]])
    store.want(range(29))                                     # row 29 cannot be read
    assert store.complete and np.array_equal(store.block()[:29], want[:29])
    store.want(None).put(29, image(29))                       # of another size
    assert store.complete and store.block() is None and store.batch([29]) is None and np.array_equal(store.batch([1, 1]), want[[1, 1]])


@pytest.mark.parametrize("kind", STORES)
def test_what_is_no_row_is_refused(kind, tmp_path):
    store = STORES[kind](tmp_path/"a.pixels", 5, 3)
    for bad in (np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ConfigError, match="was given"): store.put(0, bad)
    for i in (-1, 5):
        with pytest.raises(IndexError): store.put(i, image(0))
    with pytest.raises(IndexError): store.get(5)
    assert len(store) == 0


def test_views_stay_valid_and_strided_images_are_kept(tmp_path):
    store, big = opened(tmp_path/"a.pixels"), image(0, (40, 40))
    store._share.step = 4096                                        # the file grows, and is mapped anew, all the time
    store.put(0, big[::2, ::-1])
    view = store.get(0)
    for i in range(1, 80): store.put(i, image(i)); assert store.get(i) is not None
    store.close(); os.unlink(tmp_path/"a.pixels")
    assert np.array_equal(view, big[::2, ::-1])


def test_torch_takes_the_views_without_a_word(tmp_path):
    store = opened(tmp_path/"a.pixels"); store.put(0, image(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(torch.from_numpy(store.get(0)), torch.from_numpy(image(0)))


def test_memory_has_a_limit_and_keeps_a_copy():
    store = MemoryStore(10, 3, limit=4*300)
    x = image(0, (10, 10)); store.put(0, x); x[:] = 0
    assert np.array_equal(store.get(0), image(0, (10, 10)))
    with pytest.warns(UserWarning, match="more memory than their sample promised"): kept = [store.put(i, image(i, (10, 10))) for i in range(1, 10)]
    assert kept == [True]*3 + [False]*6 and store.nbytes == 1200
    with warnings.catch_warnings(): warnings.simplefilter("error"); assert not store.put(9, image(9))


# ---- killed

def filler(path, want, shape, order):
    store = opened(path, len(want), 3, shape); store._share.step = 2**15
    for i in order: store.put(i, want[i])


@pytest.mark.parametrize("shape", [None, (30, 40)])
def test_killed_in_the_middle_of_any_write(tmp_path, monkeypatch, shape):
    "Each child dies when it has written a random part of its k-th piece; what is there then is right, and the rest comes later."
    path, rng = tmp_path/"a.pixels", random.Random(0)
    want, done = [image(i, shape if i % 5 else None) for i in range(60)], 0
    for k in [0, 1, 2, 3] + [rng.randrange(4, 24) for _ in range(16)]:
        def dies():
            real, left = os.pwrite, [k]
            def pwrite(fd, data, at):
                if not left[0]: real(fd, data[:rng.randrange(len(data))], at); os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return real(fd, data, at)
            os.pwrite = pwrite
            filler(path, want, shape, rng.sample(range(60), 60))
        rng.random()
        assert ended(in_child(dies)) in (-9, 0)
        if path.exists():
            store = opened(path, 60, 3, shape)
            now = right(store, want)
            assert now >= done and len(store) == now
            done = now
            store.close()
    assert 0 < done
    filler(path, want, shape, range(60))
    store = opened(path, 60, 3, shape)
    assert right(store, want) == 60 and store.complete
    assert not list(tmp_path.glob(".*.tmp"))                  # nor anything of the builders that died while they made the file


def test_pixels_are_written_before_their_entry(tmp_path, monkeypatch):
    store, at, real = opened(tmp_path/"a.pixels", 5, 3, (40, 40)), [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: at.append(offset) or real(fd, data, offset))
    for i in range(5): store.put(i, image(i, (40, 40) if i % 2 else None))
    assert [o < store._first for o in at] == [False, True]*5


def test_killed_at_random_moments(tmp_path):
    path, rng, want = tmp_path/"a.pixels", random.Random(1), [image(i, (120, 160) if i % 3 else None) for i in range(300)]
    def slowly():
        store = opened(path, 300, 3, (120, 160)); store._share.step = 2**15
        for i in rng.sample(range(300), 300): store.put(i, want[i]); time.sleep(.0003)
    done, killed = 0, 0
    for i in range(18):
        pid, end = in_child(slowly), time.monotonic() + 10
        while i % 3 and not path.exists() and time.monotonic() < end: time.sleep(.001)          # two of three are well begun, however slow the disk is
        time.sleep(rng.uniform(0, .06)); os.kill(pid, signal.SIGKILL)
        killed += ended(pid) == -9
        if path.exists(): store = opened(path, 300, 3, (120, 160)); now = right(store, want); assert now >= done; done = now; store.close()
        rng.random()
    assert killed >= 15 and done > 0
    filler(path, want, (120, 160), range(300))
    assert right(opened(path, 300, 3, (120, 160)), want) == 300


# ---- several at once

@pytest.mark.parametrize("shape", [None, (30, 40)])
def test_processes_fill_one_file_at_once(tmp_path, monkeypatch, shape):
    real = os.ftruncate
    def slow(fd, n): time.sleep(.003); real(fd, n)            # time for the others to take the same room
    monkeypatch.setattr(os, "ftruncate", slow)
    path, want = tmp_path/"a.pixels", [image(i, shape if i % 5 else None) for i in range(120)]
    def fills(seed):
        store = opened(path, 120, 3, shape); store._share.step = 2**14
        for i in random.Random(seed).sample(range(120), 120): store.put(i, want[i]); assert np.array_equal(store.get(i), want[i])
        assert store.complete and right(store, want) == 120
    assert [ended(o) for o in [in_child(lambda: fills(s)) for s in range(4)]] == [0]*4
    store = opened(path, 120, 3, shape)
    assert right(store, want) == 120 and len(list(tmp_path.glob("*.pixels"))) == 1


def test_a_forked_worker_fills_its_parents_file(tmp_path):
    store, want = opened(tmp_path/"a.pixels"), [image(i) for i in range(80)]
    for i in range(10): store.put(i, want[i])                 # the parent has room in the file that the child must not use too
    held = threading.Thread(target=lambda: [store.put(i, want[i]) for i in range(10, 40)]); held.start()
    def child():
        for i in range(79, 30, -1): assert store.put(i, want[i])
    assert ended(in_child(child)) == 0
    held.join()
    assert right(store, want) == 80 and right(opened(tmp_path/"a.pixels"), want) == 80


def spawned(store, i): return store.get(i).sum(), store.put(i+1, image(i+1))

def test_a_spawned_worker_opens_the_file_again(tmp_path):
    store = opened(tmp_path/"a.pixels").want([3, 4]); store.put(3, image(3))
    with multiprocessing.get_context("spawn").Pool(1) as pool: assert pool.apply(spawned, (store, 3)) == (image(3).sum(), True)
    assert store.complete and np.array_equal(store.get(4), image(4))
    ram = MemoryStore(80, 3); ram.put(3, image(3))
    ram = pickle.loads(pickle.dumps(ram))
    assert (len(ram), ram.put(0, image(0))) == (0, False)


def test_a_forked_worker_leaves_memory_alone():
    ram = MemoryStore(4, 3); ram.put(0, image(0))
    def child(): assert np.array_equal(ram.get(0), image(0)) and not ram.put(1, image(1))
    assert ended(in_child(child)) == 0


@pytest.mark.parametrize("kind", STORES)
def test_threads(kind, tmp_path):
    "Eight threads put and get the same rows at once, while the file grows"
    store, want, wrong = STORES[kind](tmp_path/"a.pixels", 200, 3, (30, 40)), [image(i, (30, 40) if i % 2 else None) for i in range(200)], []
    if kind == "memory": store._step = 2**14
    else: store._share.step = 2**14
    def works(seed):
        rng = random.Random(seed)
        try:
            for _ in range(1500):
                i = rng.randrange(200)
                if (got := store.get(i)) is None: store.put(i, want[i])
                elif not np.array_equal(got, want[i]): wrong.append(i)
        except Exception as e: wrong.append(e)
    many = [threading.Thread(target=works, args=(s,)) for s in range(8)]
    for o in many: o.start()
    for o in many: o.join()
    assert not wrong and right(store, want) == 200 and store.nbytes == sum(o.nbytes for o in want)


# ---- damaged

@pytest.mark.parametrize("shape", [None, (30, 40)])
def test_any_flipped_bit_is_noticed(tmp_path, monkeypatch, shape):
    "A bit anywhere in the file: all that is read is right, and what is not can be written again."
    monkeypatch.setattr(cache, "GROWTH_STEP", 2**16)
    path, want, rng = tmp_path/"a.pixels", [image(i, shape) for i in range(12)], random.Random(0)
    store = opened(path, 12, 3, shape)
    for i in range(12): store.put(i, want[i])
    store.close()
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0"))
    places = [rng.randrange(0, 200) for _ in range(20)] + [rng.randrange(4096, 4096+12*24) for _ in range(60)] + [rng.randrange(8192, used) for _ in range(60)]
    missed = 0
    for at in places:
        torn = bytearray(whole); torn[at] ^= 1 << rng.randrange(8); path.write_bytes(torn)
        store = opened(path, 12, 3, shape)
        there = right(store, want); missed += there < 12
        for i in range(12): assert store.put(i, want[i])
        assert right(store, want) == 12
        store.close()
        assert right(opened(path, 12, 3, shape), want) == 12
    assert missed > 100                                       # the rest hit a hole or a gap


@pytest.mark.parametrize("damage", [b"", b"not a cache", b"\0"*9000, b"visionlab pixels\n" + b"\xff"*5000])
def test_what_is_no_cache_is_replaced(tmp_path, damage):
    path = tmp_path/"a.pixels"; path.write_bytes(damage)
    store = opened(path); assert len(store) == 0 and store.put(5, image(5))
    assert np.array_equal(opened(path).get(5), image(5))


def test_another_version_or_other_images_are_replaced(tmp_path, monkeypatch):
    path = tmp_path/"a.pixels"
    opened(path).put(5, image(5))
    for other in (lambda: opened(path, n=81), lambda: opened(path, channels=1), lambda: DiskStore(path, 80, 3, None, dict(key="other"), 0)):
        assert len(other()) == 0
        opened(path).put(5, image(5)); assert len(opened(path)) == 1
    monkeypatch.setattr(disk_store, "STORE_FORMAT", 99)
    assert len(opened(path)) == 0


@pytest.mark.parametrize("offset", [8, 4096, 2**40, 2**63])
def test_an_entry_that_points_elsewhere(tmp_path, offset):
    store = opened(tmp_path/"a.pixels")
    with open(tmp_path/"a.pixels", "r+b") as f:
        f.seek(disk_store._HEAD); f.write(disk_store._pack(0, offset, 2, 2, zlib.crc32((tmp_path/"a.pixels").read_bytes()[offset:offset+12] if offset < 2**40 else b"")))
    assert store.get(0) is None and store.put(0, image(0)) and np.array_equal(store.get(0), image(0))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_removed_while_it_is_opened(tmp_path, monkeypatch, replaced):
    path, real, calls = tmp_path/"a.pixels", disk_store.mark_in_use, []
    opened(path).put(0, image(0)); opened(tmp_path/"b.pixels")
    def mark(fd, alone=False):
        if not calls: os.replace(tmp_path/"b.pixels", path) if replaced else os.unlink(path)
        calls.append(fd)
        return real(fd, alone)
    monkeypatch.setattr(disk_store, "mark_in_use", mark)
    store = opened(path)
    assert len(calls) == 2 and len(store) == 0 and store.put(1, image(1)) and np.array_equal(opened(path).get(1), image(1))


def test_a_file_cut_anywhere(tmp_path):
    path, want = tmp_path/"a.pixels", [image(i) for i in range(30)]
    store = opened(path, 30); [store.put(i, want[i]) for i in range(30)]; store.close()
    whole = path.read_bytes()
    for size in (0, 10, 4096, 4500, 8191, 8192, 9000, 30_000, 100_000):
        path.write_bytes(whole[:size])
        store = opened(path, 30)
        right(store, want)
        for i in range(30): store.put(i, want[i])
        assert right(store, want) == 30 and right(opened(path, 30), want) == 30


def test_pages_that_never_reached_the_disk(tmp_path):
    "After a power cut the table may be there and the pixels not."
    path, want = tmp_path/"a.pixels", [image(i, (60, 60)) for i in range(20)]
    store = opened(path, 20, 3, (60, 60)); [store.put(i, want[i]) for i in range(20)]
    first = store._first; store.close()
    with open(path, "r+b") as f: f.seek(first + 8192); f.write(bytes(4096*6))
    store = opened(path, 20, 3, (60, 60))
    assert len(store) == 20 and store.complete                # so the table says
    assert 14 <= right(store, want) < 20 and not store.complete and store.block() is None and store.batch(range(20)) is None
    for i in range(20): store.put(i, want[i])
    assert np.array_equal(store.block(), np.stack(want))


# ---- no room, no right, no such thing

def test_a_file_that_may_not_grow(tmp_path):
    "The limit of the process stands for a full disk: a write fails in the middle."
    want = [image(i, (50, 50)) for i in range(80)]
    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        store = opened(tmp_path/"a.pixels"); store._share.step = 4096
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            kept = [store.put(i, want[i]) for i in range(80)]
        assert 20 < sum(kept) < 30 and kept == sorted(kept, reverse=True) and right(store, want) == sum(kept)
        assert len(said) == 1 and "takes no more images" in str(said[0].message)
    assert ended(in_child(child)) == 0
    assert 20 < right(opened(tmp_path/"a.pixels"), want) < 30
    filler(tmp_path/"a.pixels", want, None, range(80))        # once there is room
    assert right(opened(tmp_path/"a.pixels"), want) == 80


def test_a_full_disk(tmp_path, monkeypatch):
    store, left, real = opened(tmp_path/"a.pixels", 80, 3, (50, 50)), [30], os.pwrite
    def pwrite(fd, data, at):
        left[0] -= 1
        if left[0] == 0: return real(fd, data[:len(data)//2], at)      # a short write, and then none
        if left[0] < 0: raise OSError(28, "No space left on device")
        return real(fd, data, at)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.warns(UserWarning, match="No space left") as said: kept = [store.put(i, image(i, (50, 50))) for i in range(80)]
    assert len(said) == 1 and sum(kept) == 14
    assert right(store, [image(i, (50, 50)) for i in range(80)]) == 14
    monkeypatch.undo()
    store = opened(tmp_path/"a.pixels", 80, 3, (50, 50))      # half of the fifteenth entry was written
    assert right(store, [image(i, (50, 50)) for i in range(80)]) == 14 == len(store)


def test_some_of_the_disk_is_left_to_others(tmp_path):
    store = opened(tmp_path/"a.pixels", reserve=2**60)
    with pytest.warns(UserWarning, match="would stay free"): assert not store.put(0, image(0))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "Five photographs as a catalog, and an empty cache folder."
    monkeypatch.setenv("VISIONLAB_CACHE", str(tmp_path/"cache"))
    (tmp_path/"photos").mkdir()
    for i in range(5): Image.fromarray(image(i, (40+i, 60))).save(tmp_path/f"photos/{i}.png")
    return Catalog.from_lists(sorted((tmp_path/"photos").iterdir()), list("aabba"))


DISK = CachePlan("disk", True, 5*8000, None, 2**30, "asked for")

@pytest.mark.parametrize("fails", ["os.open", "tempfile.mkstemp", "mmap.mmap", "os.ftruncate", "visionlab.data.disk_store.FileLock"])
def test_a_folder_where_nothing_can_be_kept(photos, monkeypatch, fails, tmp_path):
    "Read-only, without locks, without maps: one warning, no store, nothing left behind"
    def refuse(*a, **k): raise (NotImplementedError if "Lock" in fails else OSError)(30, "Read-only file system")
    with monkeypatch.context() as m:
        m.setattr(fails, refuse)
        with pytest.warns(UserWarning, match="cannot be kept on the disk") as said: assert open_store(DISK, photos, 3) is None
        assert len(said) == 1
    left = [o.name for o in (tmp_path/"cache/pixels").iterdir()]
    assert set(o for o in left if not o.endswith(".pixels")) <= {".lock"}
    assert open_store(DISK, photos, 3).put(0, load_image(photos.sources[0]))


def test_a_cache_that_may_only_be_read_is_read(photos, monkeypatch):
    store = open_store(DISK, photos, 3); store.put(2, load_image(photos.sources[2])); store.close()
    real = os.open
    def read_only(path, flags, *a, **k):
        if flags & (os.O_RDWR | os.O_WRONLY): raise PermissionError(13, "Permission denied")
        return real(path, flags, *a, **k)
    monkeypatch.setattr(os, "open", read_only)
    store = open_store(DISK, photos, 3)
    assert np.array_equal(store.get(2), load_image(photos.sources[2])) and not store.put(1, image(1)) and store.get(1) is None


# ---- which file

def test_the_key_follows_files_and_decoding(photos, monkeypatch):
    first = cache_key(photos, 3)
    assert first == cache_key(photos, 3) != cache_key(photos, 1)
    assert len({first, cache_key(photos, 3, 32), cache_key(photos, 3, 33)}) == 3
    assert cache_key(photos.drop([2], "gone"), 3) != first
    path, stat = photos.sources[1], os.stat(photos.sources[1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1)); assert cache_key(photos, 3) != first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns)); assert cache_key(photos, 3) == first
    monkeypatch.setattr(pixel_keys, "_decoders", lambda: "another")
    assert cache_key(photos, 3) != first


def test_a_reader_that_cannot_tell_has_no_file(photos):
    class Reader:
        def __len__(self): return 5
        def __getitem__(self, i): return image(i)
    from dataclasses import replace
    cat = replace(photos, reader=Reader())
    with pytest.warns(UserWarning, match="cannot be told"): assert open_store(DISK, cat, 3) is None
    Reader.identity = ["v1"]
    one = cache_key(cat, 3); Reader.identity = ["v2"]
    assert one and one != cache_key(cat, 3)


def test_the_second_run_reads_what_the_first_decoded(photos):
    def here():
        store = open_store(plan_cache("disk", image_sizes(photos), 5, 3, 32), photos, 3)
        before = len(store), store.complete
        for i in photos.frame.index: store.put(i, load_image(photos.sources[i]))
        return before
    code = """
import sys
from visionlab.data.cache_plan import image_sizes, plan_cache
from visionlab.data.caches import open_store
from visionlab.catalog.catalog import Catalog
cat = Catalog.from_lists(sys.argv[1:], list("aabba"))
store = open_store(plan_cache("disk", image_sizes(cat), 5, 3, 32), cat, 3)
print(len(store), store.complete)
"""
    assert here() == (0, False) and here() == (5, True)
    assert subprocess.run([sys.executable, "-c", code, *photos.files()], capture_output=True, text=True, check=True).stdout.split() == ["5", "True"]
    Image.fromarray(image(9, (44, 60))).save(photos.sources[4])
    assert here() == (0, False)


# ---- what did not change since

def fill(cat, keep=True, **kw):
    "Open a catalog's cache, say which rows it had or took over, and decode the rest."
    store = open_store(CachePlan("disk", keep, 40_000, None, GB, ""), cat, 3, **kw)
    had = [i for i in cat.frame.index if store.get(i) is not None]
    for i in cat.frame.index: assert store.put(i, load_image(cat.sources[i])) and np.array_equal(store.get(i), load_image(cat.sources[i]))
    return store, had


def test_only_what_changed_is_decoded_again(photos, tmp_path):
    first, had = fill(photos); assert had == []
    fewer, had = fill(photos.drop([3], "gone")); assert had == [0, 1, 2, 4] and fewer.complete
    Image.fromarray(image(50, (45, 60))).save(photos.sources[1])
    Image.fromarray(image(51, (45, 60))).save(tmp_path/"photos/1a.png")
    more = Catalog.from_lists(sorted((tmp_path/"photos").iterdir()), list("aabbaa"))      # all rows after the new one have another number
    for o in (first, fewer): o.close()
    store, had = fill(more); assert had == [0, 3, 4, 5]
    store.close()
    assert fill(more)[1] == list(range(6)) and fill(more, keep=32)[1] == []              # other pixels are never taken over


def test_taking_over_goes_on_after_a_kill(photos):
    fill(photos)[0].close()
    fewer = photos.drop([3], "gone")
    def child():
        store = open_store(DISK, fewer, 3); store.get(0); os.kill(os.getpid(), signal.SIGKILL)
    assert ended(in_child(child)) == -9
    assert fill(fewer)[1] == [0, 1, 2, 4]


def test_a_damaged_image_is_not_taken_over(photos):
    store = fill(photos)[0]; path, offset = store.path, store._at[2, 0]; store.close()
    with open(path, "r+b") as f: f.seek(offset + 50); f.write(b"torn")
    assert fill(photos.drop([3], "gone"))[1] == [0, 1, 4]


def test_taking_over_many_rows(tmp_path):
    rows = np.arange(1, 2001, dtype=np.uint64)*7919
    old = opened(tmp_path/"a.pixels", 2000, 1, (5, 5), rows=rows)
    for i in range(0, 2000, 2): old.put(i, image(i, (5, 5), 1))
    mixed = np.random.default_rng(0).permutation(3000)        # from 2000 on: not in the old one
    new = opened(tmp_path/"b.pixels", 3000, 1, (5, 5), rows=(mixed + 1).astype(np.uint64)*7919)
    assert new.inherit(old) == 2000 and opened(tmp_path/"c.pixels", 30, 1).inherit(old) == 0
    for i, j in enumerate(mixed):
        assert (new.get(i) is not None) == (j < 2000 and j % 2 == 0)
        if new.get(i) is not None: assert np.array_equal(new.get(i), image(j, (5, 5), 1))
    assert len(new) == 1000 and new.batch([int(np.flatnonzero(mixed == 4)[0])]).shape == (1, 5, 5, 1)


# ---- the plan

ONE = dict(sizes=[(500, 400)]*3 + [(400, 500)], n=100_000, channels=3, side=224)      # 56 GB whole, 23 GB at 256 px

@pytest.mark.parametrize("asked,free,tier,keep", [
    ("auto", Free(300*GB, 200*GB, 900*GB), "ram", True), ("auto", Free(300*GB, 20*GB, 900*GB), "ram", True), ("auto", Free(150*GB, None, 900*GB), "disk", True),
    ("auto", Free(100*GB, None, 900*GB), "stream", False), ("auto", Free(16*GB, None, 900*GB), "stream", False), ("auto", Free(16*GB, None, 20*GB), "stream", False), ("auto", Free(16*GB), "stream", False),
    ("ram", Free(80*GB), "ram", True), ("ram", Free(40*GB), "stream", False), ("ram", Free(10*GB, 900*GB, 900*GB), "stream", False),
    ("disk", Free(GB, None, 60*GB), "disk", True), ("disk", Free(GB, None, 40*GB), "stream", False), ("disk", Free(900*GB, None, None), "stream", False),
    ("device", Free(GB, 80*GB), "stream", False), ("device", Free(GB, None), "stream", False), (30*GB, Free(GB), "stream", False), (60*GB, Free(GB), "ram", True),
    ("small", Free(300*GB, 80*GB, 900*GB), "device", 256), ("small", Free(300*GB, 20*GB, 900*GB), "ram", True), ("small", Free(100*GB, None, 900*GB), "ram", 256), ("small", Free(80*GB, None, 900*GB), "disk", 256),
    ("small", Free(16*GB, None, 20*GB), "stream", False), ("small-ram", Free(80*GB), "ram", True), ("small-ram", Free(40*GB), "ram", 256), ("small-ram", Free(10*GB, 900*GB, 900*GB), "stream", False),
    ("small-disk", Free(GB, None, 40*GB), "disk", 256), ("small-device", Free(GB, 80*GB), "device", 256),
    (10, Free(900*GB), "stream", False), (0, Free(900*GB), "stream", False), (None, Free(900*GB, 900*GB, 900*GB), "stream", False)])
def test_plan(asked, free, tier, keep):
    plan = plan_cache(asked, **ONE, free=free)
    assert (plan.tier, plan.keep) == (tier, keep) and "\n" not in plan.reason
    if tier != "stream": assert 0 < plan.nbytes <= plan.limit and cache.show_bytes(plan.nbytes) in plan.reason


def test_small_images_on_a_small_machine_go_to_a_file_whole():
    assert plan_cache("auto", [(28, 28)], 60_000, 1, 28, Free(100*2**20, None, GB)).keep is True
    assert plan_cache("auto", [(28, 28)]*4, 60_000, 1, 28, Free(100*2**20, None, GB)).shape == (28, 28)
    assert plan_cache("auto", [(28, 28), (29, 28)], 60_000, 1, 28, Free(GB)).shape is None
    assert plan_cache("small", [(400, 800), (500, 1000)], 600_000, 3, 224, Free(GB, None, 900*GB)).shape == (256, 512)
    assert plan_cache("auto", [(400, 800)], 600, 3, 224, Free(GB, 900*GB)).tier == "device"        # all of one size


def test_a_smaller_copy_says_what_it_costs_and_streaming_says_how_to_ask_for_it():
    small,stream = plan_cache("small", **ONE, free=Free(100*GB)), plan_cache("auto", **ONE, free=Free(100*GB))
    assert "as asked" in small.reason and "less sharp" in small.reason and "256 px" in small.reason
    assert "cache='small'" in stream.reason and "other pixels" in stream.reason and cache.show_bytes(56*GB)[-2:] in stream.reason
    assert "small-device" in plan_cache("device", **ONE, free=Free(GB, 900*GB)).reason


def test_an_estimate_is_what_is_kept(photos):
    plan = plan_cache("disk", image_sizes(photos), len(photos), 3, 16)
    store = open_store(plan, photos, 3)
    for i in photos.frame.index: store.put(i, load_image(photos.sources[i]))
    assert store.nbytes == plan.nbytes
    assert kept_size(40, 60, 20) == (20, 30) and kept_size(40, 60, 50) == (40, 60) == kept_size(40, 60, True)


def test_a_wrong_name_for_a_place():
    with pytest.raises(UnknownOptionError, match="'disk'"): plan_cache("disc", **ONE, free=Free(GB))
    with pytest.raises(UnknownOptionError): plan_cache(True, **ONE, free=Free(GB))
    assert plan_cache("auto", [], 10, 3, 224, Free(GB)).tier == "stream"


def test_memory_of_a_container(tmp_path):
    for name, text in (("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 300\ninactive_file 250\n")): (tmp_path/name).write_text(text)
    assert cache_plan._container_memory(tmp_path) == 550           # files the system keeps give way
    (tmp_path/"memory.max").write_text("max\n"); assert cache_plan._container_memory(tmp_path) == float("inf")
    assert cache_plan._container_memory(tmp_path/"none") == float("inf")


# ---- the list, the removal

def filled(folder, name, n, used):
    "Make a cache of `n` images of 30 kB that was last used `used` seconds ago."
    store = DiskStore(folder/f"{name}.pixels", n, 3, (100, 100), dict(key=name, source=name, keep=True, images=n), 0)
    for i in range(n): store.put(i, image(i, (100, 100)))
    store.close()
    os.utime(folder/f"{name}.pixels", (time.time()-used,)*2)


def test_the_list_tells_size_source_and_use(tmp_path):
    filled(tmp_path, "birds", 10, 1000); filled(tmp_path, "cats", 20, 5000)
    (tmp_path/"torn.pixels").write_bytes(b"what")
    table = caches(tmp_path)
    assert table["source"].tolist() == ["cats", "birds", "not readable"] and table["images"].tolist() == [20, 10, 0]
    assert not table["in_use"].any() and table["used"].is_monotonic_increasing
    sizes = [o["size"] for o in caches_page._listed(tmp_path)]
    assert 600_000 <= sizes[0] < 700_000 and 300_000 <= sizes[1] < 400_000
    assert len(caches(tmp_path/"none")) == 0


def test_the_oldest_make_room_and_those_in_use_stay(tmp_path):
    for name, used in (("a", 400), ("b", 300), ("c", 200), ("d", 100)): filled(tmp_path, name, 10, used)
    one = caches_page._listed(tmp_path)[0]["size"]
    assert make_room(one, tmp_path, limit=5*one) == 0
    a = DiskStore(tmp_path/"a.pixels", 10, 3, (100, 100), dict(key="a"), 0)
    view = a.get(3); a.close()                                # and still in use: somebody holds an image
    assert make_room(one, tmp_path, limit=4*one) == one
    assert sorted(o.stem for o in tmp_path.glob("*.pixels")) == ["a", "c", "d"]
    assert np.array_equal(view, image(3, (100, 100)))
    del a, view
    make_room(3*one, tmp_path, limit=4*one)
    assert sorted(o.stem for o in tmp_path.glob("*.pixels")) == ["d"]


def test_clearing_one_or_all(tmp_path):
    for name in "abc": filled(tmp_path, name, 3, 10)
    with pytest.raises(ConfigError, match="no pixel cache"): clear_cache("nothing", tmp_path)
    assert clear_cache("b", tmp_path) > 90_000 and clear_cache(tmp_path/"c.pixels", tmp_path) > 90_000
    assert caches(tmp_path)["source"].tolist() == ["a"]
    a = DiskStore(tmp_path/"a.pixels", 3, 3, (100, 100), dict(key="a"), 0)
    with pytest.warns(UserWarning, match="in use"): assert clear_cache(folder=tmp_path) == 0
    assert clear_cache(folder=tmp_path, force=True) > 0 and np.array_equal(a.get(1), image(1, (100, 100)))
    again = DiskStore(tmp_path/"a.pixels", 3, 3, (100, 100), dict(key="a"), 0)
    assert len(again) == 0 and len(a) == 3


def test_one_in_use_by_another_process_stays(tmp_path):
    filled(tmp_path, "a", 3, 10)
    r, w = os.pipe(); r2, w2 = os.pipe()
    def child():
        store = DiskStore(tmp_path/"a.pixels", 3, 3, (100, 100), dict(key="a"), 0)
        os.write(w, b"x"); os.read(r2, 1); assert store.get(0) is not None
    pid = in_child(child); os.read(r, 1)
    assert caches(tmp_path)["in_use"].tolist() == [True] and make_room(10, tmp_path, limit=0) == 0
    os.write(w2, b"x"); assert ended(pid) == 0
    assert make_room(10, tmp_path, limit=0) > 0


def test_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONLAB_CACHE_LIMIT", "3 MB"); assert cache_limit(tmp_path) == 3*2**20
    monkeypatch.setenv("VISIONLAB_CACHE_LIMIT", "some")
    with pytest.raises(ConfigError, match="VISIONLAB_CACHE_LIMIT"): cache_limit(tmp_path)
    monkeypatch.delenv("VISIONLAB_CACHE_LIMIT"); free = cache_limit(tmp_path/"not"/"yet")
    assert 0 < free < 2**60
    assert [read_bytes_count(o) for o in ("0", "2k", "1.5GB", "2 TiB")] == [0, 2048, 3*2**29, 2**41]


def test_opening_makes_room(photos, monkeypatch, tmp_path):
    folder = tmp_path/"cache/pixels"; folder.mkdir(parents=True)
    filled(folder, "old", 30, 1000)
    monkeypatch.setenv("VISIONLAB_CACHE_LIMIT", "1MB")
    store = open_store(plan_cache("disk", [(400, 400)], 1, 3, 224), photos, 3)
    assert store is not None and [o["source"] for o in caches_page._listed(folder)] == ["lists"]


# ---- large

def test_a_million_rows_open_fast(tmp_path):
    store = opened(tmp_path/"a.pixels", 1_000_000, 3); store.put(999_999, image(1)); store.close()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        store = opened(tmp_path/"a.pixels", 1_000_000, 3)
        assert store.get(999_999) is not None and store.get(5) is None
        times.append(time.perf_counter() - start)
        assert (len(store), store.complete) == (1, False)
        store.close()
    assert min(times) < .5
    assert cache_plan.bytes_on_disk(tmp_path/"a.pixels") < 33_000_000


def test_get_is_cheap(tmp_path):
    "Generous: a tenth of a thousandth of a second would still be far below a decode"
    store = opened(tmp_path/"a.pixels", 500, 3, (30, 30))
    for i in range(500): store.put(i, image(i, (30, 30) if i % 2 else (31, 30)))
    def per_call():
        start = time.perf_counter()
        for i in range(500): store.get(i)
        return (time.perf_counter() - start)/500
    per_call()
    assert min(per_call() for _ in range(20)) < 10e-6
