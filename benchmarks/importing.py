# SPDX-License-Identifier: Apache-2.0
"""Memory and time of compiling a checkpoint of 2.4 G parameters, made here of random values in the layout of microsoft/bitnet-b1.58-2B-4T."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import LutraError
from lutra.hls_models.shape import CONFIG_NAMES, ModelShape
from lutra.mapping.catalogue import open_model
from lutra.mapping.importer import NORM_NAMES, PLACES

__all__ = ["measure", "measured", "write_checkpoint"]

MODEL, CONFIG = "bitnet-2b4t", "kv260"
PIECE = 1 << 24  # bytes written at once
PACKED = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)], np.uint8)
"""Every byte of four codes 0, 1 and 2."""


def write_checkpoint(folder: Path, shape: ModelShape, seed: int) -> None:
    """``config.json`` and ``model.safetensors`` of random weights: packed matrices with bf16 scales, everything else bf16; a few megabytes in memory."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (shape.vocabulary, shape.hidden))}
    for layer in range(shape.layers):
        for m in shape.linears():
            name = f"model.layers.{layer}.{PLACES[m.name]}.weight"
            tensors |= {name: ("U8", (-(-m.outputs // 4), m.inputs)), f"{name}_scale": ("BF16", (1,))}
        tensors |= {f"model.layers.{layer}.{NORM_NAMES[name][0]}.weight": ("BF16", (size,)) for name, size in shape.norms().items()}
    tensors["model.norm.weight"] = ("BF16", (shape.hidden,))
    if not shape.tied:
        tensors["lm_head.weight"] = ("BF16", (shape.vocabulary, shape.hidden))
    header, at = {}, 0
    for name, (dtype, size) in tensors.items():
        end = at + int(np.prod(size)) * (1 if dtype == "U8" else 2)
        header[name] = {"dtype": dtype, "shape": size, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, size) in tensors.items():
            for piece in _values(rng, name, dtype, int(np.prod(size))):
                file.write(piece.data)
    config = {
        "architectures": ["BitNetForCausalLM"] if shape.sub_norms else ["LlamaForCausalLM"],
        **{theirs: getattr(shape, ours) for ours, theirs in CONFIG_NAMES.items()},
        "tie_word_embeddings": shape.tied,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _values(rng: np.random.Generator, name: str, dtype: str, count: int) -> Iterator[np.ndarray]:
    """Bytes of a tensor, some at a time."""
    for first in range(0, count, PIECE):
        size = min(PIECE, count - first)
        if dtype == "U8":
            yield PACKED[rng.integers(len(PACKED), size=size, dtype=np.uint8)]
        else:
            positive = "norm" in name or "scale" in name
            values = rng.uniform(0.5, 1.5, size).astype(np.float32) if positive else rng.standard_normal(size, np.float32)
            yield (values.view(np.uint32) >> 16).astype("<u2")


# ru_maxrss of a child begins with what its parent held when it forked: the process itself says what it took.
WATCHED = """
import atexit, pathlib, re, sys
from lutra.cli import main

def tell():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path(sys.argv[1]).write_text(re.search("VmHWM:[^0-9]*([0-9]+)", status)[1])

atexit.register(tell)
main(sys.argv[2:])
"""


def measure() -> dict[str, Any]:
    """Seconds and peak resident memory of ``lutra compile`` on it, and of ``lutra estimate`` on its configuration alone."""
    shape = open_model(MODEL)
    assert isinstance(shape, ModelShape)
    with tempfile.TemporaryDirectory() as made:
        folder, run = Path(made) / MODEL, Path(made) / "run"
        begin = time.perf_counter()
        write_checkpoint(folder, shape, 1)
        written = time.perf_counter() - begin
        compiled = measured("compile", str(folder), "--config", CONFIG, "--out", str(run))
        sizes = {"checkpoint_bytes": (folder / "model.safetensors").stat().st_size, "image_bytes": (run / "program" / "memory.bin").stat().st_size}
        estimated = measured("estimate", str(folder / "config.json"), "--config", CONFIG)
    return {"model": MODEL, "parameters": shape.parameters, "config": CONFIG, **sizes, "seconds_to_make": written, "compile": compiled, "estimate": estimated}


def measured(*arguments: str) -> dict[str, float]:
    """Wall clock, processor time and largest resident set of a command of lutra in a process of its own; LutraError with its last line where it fails."""
    begin = time.perf_counter()
    with tempfile.NamedTemporaryFile("r") as told:
        command = [sys.executable, "-c", WATCHED, told.name, *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise LutraError(f"lutra {' '.join(arguments)}: {said.strip().splitlines()[-1] if said.strip() else 'failed'}")
        peak = int(told.read())
    return {"seconds": time.perf_counter() - begin, "processor_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": peak * 1024}
