"""Which base model an adapter belongs to: found by its name, checked by its weights."""

from __future__ import annotations

from typing import Any

from cbtqa.errors import DataError, UsageError
from cbtqa.tuning.backbones import Backbone, find_backbone
from cbtqa.tuning.weights import BaseRecord, describe_base


def find_base(config: dict[str, Any], given: str | None, recorded: BaseRecord | None) -> Backbone:
    """The base of an adapter.

    Args:
        config: the adapter's own configuration.
        given: name, folder or Hub id; None: what the adapter names.

    Raises:
        UsageError: the base is not found by the adapter's own word for it.
    """
    named = recorded.name if recorded else config.get("base_model_name_or_path")
    if given is None and not named:
        raise UsageError("the adapter names no base", hint="name it: --base FOLDER")
    try:
        backbone = find_backbone(given or str(named))
    except UsageError as error:
        if given is not None:
            raise
        raise UsageError(
            f"the adapter's base is called '{named}', which is not found from here",
            hint="give its folder: --base FOLDER",
        ) from error
    if backbone.path is None and recorded is not None and backbone.revision is None:
        return backbone.model_copy(update={"revision": recorded.revision})
    return backbone


def check_base(
    backbone: Backbone, recorded: BaseRecord | None
) -> tuple[BaseRecord, tuple[str, ...]]:
    """The base as it is, and what has to be said about it.

    Raises:
        DataError: its weights are not those the adapter was trained on.
    """
    found = describe_base(backbone)
    if recorded is None:
        return found, ("the adapter records no base: that it is this one rests on shapes alone",)
    if found.weights_sha256 != recorded.weights_sha256:
        raise DataError(
            f"the adapter was trained on {recorded.name} (weights {recorded.weights_sha256[:12]}), "
            f"this base is {found.name} ({found.weights_sha256[:12]})",
            where=backbone.told_name,
            hint=f"give that base: --base FOLDER-OF-{recorded.name}",
        )
    if recorded.is_quantized:
        return found, (
            "trained on the base in 4 bits, merged into its full weights: answers differ slightly "
            "from those seen in training",
        )
    return found, ()
