"""The driver's section of the configuration, ``options.trunking``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """What can be set for the trunking mode on a node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait: Annotated[float, Field(ge=0, le=95)] = Field(
        20, description="Seconds an ADD waits until the pod's ENI is attached to the trunk."
    )
