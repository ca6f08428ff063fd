# SPDX-License-Identifier: Apache-2.0
"""Configuration of a PIM system: every size and policy that a user may choose (architecture.md, part 4)."""

from typing import Literal

from pydantic import Field, model_validator

from lutra.hls_models.config import Config

__all__ = ["CompanionConfig", "PimConfig"]

LANE_BITS = 16
"""Bits of a bf16 value, the only number that banks store."""


class CompanionConfig(Config):
    """Sizes of the companion chip."""

    sram_bytes: int = Field(131072, ge=256, description="bytes of the fp32 SRAM")
    readout_depth: int = Field(64, ge=2, le=1024, description="read-out beats queued per channel")
    data_depth: int = Field(128, ge=2, le=1024, description="256-bit beats queued towards each channel")
    functions: Literal["minimax", "taylor"] = Field("minimax", description="coefficients of exp2 and GELU: best fit, or the Taylor series as in PIM-GPT")


class PimConfig(Config):
    """Channels of banks with a MAC unit each, and their companion chip."""

    target: Literal["pim"] = "pim"
    name: str = Field(description="name that reports carry")
    timing: str = Field("gddr6-aim", description="timing preset by name, or a YAML file")
    channels: int = Field(8, ge=1, le=256, description="channels (C)")
    banks: Literal[1, 2, 4, 8, 16] = Field(16, description="banks of a channel (B); four banks are a group")
    lanes: Literal[4, 8, 16] = Field(16, description="bf16 values of a column access, multipliers of a MAC unit (V)")
    rows: int = Field(16384, ge=1, le=1 << 20, description="rows of a bank")
    columns: int = Field(64, ge=1, le=256, description="column accesses of a row; also entries of the global buffer")
    accumulators_per_bank: Literal[1, 2, 4, 8, 16] = Field(1, description="accumulators of a MAC unit")
    accumulator: Literal["fp32", "bf16"] = Field("fp32", description="format that an accumulator is rounded to after every add")
    activate_in_register_mode: bool = Field(True, description="rows may be activated in register mode (an assumption: the published table does not forbid it)")
    refresh: bool = Field(True, description="refresh at all")
    refresh_phase: int = Field(0, ge=0, description="cycle in which the first refresh of channel 0 is due")
    stagger: bool = Field(True, description="refreshes of the channels spread over the interval")
    companion: CompanionConfig = Field(default_factory=CompanionConfig, description="the companion chip")

    @property
    def words_per_beat(self) -> int:
        """SRAM words of B values that make a beat of V values."""
        return self.lanes // self.banks

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one bank."""
        return self.columns * self.lanes * LANE_BITS // 8

    @property
    def capacity_bytes(self) -> int:
        """Bytes that all banks hold."""
        return self.channels * self.banks * self.rows * self.row_bytes

    @property
    def sram_words(self) -> int:
        """Words of B fp32 values in the companion chip's SRAM."""
        return self.companion.sram_bytes // (4 * self.banks)

    @model_validator(mode="after")
    def _consistent(self) -> "PimConfig":
        if self.banks > self.lanes:
            raise ValueError(
                f"banks must be at most lanes ({self.lanes}), not {self.banks}: a read-out beat holds a value per bank; nearest legal value {self.lanes}"
            )
        if self.companion.data_depth < self.columns:
            raise ValueError(f"companion.data_depth must be at least columns ({self.columns}), not {self.companion.data_depth}: a buffer is sent whole")
        return self
