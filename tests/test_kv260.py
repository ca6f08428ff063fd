# SPDX-License-Identifier: Apache-2.0
"""Full-size models on the presets for a KV260: the figures that were asked for, and docs/kv260.md beside what is stored."""

from typing import Any

import pytest

from benchmarks import kv260, kv260_page
from benchmarks.__main__ import kv260_text
from benchmarks.kv260_page import preset_of
from benchmarks.results import RESULTS, newest, token_runs
from lutra.exploration.fit import check_fit
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.proofs import sources

CONTEXTS = (1, 64, 128, 512, 1024)
TTFT = {64: 0.06, 128: 0.11, 512: 0.65}
"""Seconds to the first token of 0.73B, at most, by prompt."""


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    found = newest("kv260")
    assert found is not None
    return found


def timed(model: str, prompts: tuple[int, ...]) -> dict[str, Any]:
    return kv260.timed(kv260.Case("preset", kv260.PRESET, model, (), prompts, CONTEXTS))


def test_speed(stored: dict[str, Any]) -> None:
    """Of shapes alone: shares of the ceiling, tokens per second, times to the first token, bits moved per weight; the stored figures are these."""
    for model, prompts in (("bitnet-0.73b", tuple(TTFT)), ("bitnet-2b4t", ())):
        found, kept = timed(model, prompts), preset_of(stored, model)
        decode = {row["context"]: row for row in found["decode"]}
        assert all(0.9 <= row["fraction"] < 1 for row in decode.values())
        assert 1.6 <= found["bits_per_weight"] <= 1.65 and found["fits"]
        if model == "bitnet-0.73b":
            assert decode[128]["fraction"] >= 0.94 and decode[128]["tokens_per_second"] >= 77
            assert [row["tokens"] for row in found["prefill"] if row["seconds"] <= TTFT[row["tokens"]]] == list(TTFT)
        changed = "changed since `python -m benchmarks kv260`"
        assert [row for row in kept["decode"] if row["context"] in decode] == found["decode"], changed
        assert [row for row in kept["prefill"] if row["tokens"] in prompts] == found["prefill"], changed
        assert (kept["core"], kept["bits_per_weight"]) == (found["core"], found["bits_per_weight"]), changed
        run = token_runs()[found["core"]]
        assert run["context"] == 128 and run["token"]["pass_cycles"] == decode[128]["cycles"], "the RTL run was of another program"


@pytest.mark.parametrize("preset", [kv260.PRESET, kv260.PLANES])
@pytest.mark.parametrize("model", kv260.MODELS)
def test_presets_fit_the_device(model: str, preset: str) -> None:
    shape = kv260.shape_of(kv260.Case("preset", preset, model))
    found = check_fit(CoreSpec(config=load_config(preset, CoreConfig), shape=shape))
    assert found is not None
    fit, refusal = found
    assert fit.device.name == "kv260" and refusal is None and not fit.excess and fit.share <= fit.device.limit


def test_the_head_in_two_planes_is_near_a_ceiling_of_its_own(stored: dict[str, Any]) -> None:
    """Which is the 8-bit head's where all rows are scored again; the share that was measured is among the shares."""
    measured = newest("planes")
    assert measured is not None
    for one in stored["planes"]:
        decode = {row["context"]: row for row in preset_of(stored, one["model"])["decode"]}
        assert {point["share"] for point in one["points"]} == {*kv260.SHARES, measured["rescored_share"]} and one["fits"]
        for point in one["points"]:
            assert 0.9 <= point["fraction"] < 1 and point["ceiling"] >= decode[point["context"]]["ceiling"]
            assert (point["ceiling"] == decode[point["context"]]["ceiling"]) == (point["share"] == 1)


def test_the_page_is_that_of_the_stored_figures(stored: dict[str, Any]) -> None:
    text = (RESULTS.parent / "kv260.md").read_text(encoding="utf-8")
    assert kv260_text(stored) == text, "`python -m benchmarks kv260_page` makes it anew"
    assert f"{preset_of(stored, 'bitnet-0.73b')['decode'][3]['tokens_per_second']:.1f}** (in RTL" in text
    assert "(5 ports, BitNet 0.73B: slower than with the fewest)" in text and "rows take 240 bytes for 192 of weights and 160 bytes for 96" in text
    for run in token_runs().values():
        assert f"| {run['token']['cycles_per_second']:,} | {run['token']['cycles_per_processor_second']:,} |" in text
    assert f"{preset_of(stored, 'bitnet-2b4t')['prefill'][0]['cycles']:,}" in kv260_page.tables(stored)


def test_only_what_ran_is_called_rtl(stored: dict[str, Any]) -> None:
    ours = preset_of(stored, "bitnet-0.73b")
    run = token_runs()[ours["core"]] | {"sources": sources()}
    rows = {row["context"]: row for row in ours["decode"]}
    assert {context for context, row in rows.items() if kv260_page._how(row, run) == "in RTL"} == {128}
    assert kv260_page._how(rows[128], run | {"sources": "of another time"}) == "in RTL, an earlier version"
    assert kv260_page._how(rows[128] | {"cycles": 1}, run) == kv260_page._how(rows[128], None) == kv260_page._how(rows[256], run) == "predicted"
    table = kv260_page._versus(stored, "bitnet-0.73b", {ours["core"]: run})
    assert table.count("(in RTL)") == 1 and table.count("(predicted)") == 9


def test_a_share_is_called_measured_only_where_it_was(stored: dict[str, Any]) -> None:
    measured = newest("planes")
    assert measured is not None
    share = 100 * measured["rescored_share"]
    assert f"| {share:.1f} % (measured with the shipped model, a vocabulary of 65: " in kv260_page._planes(stored, measured, token_runs())
    other = kv260_page._planes(stored, measured | {"rescored_share": 0.25}, token_runs())
    assert f"| {share:.0f} % |" in other and "% (measured" not in other
