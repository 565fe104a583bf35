"""Devices and processes: what accelerate is given, how episodes are shared, and how processes are started on CPUs."""
import argparse
import ctypes
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object

from config import UserError

Results = dict[str, np.ndarray]
OUT_OF_MEMORY = ("out of memory: lower train.batch_size (or raise train.grad_accum_steps, which computes it in parts), "
                 "lower env.num_envs, or give model.vlm.gradient_checkpointing=True "
                 "(model.vlm.load_in_4bit=True saves most)")
LOST_PROCESS = ("gloo", "NCCL", "onnection", "Broken pipe", "peer")     # parts of messages after a process has ended


def is_main_process() -> bool:
    """Return whether this is the first process, also before there is an Accelerator."""
    return os.environ.get("RANK", "0") == "0"


def one_line_message(error: RuntimeError) -> str | None:
    """Return one line for a lack of memory or a lost process, None for any other error."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in first:
        return OUT_OF_MEMORY
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(word in first for word in LOST_PROCESS):
        return (f"another process of this run has ended, so process {os.environ['RANK']} ends too ({first[:80]}); "
                "go on with train.resume")
    return None


def make_accelerator(config: Any) -> Accelerator:
    """Return accelerate's Accelerator for the config's device and this process.

    Raises UserError for a device that is not available and for batches that the processes cannot share equally.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(config.device, True):
        raise UserError(f"device={config.device} is not available on this machine: use device=cpu or device=auto")
    use_cpu = config.device == "cpu" or not any(available.values())
    if config.model.vlm.load_in_4bit and not available["cuda"]:
        raise UserError("model.vlm.load_in_4bit=True trains on a CUDA GPU only: leave it out, or save memory with "
                        "model.vlm.gradient_checkpointing=True")
    # tasks reach different parameters; without broadcasts, no process waits for another while it acts
    options = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
    accelerator = Accelerator(cpu=use_cpu, kwargs_handlers=[options])
    processes = accelerator.num_processes
    for key, value in (("env.num_envs", config.env.num_envs), ("train.batch_size", config.train.batch_size)):
        if value % processes:
            nearest = math.ceil(value / processes) * processes
            raise UserError(f"{key} is shared by {processes} processes and is {value}: give {key}={nearest}")
    return accelerator


def run_sharded(accelerator: Accelerator, run: Callable[[np.ndarray], Results], count: int) -> Results:
    """Return the results of `count` episodes, arrays [count], of which each process runs a part.

    `run(indices)` returns arrays [len(indices)]. Under FSDP every process runs all episodes, because all of them must
    call the policy equally often.
    """
    n, rank = accelerator.num_processes, accelerator.process_index
    if n == 1 or accelerator.distributed_type == DistributedType.FSDP:
        return run(np.arange(count))
    parts = gather_object([run(np.arange(count)[rank::n])])
    joined = {name: np.empty(count, value.dtype) for name, value in parts[0].items()}
    for name, values in joined.items():
        for i, part in enumerate(parts):
            values[i::n] = part[name]
    return joined


def relaunch_under_torchrun() -> None:
    """Replace this process by torchrun if `accelerate launch --num_processes N` started it on a machine without GPUs.

    There accelerate starts a single process, without a message. With GPUs it uses torchrun itself.
    """
    if "MASTER_ADDR" not in os.environ or "RANK" in os.environ or torch.cuda.is_available():
        return
    import psutil
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int, default=1)
    launcher = psutil.Process(os.getppid()).cmdline()
    count = parser.parse_known_args(launcher)[0].num_processes
    if count > 1 and any("accelerate" in word for word in launcher[:4]):
        if sys.platform == "linux":     # send SIGTERM to torchrun when accelerate ends, so that the run saves
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                  f"--nproc-per-node={count}", *sys.argv])
