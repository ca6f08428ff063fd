# SPDX-License-Identifier: Apache-2.0
"""How fast PIM cycles are worked out: every command by itself, and a token of GPT-3 XL in closed form (CPU seconds, medians; ``cold``: the first)."""

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lutra import pim
from lutra.hls_models.load import load_config
from lutra.hls_models.pim.bursts import BurstChannel
from lutra.hls_models.pim.channel import ChannelModel
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.system import SystemModel
from lutra.hls_models.pim.timing import Timing, load_timing
from lutra.mapping.catalogue import HERE
from lutra.mapping.pim.lower import lower
from lutra.mapping.pim.partition import partition
from lutra.mapping.pim.shape import GptShape

__all__ = ["CONTEXT", "measure"]

CONTEXT = 1024
REPEATS = 5
T = TypeVar("T")
PARTS = ("placement", "program", "timing", "figures")


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` gives, and its CPU seconds."""
    begin = time.process_time()
    found = work()
    return found, time.process_time() - begin


def _token(shape: GptShape, config: PimConfig, timing: Timing) -> tuple[pim.TokenTime, tuple[float, ...]]:
    """The token, and the seconds of its parts."""
    made, placing = _timed(lambda: partition(shape, config, tokens=CONTEXT))
    program, lowering = _timed(lambda: lower(made, CONTEXT - 1))
    run, running = _timed(lambda: SystemModel(config, timing, program).run())
    token = pim.TokenTime(made, timing, CONTEXT, program, run)
    return token, (placing, lowering, running, _timed(lambda: pim.report_of(token))[1])


def measure() -> dict[str, Any]:
    """A token of GPT-3 XL at context 1,024 with refresh: all of it in closed form, then channel 0 alone command by command, its data always there.

    ``commands_per_second``: of the per-command path, with every command kept (``recorded``) and without. The one channel's cycles must agree.
    """
    config = load_config("pim-gpt", PimConfig)
    shape, timing = GptShape.from_yaml(HERE / "shapes" / "pim" / "gpt3-xl.yaml"), load_timing(config.timing)
    rounds = [_token(shape, config, timing) for _ in range(REPEATS)]
    token, totals = rounds[0][0], [sum(seconds) for _, seconds in rounds]
    parts = {part: statistics.median(seconds[i] for _, seconds in rounds) for i, part in enumerate(PARTS)}
    macros, rates = token.program.macros[0], {}
    closed, alone = _timed(lambda: BurstChannel(config, timing, 0, macros).run())
    for name, record in (("plain", False), ("recorded", True)):
        found = []
        for _ in range(REPEATS):
            model = ChannelModel(config, timing, 0, macros, record=record)
            stepped, seconds = _timed(model.run)
            assert stepped.done == closed.done, "the closed form is wrong"
            found.append(sum(model.counts) / seconds)
        rates[name] = round(statistics.median(found))
    return {
        "model": shape.name,
        "context": CONTEXT,
        "cycles": token.cycles,
        "commands": sum(token.counts),
        "cpu_seconds": {
            **{part: round(seconds, 4) for part, seconds in parts.items()},
            "total": round(statistics.median(totals), 4),
            "total_cold": round(totals[0], 4),
        },
        "cycles_per_second": round(token.cycles / parts["timing"]),
        "commands_per_second_in_closed_form": round(sum(token.counts) / parts["timing"]),
        "one_channel": {"commands": sum(model.counts), "cycles": closed.done, "closed_form_cpu_seconds": round(alone, 4)},
        "commands_per_second": rates,
    }
