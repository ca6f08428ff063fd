# SPDX-License-Identifier: Apache-2.0
"""Full-size models on the RTL of the preset kv260, in the bulk driver: a whole token behind a filled cache of keys and values, a prompt through one layer.

Weights are random trits, gains random around 1, scales such that every matrix keeps the spread of what enters it. Every word and every handshake of every
boundary is compared with the golden model's and the cycle model's, by windows (``lutra.cosim.windows``).
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lutra.cosim.core import CoreBench, CoreRun, Job, Turn
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.program import Program
from lutra.mapping.catalogue import open_model
from lutra.mapping.lower import compile_model
from lutra.mapping.model import Matrix, Table, TernaryModel
from lutra.progress import step
from lutra.proofs import Proof, sizes_hash, sources

__all__ = ["CONTEXT", "PROMPT", "compiled", "full_size", "measure", "one_layer", "proof", "random_model", "run"]

PRESET = "kv260"
CONTEXT = 128
"""Rows of keys and values that the token attends, its own included."""
PROMPT = 64
"""Tokens of the prompt through one layer."""
VOCABULARY = 2048
"""Of one layer alone, whose subject is not the head."""
SEED = 1


def full_size(name: str, preset: str = PRESET) -> CoreSpec:
    """A preset's core for a shipped shape."""
    shape = open_model(name)
    assert isinstance(shape, ModelShape)
    return CoreSpec(config=load_config(preset, CoreConfig), shape=shape)


def one_layer(shape: ModelShape) -> ModelShape:
    """The shape with one layer and few tokens to choose from: a program of it runs on the core of the whole one."""
    return shape.model_copy(update={"layers": 1, "vocabulary": min(VOCABULARY, shape.vocabulary)})


def random_model(shape: ModelShape, seed: int) -> TernaryModel:
    """Random trits, made when they are read; a third of them is zero."""
    rng = np.random.default_rng(seed)
    matrices = {}
    for layer in range(shape.layers):
        for index, m in enumerate(shape.linears()):
            # A trit's variance is 2/3: the sum over the inputs then varies as much as one of them.
            scale = float(np.float32((1.5 / m.inputs) ** 0.5))
            matrices[f"layers.{layer}.{m.name}"] = Matrix(m.outputs, m.inputs, _trits(seed, layer, index, m.outputs, m.inputs), (scale,), (m.outputs,))
    sizes = {f"layers.{layer}.{name}": size for layer in range(shape.layers) for name, size in shape.norms().items()} | {"norm": shape.hidden}
    gains = {name: rng.uniform(0.5, 1.5, size).astype(np.float32) for name, size in sizes.items()}
    tables = [_table(rng, shape) for _ in range(1 if shape.tied else 2)]
    return TernaryModel(shape, matrices, gains, tables[0], tables[-1])


def _trits(seed: int, layer: int, index: int, outputs: int, inputs: int) -> Callable[[], np.ndarray]:
    return lambda: np.random.default_rng([seed, layer, index]).integers(-1, 2, (outputs, inputs), np.int8)


def _table(rng: np.random.Generator, shape: ModelShape) -> Table:
    codes = rng.integers(-127, 128, (shape.vocabulary, shape.hidden), np.int8)
    return Table(shape.vocabulary, shape.hidden, codes, rng.uniform(0.01, 0.02, shape.vocabulary).astype(np.float32))


def compiled(spec: CoreSpec, shape: ModelShape, image: Path, *, rows: int = 0, seed: int = SEED) -> Program:
    """A program of ``shape`` with random weights, its image in file ``image``, keys and values of ``rows`` positions random too."""
    program = compile_model(random_model(shape, seed), spec.config, image=image)
    if rows:
        _fill_cache(spec, shape.layers, image, rows, np.random.default_rng([seed, rows]))
    return program


