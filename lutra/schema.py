# SPDX-License-Identifier: Apache-2.0
"""report.json: the one source of every other report. Names are stable, a figure that was not computed is absent, never 0.

Nothing here depends on the wall clock or the machine: equal inputs and seed give equal bytes (times stand in ``manifest.json``).
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.errors import LutraError

__all__ = ["SCHEMA", "Report", "read_report"]

SCHEMA = "lutra-report/1"


class Figures(Config):
    """A group of figures; NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelFigures(Figures):
    name: str
    parameters: int = Field(ge=0)


class ConfigFigures(Figures):
    name: str
    hash: str = Field(description="sha256 of the configuration's canonical JSON")


class PrefillFigures(Figures):
    tokens: int = Field(ge=1, description="tokens of the prompt")
    cycles: int = Field(ge=0, description="from start to the first generated token, the head included")
    seconds: float = Field(ge=0, description="time to first token at the configured clock")
    limit: str | None = Field(
        default=None, description="the unit that works most of the clocks it could: memory, lookup array, vector lanes, attention or head"
    )


class DecodeFigures(Figures):
    tokens: int = Field(ge=1, description="tokens decoded after the first")
    context: int = Field(ge=1, description="KV rows attended by the last of them, the present token included")
    cycles_per_token: float = Field(ge=0, description="mean")
    tokens_per_second: float = Field(ge=0, description="at the configured clock")
    limit: str | None = Field(default=None, description="as in prefill")
    per_token: list[int] | None = Field(default=None, description="cycles of each; token i attends context - tokens + 1 + i rows")
    rescored_rows: float | None = Field(
        default=None, ge=0, description="rows of a head in two planes that a token scores again, mean; assumed where no RTL ran"
    )
    passes: int | None = Field(default=None, ge=1, description="with drafts: serial passes that made the tokens")
    tokens_per_pass: float | None = Field(default=None, ge=1, description="with drafts: mean of the text's tokens that a pass yields")

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.per_token is not None and len(self.per_token) != self.tokens:
            raise ValueError(f"per_token must hold tokens = {self.tokens} entries, not {len(self.per_token)}")
        return self


class RtlFigures(Figures):
    simulated: bool = Field(description="whether the RTL ran; without it the other fields are absent")
    words_compared: int | None = Field(default=None, ge=0, description="elements of golden arrays held against the RTL")
    words_mismatched: int | None = Field(default=None, ge=0)
    cycles_predicted: int | None = Field(default=None, ge=0)
    cycles_measured: int | None = Field(default=None, ge=0)
    mismatch: str | None = Field(default=None, description="the first difference of a word or a handshake's cycle; absent where there is none")

    @property
    def proven(self) -> bool:
        """Every compared word equal, and every handshake in its predicted cycle."""
        equal = self.words_mismatched == 0 and self.cycles_predicted == self.cycles_measured and self.mismatch is None
        return self.simulated and bool(self.words_compared) and equal


class MemoryFigures(Figures):
    bytes_per_token: float | None = Field(default=None, ge=0, description="read and written at the memory port for one decoded token")
    bytes_by_kind: dict[str, float] | None = Field(default=None, description="of bytes_per_token")
    least_bytes_per_token: float | None = Field(
        default=None,
        ge=0,
        description="shared memory: weights at 1.6 bits, 8-bit head (in two planes: the high one, the low one of rows scored again), 8-bit keys and values",
    )
    bandwidth_bytes_per_second: float | None = Field(default=None, ge=0, description="of the port, after refresh")
    ceiling_tokens_per_second: float | None = Field(
        default=None, ge=0, description="bandwidth over the least bytes per token, or over those moved where absent"
    )
    fraction_of_ceiling: float | None = Field(default=None, ge=0)
    fraction_of_row_bound: float | None = Field(default=None, ge=0, description="DRAM targets: share of the bound set by row activations")
    image_bytes: int | None = Field(default=None, ge=0, description="size of the memory image")
    bits_per_weight: float | None = Field(default=None, ge=0, description="stored bits per useful ternary weight, padding included")


class UnitFigures(Figures):
    name: str
    busy_cycles: int = Field(ge=0)
    stall_cycles: dict[str, int] = Field(default={}, description="by reason")
    utilisation: float = Field(ge=0, le=1, description="busy over all cycles")


class LayerFigures(Figures):
    name: str
    cycles: int = Field(ge=0, description="from done to done; the layers sum to the total")
    bytes: int | None = Field(default=None, ge=0, description="moved at the memory port")


class InstructionFigures(Figures):
    name: str
    unit: str
    executions: int = Field(ge=1)
    cycles: int = Field(ge=0, description="from start to done, over all executions")


class RooflinePoint(Figures):
    name: str
    operations_per_byte: float = Field(ge=0, description="multiply-accumulates per byte moved")
    operations_per_cycle: float = Field(ge=0, description="multiply-accumulates per clock cycle, reached")


class RooflineFigures(Figures):
    peak_operations_per_cycle: float = Field(gt=0)
    peak_bytes_per_cycle: float = Field(gt=0)
    points: list[RooflinePoint] = Field(default=[])


class AttentionFigures(Figures):
    """Pace of keys and values from a shared memory in decoding. Clocks are of the key and the value of one position of a KV head."""

    group: int = Field(ge=1, description="query heads per KV head")
    clocks: float = Field(gt=0, description="that attention's multipliers take in the steady state")
    memory_clocks: float = Field(gt=0, description="in which the memory moves them, scales and padding included")
    taken_clocks: float = Field(gt=0, description="in which they came at the report's context, mean: ways of tiles, and heads that come alone, included")
    keeps_pace: bool = Field(description="attention takes no more clocks than the memory; else the memory idles the more, the longer the context")


