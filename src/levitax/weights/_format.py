"""What we write into the header of a file, beside its arrays."""

import json
from collections.abc import Mapping
from typing import cast, NamedTuple

from .._checks import as_choice
from .._config import LeViTConfig
from ..data import Preprocessing
from ._layouts import LayoutName, LAYOUTS


# Goes up when older versions could no longer read what is written.
VERSION = 1


class Header(NamedTuple):
    """What names and shapes do not say."""

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


def read_header(metadata: Mapping[str, str], where: str) -> Header | None:
    """The header that `Header.to_metadata` wrote, or `None` if others wrote the file.

    **Raises:** `ValueError` if it was written by a later version, or is damaged.
    """
    version = metadata.get("levitax.format_version")
    if version is None:
        return None
    if not version.isdecimal():
        raise ValueError(f"{where} has the format version {version!r}; expected a number. The file is damaged.")
    if int(version) > VERSION:
        raise ValueError(
            f"{where} has format version {version}, of a later levitax; this one reads up to {VERSION}. Update with "
            "`pip install --upgrade levitax`."
        )
    try:
        layout = metadata["levitax.layout"]
        as_choice("layout", layout, LAYOUTS)
        config = LeViTConfig.from_dict(json.loads(metadata["levitax.config"]))
        preprocessing = json.loads(metadata.get("levitax.preprocessing", "null"))
        return Header(
            cast(LayoutName, layout),
            config,
            bool(json.loads(metadata["levitax.fused"])),
            None if preprocessing is None else Preprocessing.from_dict(preprocessing),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The header of {where} makes no model: {error}") from error
