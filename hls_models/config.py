# SPDX-License-Identifier: Apache-2.0
"""The base of every configuration object: frozen, validated, unknown keys refused."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Config"]


class Config(BaseModel):
    """Frozen pydantic model; a block's config derives from it and carries its golden model (docs/architecture.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
