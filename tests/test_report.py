# SPDX-License-Identifier: Apache-2.0
"""report.json's rules and the reports made of it: terminal, HTML, CSV, alone and side by side."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from lutra.charts import _sweep
from lutra.hls_models.errors import LutraError
from lutra.report import csv_text, flatten, html, labels, rows, terminal, verdict, write_reports
from lutra.schema import EnergyFigures, Report, read_report
from lutra.timeline import Span, write_trace

pytestmark = pytest.mark.smoke


def facts(*, seed: int = 1, slower: int = 0, simulated: bool = True) -> dict[str, Any]:
    """A made-up report of a realistic size: none of these numbers was measured."""
    per_token = [18_900 + 34 * i + slower for i in range(64)]
    layers = [{"name": f"layers.{i}", "cycles": 41_000 * 9 + 977 * i, "bytes": 52_000 * 65} for i in range(4)]
    layers = [{"name": "embedding", "cycles": 4_210, "bytes": 14_040}, *layers, {"name": "head", "cycles": 61_400, "bytes": 760_000}]
    cycles = sum(per_token) / len(per_token)
    rtl = {"words_compared": 1_482_240, "words_mismatched": 0, "cycles_predicted": 1_389_104 + slower, "cycles_measured": 1_389_104 + slower}
    return {
        "schema": "lutra-report/1",
        "target": "ternary",
        "model": {"name": "tiny-shakespeare", "parameters": 995_200},
        "config": {"name": "tiny", "hash": "4f1d" * 16},
        "clock_hz": 50e6,
        "seed": seed,
        "prefill": {"tokens": 32, "cycles": 192_511, "seconds": 192_511 / 50e6},
        "decode": {"tokens": 64, "context": 96, "cycles_per_token": cycles, "tokens_per_second": 50e6 / cycles, "per_token": per_token},
        "rtl": {"simulated": True, **rtl} if simulated else {"simulated": False},
        "memory": {
            "bytes_per_token": 214_300.0,
            "bandwidth_bytes_per_second": 1.8e9,
            "ceiling_tokens_per_second": 8_399.4,
            "fraction_of_ceiling": 0.3,
            "image_bytes": 229_376,
            "bits_per_weight": 1.69,
        },
        "units": [
            {"name": "LOADER", "busy_cycles": 611_000, "stall_cycles": {"ring full": 402_000, "memory": 20_100}, "utilisation": 611_000 / 1_389_104},
            {"name": "LINEAR", "busy_cycles": 871_000, "stall_cycles": {"weights": 96_000, "codes": 210_400}, "utilisation": 871_000 / 1_389_104},
            {"name": "VECTOR", "busy_cycles": 540_000, "stall_cycles": {"sums": 391_000}, "utilisation": 540_000 / 1_389_104},
            {"name": "ATTEND", "busy_cycles": 233_000, "stall_cycles": {"queries": 8_000}, "utilisation": 233_000 / 1_389_104},
            {"name": "HEAD", "busy_cycles": 61_400, "stall_cycles": {}, "utilisation": 61_400 / 1_389_104},
        ],
        "layers": layers,
        "instructions": [{"name": "layers.0.qkv", "unit": "LINEAR", "executions": 65, "cycles": 120_000}],
        "roofline": {
            "peak_operations_per_cycle": 360.0,
            "peak_bytes_per_cycle": 36.0,
            "points": [
                {"name": "prefill", "operations_per_byte": 41.0, "operations_per_cycle": 201.0},
                {"name": "decode", "operations_per_byte": 4.9, "operations_per_cycle": 51.0},
            ],
        },
        "accuracy": {
            "reference": "float64 of the same checkpoint",
            "metric": "loss, relative",
            "value": 0.0003,
            "items": [{"reference": "float64 of the same checkpoint", "metric": "equal greedy choices", "value": 0.991}],
        },
        "text": "KING RICHARD:\nWhat say you, <b>good</b> my lord?\n",
        "provenance": {"decode": "rtl", "prefill": "rtl", "memory": "model"},
    }


def made(**kwargs: Any) -> Report:
    return Report.model_validate(facts(**kwargs))


class Page(HTMLParser):
    """What a page refers to, and whether its tags close."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.refers += [str(values[key]) for key in ("src", "href", "xlink:href") if key in values]
        self.ids += [str(values["id"])] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_bytes_are_those_of_the_input() -> None:
    text = made().text_json()
    assert text == made().text_json() and json.loads(text)["schema"] == "lutra-report/1"
    assert Report.model_validate_json(text) == made()


