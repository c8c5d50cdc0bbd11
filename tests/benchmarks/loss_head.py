"""Time and memory of the loss head, beside the naive version and the bare matrix products of the same shapes.

    python tests/benchmarks/loss_head.py [--quick] [--threads N] [--rounds N]

Needs torch alone (no Ray, no vLLM, no transformers). Runs on the CPU and, where there is one, on a CUDA GPU. One line per
size, objective and support: time divided by the bare products (forward, dh, dW, and the teacher's forward with the full
support), and peak memory beyond the inputs and their gradients. Systems are timed in turns, first one way round, then the
other; the figure is the median, with the spread of the bare products beside it: a difference below it is none.

Legend: R rows (tokens), V vocabulary, H hidden size.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "trainer")]

from full_size import Case, make_case, rows_of, run_naive, run_ours, stage_of  # noqa: E402
from machine import header  # noqa: E402

CASES = (("reverse_kl", "full"), ("forward_kl", "full"), ("jensen_shannon", "full"), ("reverse_kl", "top_k"), ("reverse_kl", "sampled"))
CPU_SIZES = ((4096, 128, 256), (1024, 8192, 256), (512, 151936, 256))
CUDA_SIZES = ((8192, 128, 1024), (8192, 32768, 1024), (8192, 151936, 1024), (8192, 151936, 4096))
"""(R, V, H)"""
QUICK_CPU_SIZES = ((1024, 128, 128), (256, 8192, 128))
QUICK_CUDA_SIZES = ((2048, 32768, 1024),)
NAIVE_ELEMENTS = {"cpu": 1 << 27, "cuda": 1 << 31}
"""R x V above which the naive version is not tried."""
ROUNDS = 4


def main() -> None:
    arguments = _parse()
    if arguments.memory_of:
        return _measure_memory(*arguments.memory_of)
    torch.set_num_threads(arguments.threads)
    print(header(arguments.threads))
    _run("cpu", QUICK_CPU_SIZES if arguments.quick else CPU_SIZES, torch.float32, arguments)
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}")
        _run("cuda", QUICK_CUDA_SIZES if arguments.quick else CUDA_SIZES, torch.bfloat16, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timings of each system, after one that does not count")
    parser.add_argument("--memory-of", nargs=6, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(device: str, sizes: tuple[tuple[int, int, int], ...], dtype: torch.dtype, arguments: argparse.Namespace) -> None:
    print(f"\n{device}, {str(dtype).removeprefix('torch.')}")
    print(f"{'R':>5} {'V':>7} {'H':>5}  {'objective':<15} {'support':<8} {'bare ms':>9} {'spread':>7} {'ours x':>7} {'naive x':>8} {'ours MB':>8} {'naive MB':>9}")
    for rows, vocabulary, hidden in sizes:
        case = make_case(rows=rows, vocabulary=vocabulary, hidden=hidden, device=device).to(dtype)
        for kind, support in CASES:
            print(_line(case, kind, support, rounds=arguments.rounds), flush=True)
        del case
        gc.collect()


def _line(case: Case, kind: str, support: str, *, rounds: int) -> str:
    device, (rows, hidden), vocabulary = case.hidden.device.type, case.hidden.shape, case.head.shape[0]
    loss, inputs = stage_of(kind, support, case.support_ids.shape[1]), rows_of(case, support)
    systems: dict[str, Callable[[], object]] = {
        "bare": _bare_products(case, with_teacher=support == "full"),
        "ours": lambda: run_ours(case, loss, inputs),
    }
    if rows * vocabulary <= NAIVE_ELEMENTS[device]:
        systems["naive"] = lambda: run_naive(case, loss, support)
    seconds = _time_in_turns(systems, device, rounds)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    spread = (max(seconds["bare"]) - min(seconds["bare"])) / middle["bare"]
    ratio = {name: f"{middle[name] / middle['bare']:.2f}" if name in middle else "n/a" for name in ("ours", "naive")}
    memory = {name: f"{_peak_megabytes(name, case, kind, support):.0f}" if name in systems else "n/a" for name in ("ours", "naive")}
    return (
        f"{rows:>5} {vocabulary:>7} {hidden:>5}  {kind:<15} {support:<8} {middle['bare'] * 1e3:>9.1f} {spread:>7.0%} "
        f"{ratio['ours']:>7} {ratio['naive']:>8} {memory['ours']:>8} {memory['naive']:>9}"
    )


def _bare_products(case: Case, *, with_teacher: bool) -> Callable[[], None]:
    """The products that any loss head must do, on whole matrices where they fit and else on parts of 1024 rows."""
    part = min(case.rows, 1024)
    hidden, head = case.hidden, case.head
    logits = torch.empty(part, head.shape[0], dtype=hidden.dtype, device=hidden.device)
    states, weights = torch.empty_like(hidden), torch.zeros_like(head)

    def run() -> None:
        for start in range(0, case.rows, part):
            rows = hidden[start : start + part]
            products = logits[: rows.shape[0]]
            if with_teacher:
                torch.mm(case.teacher_hidden[start : start + part], case.teacher_head.T, out=products)
            torch.mm(rows, head.T, out=products)
            torch.mm(products, head, out=states[start : start + part])
            weights.addmm_(products.T, rows, beta=1.0 if start else 0.0)

    return run


def _time_in_turns(systems: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for call in systems.values():
        call()
    for turn in range(rounds):
        names = list(systems) if turn % 2 == 0 else list(reversed(systems))
        for name in names:
            _synchronize(device)
            started = time.perf_counter()
            systems[name]()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# -- memory ----------------------------------------------------------------------------------------------------------


def _peak_megabytes(which: str, case: Case, kind: str, support: str) -> float:
    """Beyond the inputs and their gradients; on a CPU in a process of its own, which the kernel measures."""
    sizes = [str(size) for size in (case.rows, case.head.shape[0], case.hidden.shape[1])]
    if case.hidden.device.type == "cpu":
        command = [sys.executable, __file__, "--memory-of", which, kind, support, *sizes]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    loss, inputs = stage_of(kind, support, case.support_ids.shape[1]), rows_of(case, support)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _call(which, case, loss, inputs, support)
    gradients = (case.hidden.numel() + case.head.numel()) * case.hidden.element_size()
    return (torch.cuda.max_memory_allocated() - before - gradients) / 1e6


def _measure_memory(which: str, kind: str, support: str, rows: str, vocabulary: str, hidden: str) -> None:
    """Print one number; the whole work of a child process."""
    import ctypes

    warm = make_case(rows=16, vocabulary=4096, hidden=int(hidden))
    loss = stage_of(kind, support, 20)
    for each in ("ours", "naive"):
        _call(each, warm, loss, rows_of(warm, support), support)
    case = make_case(rows=int(rows), vocabulary=int(vocabulary), hidden=int(hidden))
    inputs = rows_of(case, support)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what making the inputs left in the heap is not to be reused unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_bytes("VmRSS")
    _call(which, case, loss, inputs, support)
    gradients = (case.hidden.numel() + case.head.numel()) * 4
    print((_status_bytes("VmHWM") - before - gradients) / 1e6)


def _call(which: str, case: Case, loss, inputs, support: str) -> object:
    return run_ours(case, loss, inputs) if which == "ours" else run_naive(case, loss, support)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