def _fill_cache(spec: CoreSpec, layers: int, image: Path, rows: int, rng: np.random.Generator) -> None:
    """Writes random keys and values of positions below ``rows`` into an image."""
    layout = spec.kv_layout
    tiles = -(-rows // layout.key_tile)
    part = layout.model_copy(update={"layers": layers, "context": tiles * layout.key_tile})
    shape = (layers, layout.kv_heads, part.context, 2)
    codes, scales = np.zeros((*shape, layout.head_dim), np.int8), np.zeros(shape, np.float32)
    codes[:, :, :rows] = rng.integers(-127, 128, codes[:, :, :rows].shape, np.int8)
    scales[:, :, :rows] = rng.uniform(0.005, 0.02, scales[:, :, :rows].shape)
    blocks = part.pack(codes, scales.view(np.uint32)).reshape(layers, layout.kv_heads, -1)
    with image.open("r+b") as file:
        for layer in range(layers):
            for head in range(layout.kv_heads):
                file.seek(layout.address(layer, head, 0, value=False) * layout.beat_bytes)
                file.write(blocks[layer, head].data)


def run(bench: CoreBench, program: Program, turn: Turn) -> CoreRun:
    """A turn on the RTL, in windows; the bench's only core.

    Raises
    ------
    MismatchError
        The first difference in time.
    """
    name, spec = next(iter(bench.specs.items()))
    with step(f"{spec.shape.name}: RTL, cycles") as update:
        found = bench.check({name: Job(program, [turn])}, hashed=True, on_cycle=lambda cycles, _: update(cycles, 0))[name]
    if found.mismatch:
        raise MismatchError(found.mismatch)
    return found


def _processor_seconds() -> float:
    """Of the simulators that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def _figures(found: CoreRun, seconds: float, simulator: float) -> dict[str, Any]:
    """``seconds``: of RTL, golden model, cycle model and comparison together; ``simulator``: processor seconds of the RTL. The run's cycles are those of its
    passes and of fetching the program before."""
    cycles = found.measured[0]
    return {
        "cycles": cycles,
        "pass_cycles": sum(times.cycles for times in found.times),
        "words_compared": found.words_compared,
        "words_mismatched": found.words_mismatched,
        "rtl_seconds": round(found.seconds, 1),
        "cycles_per_second": round(cycles / found.seconds),
        "cycles_per_processor_second": round(cycles / simulator),
        "other_seconds": round(seconds - found.seconds, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def measure(model: str, preset: str = PRESET) -> dict[str, Any]:
    """A whole token at ``CONTEXT`` and ``PROMPT`` tokens through one layer. ``load``: the machine's, of other jobs, over the minute before."""
    spec = full_size(model, preset)
    bench = CoreBench({"core": (spec, 0)}, plain=True)
    load, begin = os.getloadavg()[0], time.perf_counter()
    bench.build()
    found: dict[str, Any] = {
        "model": model,
        "preset": preset,
        "core": sizes_hash(spec),
        "sources": sources(),
        "context": CONTEXT,
        "prompt": PROMPT,
        "load": round(load, 2),
        "build_seconds": round(time.perf_counter() - begin, 1),
    }
    rng = np.random.default_rng(SEED)
    small = one_layer(spec.shape)
    cases = {
        "layer": (small, 0, Turn(rng.integers(small.vocabulary, size=PROMPT).tolist(), 1)),
        "token": (spec.shape, CONTEXT - 1, Turn([int(rng.integers(spec.shape.vocabulary))], 1, start=CONTEXT - 1)),
    }
    with tempfile.TemporaryDirectory(prefix="lutra-token-") as folder:
        for name, (shape, rows, turn) in cases.items():
            begin = time.perf_counter()
            program = compiled(spec, shape, Path(folder) / name, rows=rows)
            middle, used = time.perf_counter(), _processor_seconds()
            done = run(bench, program, turn)
            figures = _figures(done, time.perf_counter() - middle, _processor_seconds() - used)
            if spec.planes and turn.start:
                figures["rescored"] = sum(times.rescored for times in done.times)
            found[name] = {"layers": shape.layers, "image_seconds": round(middle - begin, 1), "image_bytes": program.beats * program.beat_bytes, **figures}
    found["tokens_per_second"] = spec.config.clock_hz / found["token"]["pass_cycles"]
    return found


def proof(result: dict[str, Any]) -> Proof:
    """What a stored result shows, in words."""
    token, layer = result["token"], result["layer"]
    again = f", {token['rescored']:,} rows of it scored again" if "rescored" in token else ""
    parts = [
        f"a whole token at context {result['context']} ({token['layers']} layers and head{again}): {token['pass_cycles']:,} cycles as predicted, "
        f"{token['words_compared']:,} words, {token['words_mismatched']} differ",
        f"{result['prompt']} prompt tokens through one layer and a head of {VOCABULARY:,} tokens: {layer['pass_cycles']:,} cycles as predicted, "
        f"{layer['words_compared']:,} words, {layer['words_mismatched']} differ",
    ]
    preset = "" if result["preset"] == PRESET else f" {result['preset']}"
    return Proof(result["core"], result["sources"], f"python -m benchmarks token {result['model']}{preset}", "; ".join(parts))
