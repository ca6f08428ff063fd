# SPDX-License-Identifier: Apache-2.0
"""The head in two 4-bit planes on the shipped model: rows scored again, and bytes read beside those of the int8 table, on text it was never trained on."""

from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor, plan_passes
from lutra.hls_models.ternary.isa import LoadMode, LoadTarget, Unit
from lutra.hls_models.ternary.loader import Load
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.mapping.tokenizer import Tokenizer
from lutra.progress import step

__all__ = ["measure"]

MODEL = "tiny-shakespeare"
HELD_OUT = 0.1  # of the text, at its end
CHARACTERS = 4096
SEGMENT = 16  # the vocabulary has 65 rows: five segments
BEAT_BYTES = 16


def measure(text: Path) -> dict[str, Any]:
    """Over every position of the first ``CHARACTERS`` held-out characters, windows of the context length."""
    folder = HERE / "models" / MODEL
    model, config = load(folder), load_config("tiny", CoreConfig)
    spec, program = CoreSpec(config=config, shape=model.shape), compile_model(model, config)
    whole = text.read_text(encoding="utf-8")
    ids = [int(token) for token in Tokenizer.load(folder, model.shape.vocabulary).encode(whole[int(len(whole) * (1 - HELD_OUT)) :][:CHARACTERS])]
    core, found = Executor(spec, program), []
    with step("golden model") as update:
        for begin in range(0, len(ids), model.shape.context):
            window = ids[begin : begin + model.shape.context]
            for position, tokens, last in plan_passes(0, len(window), config.chunk):
                done = core.run_pass(window[position : position + tokens], position, last, record=True)
                beats = done.streams["codes"][-1]  # the last instruction's go to the head; codes are the payload's lowest bits
                found.append(np.ascontiguousarray(beats[:, : config.vector_lanes // 4], "<u4").view(np.int8).reshape(tokens, -1))
                update(begin + position + tokens, len(ids))
    codes = np.concatenate(found)
    head = next(one.fields for one in program.instructions if one.unit is Unit.LOADER and one.fields["target"] == LoadTarget.HEAD)
    per_row = spec.loader.table_beats
    rows = Load(LoadTarget.EMBED, LoadMode.TOKEN, head["address"], per_row, tokens=head["beats"] // per_row)
    assert program.image is not None
    image = program.image.reshape(-1, program.beat_bytes)[head["address"] :][: head["beats"]]
    table, scales = spec.loader.embedding(rows, image)
    planes = PlanesConfig(beat_bytes=BEAT_BYTES, hidden=model.shape.hidden, segment=SEGMENT)
    choices = [planes.choose(row, table, scales) for row in codes]
    plain = spec.head.scores(codes, table, scales)
    same = sum(int(choice.ids[0]) == int(spec.head.choose(score)[0][0]) for choice, score in zip(choices, plain, strict=True))
    again = np.array([sum(len(rows) for rows in choice.lists) for choice in choices])
    whole_beats = planes.high_beats(len(table)) + len(table) * planes.row_beats
    return {
        "model": MODEL,
        "positions": len(codes),
        "vocabulary": len(table),
        "same_choices": same,
        "rescored_share": float(again.mean() / len(table)),
        "rescored_median": float(np.median(again)),
        "one_row_only": float((again == 1).mean()),
        "bytes_share": float(np.mean([choice.beats for choice in choices]) / whole_beats),
    }
