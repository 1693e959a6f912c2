"""Named cards: how much they hold and how fast they multiply. See `cards.yaml` for the sources."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from pydantic import Field

from cbtqa.errors import ConfigError
from cbtqa.files import parse_yaml
from cbtqa.records import NonEmptyText, Record

GIB = 2**30


class Card(Record):
    """One kind of card."""

    id: NonEmptyText
    name: NonEmptyText
    memory_gib: float = Field(gt=0)
    """As the driver shows it, not as it is sold."""
    tflops: float = Field(gt=0)
    """Dense 16-bit matrix products with 32-bit sums, 10^12 operations a second."""
    share: float = Field(gt=0, lt=1)
    """Share of `tflops` that a run is taken to reach."""
    bf16: bool = True
    """False: the card trains in fp16."""
    source: NonEmptyText

    @property
    def memory_bytes(self) -> int:
        """Bytes of device memory."""
        return int(self.memory_gib * GIB)


@cache
def load_cards() -> dict[str, Card]:
    """Every named card by id, the largest first."""
    loaded = parse_yaml((files("cbtqa.tuning") / "cards.yaml").read_text(encoding="utf-8"))
    common = {"share": loaded["default_share"]}
    return {id_: Card(id=id_, **(common | row)) for id_, row in loaded["cards"].items()}


def find_card(name: str) -> Card:
    """The card of a name as people or the driver write it: `h200`, `NVIDIA H200`, `RTX 4090`.

    Raises:
        ConfigError: no such card.
    """
    wanted = _plain(name)
    for card in load_cards().values():
        if wanted in (_plain(card.id), _plain(card.name)):
            return card
    raise ConfigError(f"no card '{name}' is known", hint=f"known: {', '.join(load_cards())}")


def card_of_device(name: str, memory_bytes: int) -> Card | None:
    """The named card that a device is, by its driver's name and its memory; None when unknown."""
    told = _plain(name)
    for card in load_cards().values():
        words = _plain(card.name.split(" ")[-1] if "RTX" in card.name else card.name.split(" ")[0])
        if words in told and abs(card.memory_bytes - memory_bytes) < 0.15 * memory_bytes:
            return card
    return None


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
