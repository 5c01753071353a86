"Forks that tests start, watch and wait for; they need no import of their own."
import os
import signal
import time
import traceback


def apart(f, *args):
    "Run a function in a fork of this process; return the fork's id. Exit codes: 1 after an exception, 130 after the interrupt key"
    pid = os.fork()
    if pid: return pid
    try: f(*args); code = 0
    except SystemExit as e: code = e.code
    except KeyboardInterrupt: code = 130
    except BaseException: traceback.print_exc(); code = 1       # noqa: BLE001
    os._exit(code)


def wait_for(condition, seconds=60):
    end = time.monotonic()+seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(.02)


def ended(pid, seconds=60):
    "Wait for the exit code of a fork; kill it when it takes too long"
    status = []
    def gone(): status[:] = os.waitpid(pid, os.WNOHANG); return status[0]
    try: wait_for(gone, seconds)
    except AssertionError: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0); raise
    return os.waitstatus_to_exitcode(status[1])


def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return open(f"/proc/{pid}/stat").read().split(")")[1].split()[0] != "Z" if os.path.exists(f"/proc/{pid}/stat") else True


def agent(work, *args, **options):
    "Be what torchrun is, with workers that are forks"
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    rendezvous = {"join_timeout": 60, "last_call_timeout": 1, "keep_alive_interval": 1, "keep_alive_max_attempt": 2}
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    elastic_launch(LaunchConfig(run_id="elastic", rdzv_backend="c10d", start_method="fork", monitor_interval=.1, rdzv_configs=rendezvous, **options), work)(*args)
