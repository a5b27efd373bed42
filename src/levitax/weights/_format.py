"""The header that we write into a file, next to its arrays."""

import json
from collections.abc import Mapping
from typing import Any, cast, NamedTuple

from .._checks import as_choice
from .._config import LeViTConfig
from ..data import Preprocessing
from ._layouts import LayoutName, LAYOUTS


# To be raised when older versions can no longer read new files.
VERSION = 1


class Header(NamedTuple):
    """The metadata that the names and shapes of the arrays do not give."""

    layout: LayoutName
    config: LeViTConfig
    fused: bool
    preprocessing: Preprocessing | None

    def to_metadata(self) -> dict[str, str]:
        """The entries of a safetensors header."""
        entries = {
            "levitax.format_version": str(VERSION),
            "levitax.layout": self.layout,
            "levitax.config": json.dumps(self.config.to_dict()),
            "levitax.fused": json.dumps(self.fused),
        }
        if self.preprocessing is not None:
            entries["levitax.preprocessing"] = json.dumps(self.preprocessing.to_dict(), ensure_ascii=False)
        return entries


def read_header(metadata: Mapping[str, str], where: str, activation: Any = None) -> Header | None:
    """Reads the header that `Header.to_metadata` wrote; `None` if another library wrote the file.

    `activation` is needed if the header has only the name of a function.

    **Raises:** `ValueError` if a later version wrote the header, if it is corrupt, or if it needs an activation.
    """
    version = metadata.get("levitax.format_version")
    if version is None:
        return None
    if not version.isdecimal():
        raise ValueError(f"{where} has the format version {version!r}; expected a number. The file is corrupt.")
    if int(version) > VERSION:
        raise ValueError(
            f"{where} has format version {version}, from a later levitax; this one reads up to {VERSION}. Update with "
            "`pip install --upgrade levitax`."
        )
    try:
        layout = metadata["levitax.layout"]
        as_choice("layout", layout, LAYOUTS)
        fields = json.loads(metadata["levitax.config"])
        if isinstance(fields, dict) and isinstance(fields.get("activation"), dict) and activation is not None:
            fields["activation"] = activation
        config = LeViTConfig.from_dict(fields)
        preprocessing = json.loads(metadata.get("levitax.preprocessing", "null"))
        return Header(
            cast(LayoutName, layout),
            config,
            bool(json.loads(metadata["levitax.fused"])),
            None if preprocessing is None else Preprocessing.from_dict(preprocessing),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The header of {where} describes no model that can be made: {error}") from error