class ResourceFigures(Figures):
    device: str | None = Field(default=None, description="whose totals it is held against")
    fits: bool | None = Field(default=None, description="every total within the device's limit")
    exceeds: list[str] | None = Field(default=None, description="totals that are exceeded, the worst first")
    share: float | None = Field(default=None, ge=0, description="largest share of a total")
    largest: str | None = Field(default=None, description="the total of which it is")
    lut: int | None = Field(default=None, ge=0)
    lutram: int | None = Field(default=None, ge=0, description="of lut: as RAM or shift register")
    ff: int | None = Field(default=None, ge=0)
    bram: float | None = Field(default=None, ge=0)
    uram: int | None = Field(default=None, ge=0)
    dsp: int | None = Field(default=None, ge=0)
    source: str = Field(description="what counted them")


class EnergyFigures(Figures):
    joules_per_token: float = Field(ge=0)
    parts: dict[str, float] = Field(default={}, description="joules by part")
    source: str


class AccuracyItem(Figures):
    reference: str = Field(description="what the hardware's arithmetic is held against")
    metric: str
    value: float


class AccuracyFigures(AccuracyItem):
    items: list[AccuracyItem] = Field(default=[], description="further accuracies")


class DramFigures(Figures):
    """What the channels of a DRAM target did for one token."""

    commands: dict[str, int] = Field(description="DRAM commands of all channels by kind")
    row_hit_rate: float = Field(ge=0, le=1, description="column accesses of the array that opened no row")
    row_switches: float = Field(ge=0, description="rows opened per channel, mean")
    idle_banks: float = Field(ge=0, le=1, description="share of bank-cycles in which MACs of the token's matrices have no weights for a bank")
    capacity_bytes: int = Field(ge=0)
    used_bytes: int = Field(ge=0, description="weights and the room for keys and values")
    fits: bool = Field(description="false only where the capacity was ignored")
    pin_bytes: dict[str, float] = Field(description="bytes over a channel's pins by purpose, mean; what biases cost apart")
    nanoseconds: dict[str, float] = Field(description="where the time goes: what the next command of a channel waited for, mean; sums to the token's time")


class SweepPoint(Figures):
    """One context of a sweep."""

    context: int = Field(ge=1)
    cycles_per_token: int = Field(ge=0)
    tokens_per_second: float = Field(ge=0)
    joules_per_token: float = Field(ge=0)
    row_hit_rate: float = Field(ge=0, le=1)
    fraction_of_row_bound: float = Field(ge=0)


class ScalingPoint(Figures):
    """One number of channels."""

    channels: int = Field(ge=1)
    cycles_per_token: int = Field(ge=0)
    tokens_per_second: float = Field(ge=0)
    efficiency: float = Field(ge=0, description="speed-up over channels, against the smallest number shown")
    fits: bool


class AssumptionFigures(Figures):
    """Something the figures rest on that no public source states."""

    name: str
    text: str
    cycles_per_token_without: int | None = Field(default=None, ge=0)


class Report(Figures):
    """One run's figures. ``provenance`` says of a field (dotted path) whether RTL, model or publication gave it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    schema_name: Literal["lutra-report/1"] = Field(default="lutra-report/1", alias="schema")
    target: Literal["ternary", "pim"]
    model: ModelFigures
    config: ConfigFigures
    clock_hz: float = Field(gt=0)
    seed: int | None = None
    prefill: PrefillFigures | None = None
    decode: DecodeFigures | None = None
    rtl: RtlFigures | None = None
    memory: MemoryFigures | None = None
    attention: AttentionFigures | None = None
    units: list[UnitFigures] | None = None
    layers: list[LayerFigures] | None = None
    instructions: list[InstructionFigures] | None = None
    roofline: RooflineFigures | None = None
    resources: ResourceFigures | None = None
    dram: DramFigures | None = None
    sweep: list[SweepPoint] | None = None
    scaling: list[ScalingPoint] | None = None
    assumptions: list[AssumptionFigures] | None = None
    energy: EnergyFigures | None = None
    accuracy: AccuracyFigures | None = None
    backing: str | None = Field(default=None, description="RTL runs in which this configuration's words and cycles were held against the models")
    text: str | None = Field(default=None, description="prompt and generated text")
    provenance: dict[str, str] = Field(default={}, description='"rtl", "model" or "published: …" by field')

    @model_validator(mode="after")
    def _sources(self) -> Self:
        for field, source in self.provenance.items():
            if source not in ("rtl", "model") and not source.startswith("published: "):
                raise ValueError(f'provenance.{field} must be "rtl", "model" or "published: …", not {source!r}')
        return self

    def facts(self) -> dict[str, Any]:
        """The report as plain JSON values, absent figures left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def text_json(self) -> str:
        """The bytes of report.json."""
        return json.dumps(self.facts(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path) -> Report:
    """A report.json, validated.

    Raises
    ------
    LutraError : one line, when the file is missing, no JSON, or of another schema
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LutraError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LutraError(f"{path}: must be UTF-8 text") from None
    try:
        return Report.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "report"
        raise LutraError(f"{path}: is not a {SCHEMA}: {where}: {first['msg']}") from None
