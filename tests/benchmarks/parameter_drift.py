"""Time and peak memory of parameter drift: the small model, and a pair of 0.6B parameters.

    python tests/benchmarks/parameter_drift.py [--small] [--threads N]

The small pair is deploy/models/pebble against a perturbed copy. The large one has random weights in bf16 of Qwen3-0.6B's shapes
and the same weights after an update of relative size 1e-2, both written to a temporary folder that is removed. Each pair is
measured in a process of its own, so that the peak is its own; "peak" counts the mapped pages of the files too. Goals: 2 s; 90 s and 6 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads starve each other on a shared CPU

import torch  # noqa: E402
from machine import header  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PEBBLE = ROOT / "deploy" / "models" / "pebble"
CONFIG = {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "vocab_size": 151936, "tie_word_embeddings": True}
LAYER_SHAPES = {
    "self_attn.q_proj": (2048, 1024),
    "self_attn.k_proj": (1024, 1024),
    "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (1024, 2048),
    "self_attn.q_norm": (128,),
    "self_attn.k_norm": (128,),
    "mlp.gate_proj": (3072, 1024),
    "mlp.up_proj": (3072, 1024),
    "mlp.down_proj": (1024, 3072),
    "input_layernorm": (1024,),
    "post_attention_layernorm": (1024,),
}
UPDATE = 1e-2
CALLS = {"small": 3, "large": 1}


def main() -> None:
    arguments = _parse()
    if arguments.child:
        return _measure(*arguments.child, threads=arguments.threads)
    print(header(arguments.threads))
    print(f"\n{'pair':<6} {'parameters':>12} {'matrices':>8} {'seconds':>8} {'CPU s':>8} {'peak GB':>8}  methods")
    for which in ("small",) if arguments.small else ("small", "large"):
        with tempfile.TemporaryDirectory(prefix="drift-") as folder:
            before, after = (_small_pair if which == "small" else _large_pair)(Path(folder))
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--child", which, str(before), str(after)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        print(
            f"{which:<6} {found['parameters']:>12,} {found['matrices']:>8} {found['seconds']:>8.2f} {found['cpu_s']:>8.2f} "
            f"{found['peak_gb']:>8.2f}  {found['methods']}",
            flush=True,
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the small model alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(which: str, before: str, after: str, *, threads: int) -> None:
    """Print one line of JSON; the whole work of a child process."""
    from trainer.diagnostics.drift import measure_drift

    torch.set_num_threads(threads)
    seconds = []
    for _ in range(CALLS[which]):
        started, cpu = time.perf_counter(), time.process_time()
        drift = measure_drift(Path(before), Path(after))
        seconds.append((time.perf_counter() - started, time.process_time() - cpu))
    matrices = [row for row in drift.rows if row.spectral is not None]
    methods = [row.spectral.method for row in matrices]
    found = {
        "parameters": sum(row.counts.entries for row in drift.rows),
        "matrices": len(matrices),
        "seconds": max(seconds)[0],
        "cpu_s": max(seconds)[1],
        "peak_gb": _peak_bytes() / 1e9,
        "methods": ", ".join(f"{methods.count(name)} {name}" for name in sorted(set(methods))),
    }
    print(json.dumps(found))


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _small_pair(folder: Path) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(PEBBLE / "model.safetensors")
    moved = {name: value + 1e-4 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}
    save_file(moved, folder / "model.safetensors")
    return PEBBLE, folder


def _large_pair(folder: Path) -> tuple[Path, Path]:
    """Two folders, the second the first plus an update; the same random numbers are drawn for both."""
    for side in ("before", "after"):
        (folder / side).mkdir()
        (folder / side / "config.json").write_text(json.dumps(CONFIG))
        save_file(dict(_large_tensors(moved=side == "after")), folder / side / "model.safetensors")
    return folder / "before", folder / "after"


def _large_tensors(*, moved: bool) -> Iterator[tuple[str, torch.Tensor]]:
    shapes = {
        "model.embed_tokens.weight": (CONFIG["vocab_size"], CONFIG["hidden_size"]),
        "model.norm.weight": (CONFIG["hidden_size"],),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER_SHAPES.items()}
    weights, updates = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    for name, shape in shapes.items():
        value = 0.02 * torch.randn(shape, generator=weights)
        if moved:
            value += UPDATE * 0.02 * torch.randn(shape, generator=updates)
        yield name, value.bfloat16()


if __name__ == "__main__":
    main()
