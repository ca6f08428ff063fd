# SPDX-License-Identifier: Apache-2.0
"""Timelines as trace.json, one track per unit; https://ui.perfetto.dev and chrome://tracing open them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Span", "write_trace"]


class Span(NamedTuple):
    """One instruction on one unit, in clock cycles: ``start`` inclusive, ``done`` exclusive."""

    unit: str
    name: str
    start: int
    done: int


def write_trace(path: Path, spans: Iterable[Span], *, clock_hz: float, title: str) -> None:
    """Writes the spans in order of start; times are microseconds of hardware time, the cycles stand in each event's arguments."""
    ordered = sorted(spans, key=lambda span: (span.start, span.done))
    tracks = {unit: number for number, unit in enumerate(dict.fromkeys(span.unit for span in ordered), 1)}
    scale = 1e6 / clock_hz
    events: list[dict[str, object]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": title}}]
    events += [{"ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": {"name": unit}} for unit, track in tracks.items()]
    events += [
        {
            "ph": "X",
            "pid": 1,
            "tid": tracks[span.unit],
            "name": span.name,
            "ts": round(span.start * scale, 6),
            "dur": round((span.done - span.start) * scale, 6),
            "args": {"start_cycle": span.start, "done_cycle": span.done},
        }
        for span in ordered
    ]
    lines = ",\n".join(json.dumps(event, separators=(",", ":"), ensure_ascii=False) for event in events)
    path.write_text(f'{{"displayTimeUnit":"ns","traceEvents":[\n{lines}\n]}}\n', encoding="utf-8")
