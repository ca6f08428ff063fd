# SPDX-License-Identifier: Apache-2.0
"""How fast the tiny core is simulated, and how much faster the golden and the cycle model are (``cold``: the first time in a process, RTL: after its build)."""

import statistics
import time
from typing import Any

from lutra import engine
from lutra.cosim.core import CoreBench, Job, Turn
from lutra.figures import Timing
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.mapping.tokenizer import Tokenizer

__all__ = ["measure"]

PROMPT = "KING RICHARD:\nNow is the winter of our discontent,\n"
TOKENS = 64
REPEATS = 3


def _seconds(work: Any, repeats: int = REPEATS) -> float:
    """Median wall-clock time."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure() -> dict[str, Any]:
    """Cycles per second of the RTL under cocotb (every boundary recorded) and tokens per second of all three forms, the same prompt and tokens."""
    folder = HERE / "models" / "tiny-shakespeare"
    model, config = load(folder), load_config("tiny", CoreConfig)
    program, spec = compile_model(model, config), CoreSpec(config=config, shape=model.shape)
    prompt = Tokenizer.load(folder, model.shape.vocabulary).encode(PROMPT)

    def predict() -> Timing:
        # What `lutra estimate` does: begin and end of every instruction of every pass, work and stalls of every unit.
        return engine.timing(spec, program, prompt=len(prompt), contexts=range(len(prompt) + 1, len(prompt) + TOKENS))

    cold = _seconds(predict, 1)
    bench = CoreBench({"core": (spec, program.beats)})
    begin = time.perf_counter()
    bench.build()
    build = time.perf_counter() - begin
    runs = [bench.check({"core": Job(program, [Turn(prompt, TOKENS)])})["core"] for _ in range(REPEATS)]
    assert all(run.mismatch is None for run in runs), runs[0].mismatch
    assert predict().end[-1] == runs[0].measured[0], "the cycle model is wrong"
    cycles, rtl = runs[0].measured[0], statistics.median(run.seconds for run in runs)

    def golden() -> None:
        list(Executor(spec, program).generate(prompt, TOKENS))

    seconds = {"rtl": rtl, "golden": _seconds(golden), "cycle_model": _seconds(predict), "cycle_model_cold": cold}
    return {
        "prompt_tokens": len(prompt),
        "tokens": TOKENS,
        "cycles": cycles,
        "words_compared": runs[0].words_compared,
        "build_seconds": build,
        "rtl_cycles_per_second": cycles / rtl,
        "tokens_per_second": {name: TOKENS / value for name, value in seconds.items()},
        "faster_than_rtl": {name: rtl / value for name, value in seconds.items()},
    }
