# SPDX-License-Identifier: Apache-2.0
"""Drafts from n-grams: what is proposed, what is accepted, and that the text is greedy decoding's whatever was drafted, on the RTL too."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drafts import replay
from lutra import engine
from lutra.cosim.core import CoreBench, Job
from lutra.cosim.drafted import drafted
from lutra.cosim.harness import Fault
from lutra.figures import report_of
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.drafts import NgramDrafts, accepted, speculate
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.program import Program
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.mapping.tokenizer import Tokenizer

PROMPT = "'woe!' the queen, the queen,"
"""Of the text that the shipped model was trained on, and in its manner repetitive."""
WRITTEN = 40


def test_longest_match_wins() -> None:
    drafts = NgramDrafts(3, 1)
    drafts.extend([1, 2, 3, 9, 2, 3, 7, 1, 2, 3])
    assert drafts.propose(2) == [9, 2]  # behind (1, 2, 3); behind (2, 3) came 7 last
    assert NgramDrafts(3, 1).propose(4) == []


def test_drafts_go_on_past_the_end() -> None:
    drafts = NgramDrafts(2, 1)
    drafts.extend([5, 6, 5, 6])
    assert drafts.propose(5) == [5, 6, 5, 6, 5]
    drafts.extend([8])
    assert drafts.propose(5) == []


def test_the_newest_place_counts() -> None:
    drafts = NgramDrafts(1, 1)
    drafts.extend([4, 1, 4, 2, 4])
    assert drafts.propose(1) == [2]


def test_accepted() -> None:
    assert accepted([], [3]) == [3]
    assert accepted([3, 4, 5], [3, 4, 6, 1]) == [3, 4, 6]
    assert accepted([3, 4], [3, 4, 5]) == [3, 4, 5]
    assert accepted([9, 4], [3, 4, 5]) == [3]


def model(seed: int) -> Callable[[Sequence[int]], int]:
    """A next token that depends on the two before it: repetitive enough for drafts."""
    table = np.random.default_rng(seed).integers(0, 6, (6, 6))
    return lambda text: int(table[text[-2] % 6, text[-1]])


@pytest.mark.parametrize("lanes", [1, 2, 6])
@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_that_of_greedy_decoding(lanes: int, seed: int) -> None:
    after, prompt = model(seed), [1, 2, 3]
    greedy = list(prompt)
    for _ in range(60):
        greedy.append(after(greedy))
    cache = list(prompt)  # as the core's: rows behind a rejected draft are written again

    def verify(ids: list[int], position: int) -> list[int]:
        assert len(ids) <= lanes
        del cache[position:]
        out = []
        for token in ids:
            cache.append(token)
            out.append(after(cache))
        return out

    passes = list(speculate(prompt, after(prompt), 60, lanes, verify, NgramDrafts()))
    assert [greedy[3], *itertools.chain(*passes)] == greedy[3:]
    assert len(passes) == 59 if lanes == 1 else len(passes) < 59


def test_the_stop_token_ends_the_text() -> None:
    passes = list(speculate([1, 1, 1], 1, 50, 4, lambda ids, position: [1, 1, 7, 7][: len(ids)], NgramDrafts(), stop={7}))
    assert passes == [[1, 1, 7]]


def test_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="shortest"):
        NgramDrafts(2, 3)


# The shipped model on the RTL


@pytest.fixture(scope="module")
def core() -> tuple[CoreSpec, Program]:
    config, model = load_config("tiny-drafts", CoreConfig), load(HERE / "models" / "tiny-shakespeare")
    return CoreSpec(config=config, shape=model.shape), compile_model(model, config)


@pytest.fixture(scope="module")
def bench(core: tuple[CoreSpec, Program]) -> CoreBench:
    spec, program = core
    made = CoreBench({"core": (spec, program.beats)})
    made.build()
    return made


@pytest.fixture(scope="module")
def prompt(core: tuple[CoreSpec, Program]) -> list[int]:
    return Tokenizer.load(HERE / "models" / "tiny-shakespeare", core[0].shape.vocabulary).encode(PROMPT)


def greedy_text(core: tuple[CoreSpec, Program], prompt: list[int], count: int) -> list[int]:
    return [done.token for done in Executor(*core).generate(prompt, count) if done.last and done.token is not None]


def test_the_text_of_the_rtl_is_that_of_greedy_decoding(core: tuple[CoreSpec, Program], bench: CoreBench, prompt: list[int]) -> None:
    """Propose, verify, accept: every word and cycle of every pass, and a host that knows of the model what the RTL chose makes the same passes."""
    most = core[0].config.draft_lanes - 1
    plan = drafted(Executor(*core), prompt, WRITTEN, most)
    run = bench.check({"core": Job(core[1], plan.turns)})["core"]
    assert run.mismatch is None and run.words_mismatched == 0 and run.words_compared > 1_000_000
    assert run.measured == [end - start for start, end in zip(run.starts, run.ends, strict=True)]
    chosen, turns = iter(run.tokens), iter(plan.turns[1:])

    def verify(ids: list[int], position: int) -> list[int]:
        turn = next(turns)
        assert turn.verify and (list(turn.prompt), turn.start) == (ids, position)
        return list(itertools.islice(chosen, len(ids)))

    first = next(chosen)
    passes = list(speculate(prompt, first, WRITTEN, most + 1, verify, NgramDrafts()))
    assert next(turns, None) is None and next(chosen, None) is None
    text = [first, *itertools.chain(*passes)]
    assert text == greedy_text(core, prompt, WRITTEN)
    assert text == [token for token, its in zip(run.tokens, plan.belongs, strict=True) if its]
    # Drafts are accepted, all of them and some of them, and rejected.
    lengths = [len(tokens) for tokens in passes]
    assert sum(lengths) / len(lengths) > 1.3 and max(lengths) == most + 1
    assert {len(turn.prompt) - length for turn, length in zip(plan.turns[1:], lengths, strict=True)} > {0, most}


def test_passes_over_a_known_text_are_those_that_write_it(core: tuple[CoreSpec, Program], prompt: list[int]) -> None:
    """What the benchmark counts cycles of."""
    passes = [done for done in Executor(*core).speculate(prompt, 20, NgramDrafts()) if done.serial]
    assert replay(prompt, greedy_text(core, prompt, 20), 4) == [(done.position, done.tokens, len(done.accepted)) for done in passes]


def test_a_wrong_sum_of_a_verified_pass_is_caught(core: tuple[CoreSpec, Program], bench: CoreBench, prompt: list[int]) -> None:
    plan = drafted(Executor(*core), prompt, 8, 3)
    job = Job(core[1], plan.turns[:3])
    prefill = bench.check({"core": Job(core[1], plan.turns[:1])})["core"]
    run = bench.check({"core": job}, faults=[Fault("core", "sums", "flip", beat=len(prefill.cycles("sums")) + 3)])["core"]
    assert run.mismatch is not None and f"in pass {len(prefill.passes)} (position {len(prompt)})" in run.mismatch


def test_cosim_with_drafts(core: tuple[CoreSpec, Program], prompt: list[int], tmp_path: Path) -> None:
    """The command's figures: tokens of the text, clocks in which the core works."""
    spec, program = core
    text, shown = greedy_text(core, prompt, 12), list[int]()
    found = engine.simulate(spec, program, prompt, 12, stop=[text[9], 64], seed=1, waves=False, folder=tmp_path, on_token=shown.append, drafts=3)
    text = text[: text.index(text[9]) + 1]
    assert found.mismatch is None and found.tokens == shown == text
    assert found.cycles_measured == found.timing.end[-1]
    report = report_of(spec, program, found.timing)
    assert report.decode is not None and report.prefill is not None and report.memory is not None
    assert report.decode.tokens == len(text) - 1 and report.decode.per_token is None and report.decode.passes is not None
    assert report.decode.context == len(prompt) + len(text) - 1
    assert report.decode.tokens_per_pass == report.decode.tokens / report.decode.passes
    assert report.decode.cycles_per_token * report.decode.tokens == found.cycles_measured - report.prefill.cycles
    assert report.layers and sum(layer.cycles for layer in report.layers) == found.cycles_measured