def test_absent_is_absent() -> None:
    few = Report.model_validate({key: value for key, value in facts().items() if key in ("schema", "target", "model", "config", "clock_hz")})
    assert set(few.facts()) == {"schema", "target", "model", "config", "clock_hz", "provenance"}
    for text in (html([("few", few)]), csv_text([("few", few)])):
        assert "Decode" not in text and "energy" not in text
    assert "0" not in [text for row in rows([("few", few)]) for text in row.texts]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("clock_hz", 0, "greater than 0"),
        ("clock_hz", float("nan"), "finite number"),
        ("energie", {}, "Extra inputs"),
        ("provenance", {"decode": "guess"}, "must be"),
        ("decode", {**facts()["decode"], "tokens": 3}, "per_token must hold tokens = 3 entries, not 64"),
        ("schema", "lutra-report/9", "lutra-report/1"),
    ],
)
def test_rules(place: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Report.model_validate({**facts(), place: value})


def test_unreadable_reports(tmp_path: Path) -> None:
    with pytest.raises(LutraError, match="cannot be read: No such file"):
        read_report(tmp_path / "report.json")
    for content, message in ((b"{", "is not a lutra-report/1"), (b"\xff", "must be UTF-8"), (b"{}", "lutra-report/1: target: Field required")):
        (tmp_path / "report.json").write_bytes(content)
        with pytest.raises(LutraError, match=message) as caught:
            read_report(tmp_path / "report.json")
        assert "\n" not in str(caught.value)


def test_html_is_one_page_and_repeats() -> None:
    text = html([("demo", made())])
    page = Page()
    page.feed(text)
    assert page.open == [] and all(refers.startswith("#") for refers in page.refers)
    assert len(page.ids) == len(set(page.ids)) and {refers[1:] for refers in page.refers} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert text.count("<svg") == 4 and text == html([("demo", made())])
    assert "Proven in RTL. 0 of 1,482,240 words differ; 1,389,104 cycles measured, as predicted." in text
    assert "good</b>" not in text and "&lt;b&gt;good" in text


def test_side_by_side() -> None:
    sourced = made().model_copy(update={"energy": EnergyFigures(joules_per_token=1, parts={}, source="made up, " * 9)})
    runs = [("first", sourced), ("second", made(slower=9_000, simulated=False))]
    text = html(runs)
    page = Page()
    page.feed(text)
    assert page.open == [] and "first" in text and "second" in text and "1.45x" in text
    assert not [cell for cell in re.findall(r'<td class="n">([^<]*)', text) if len(cell) > 40]  # such a cell would push the others off the page
    assert "second: Not simulated." in text
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(terminal(runs))
    shown = console.export_text()
    assert "tokens per second" in shown and "0.689x" in shown and "second: Computed by the cycle model" in shown


def test_terminal_of_one_run() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(terminal([("demo", made())]))
    shown = console.export_text()
    for piece in ("time to the first token", "3.85 ms", "LINEAR", "weights 96,000", "layers.3", "0 of 1,482,240 words differ"):
        assert piece in shown


def test_dram_figures_in_readable_units() -> None:
    energy = {"joules_per_token": 15.74e-3, "parts": {"mac": 7.1e-6, "read": 8.2e-8}, "source": "made up"}
    sweep = [
        {"context": n, "cycles_per_token": cycles, "tokens_per_second": 9, "joules_per_token": 0.1, "row_hit_rate": 0.9, "fraction_of_row_bound": 0.8}
        for n, cycles in ((1024, 3_000_000), (1, 2_600_000))
    ]
    dram = {"commands": {}, "row_hit_rate": 0.9, "row_switches": 3, "idle_banks": 0, "capacity_bytes": 2**32, "used_bytes": 2**31, "fits": True}
    parts = {"pin_bytes": {"read": 96}, "nanoseconds": {"read-out": 857.8, "MAC": 2_322, "refresh": 0}}
    report = Report.model_validate({**facts(), "target": "pim", "dram": dram | parts, "energy": energy, "sweep": sweep})
    texts = [row.texts[0] for row in rows([("a", report)])]
    assert {"4 GiB", "2 GiB", "224 KiB", "857.8 ns", "2.322 µs", "0 ns", "15.74 mJ", "7.1 µJ", "82 nJ"} <= set(texts)
    axis = _sweep([("a", report)]).axes[0]  # type: ignore[union-attr]
    (line,) = axis.lines
    assert list(line.get_xdata()) == [1, 1024] and axis.get_ylim()[0] == 0 and max(line.get_ydata()) < axis.get_ylim()[1]  # type: ignore[arg-type]


def test_csv() -> None:
    table = list(csv.reader(io.StringIO(csv_text([("a", made()), ("b", made(simulated=False))]))))
    assert table[0] == ["figure", "a", "b"] and all(len(line) == 3 for line in table)
    figures = {line[0]: line[1:] for line in table}
    assert figures["rtl.words_compared"] == ["1482240", ""] and figures["units.LINEAR.stall_cycles.codes"] == ["210400", "210400"]
    assert figures["decode.per_token.63"] == ["21042", "21042"]


def test_verdicts() -> None:
    assert verdict(made())[0] == "proven" and verdict(made(simulated=False))[0] == "model"
    wrong = facts()
    wrong["rtl"]["cycles_measured"] -= 1
    assert verdict(Report.model_validate(wrong)) == ("failed", "0 of 1,482,240 words differ; 1,389,103 cycles measured, -1 against the prediction.")
    wrong = facts()
    wrong["rtl"]["words_mismatched"] = 1
    assert verdict(Report.model_validate(wrong))[0] == "failed"


def test_flatten_and_labels(tmp_path: Path) -> None:
    assert flatten({"a": [{"name": "x", "n": 1}], "b": [1, 2], "c": {}}) == {"a.x.name": "x", "a.x.n": 1, "b.0": 1, "b.1": 2}
    assert labels([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert labels([tmp_path, tmp_path]) == [f"{tmp_path.name} (1)", f"{tmp_path.name} (2)"]


def test_files(tmp_path: Path) -> None:
    written = write_reports([("demo", made())], tmp_path / "new", ["html", "csv"])
    assert [path.name for path in written] == ["report.html", "report.csv"]
    with pytest.raises(LutraError, match="format pdf: must be one of html, csv"):
        write_reports([("demo", made())], tmp_path, ["pdf"])
    (tmp_path / "file").write_text("")
    with pytest.raises(LutraError, match="cannot be written"):
        write_reports([("demo", made())], tmp_path / "file", ["csv"])


def test_timeline(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(path, [Span("LINEAR", "qkv", 50, 100), Span("LOADER", "weights", 0, 50)], clock_hz=50e6, title="tiny")
    events = json.loads(path.read_text())["traceEvents"]
    assert [event["args"]["name"] for event in events if event["name"] == "thread_name"] == ["LOADER", "LINEAR"]
    assert [(event["ts"], event["dur"], event["args"]["done_cycle"]) for event in events if event["ph"] == "X"] == [(0, 1, 50), (1, 1, 100)]
