"""Counts bytes of a forward and backward pass, on any device, the meta device included.

`SavedBytes` counts what autograd keeps for the backward pass; `LiveBytes` follows every
allocation and finds the highest sum of what was alive at once. Neither reads a value, so a 7B
shape on the meta device is counted in about a second, without weights:

    with SavedBytes(*model.parameters()) as saved:
        loss = model(ids).loss
    saved.n_bytes
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this. Source: c10/cuda/CUDACachingAllocator."""


class SavedBytes:
    """Bytes kept for the backward pass; storages count once, however many views are kept.

    Args:
        known: tensors that were there before and don't count, such as a model's parameters.
    """

    def __init__(self, *known: Tensor) -> None:
        self._own = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        # the storage itself is held: its address must not be given to another while counting
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._own:
            self._storages[storage._cdata] = storage
        return tensor

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def sizes(self) -> list[int]:
        """Bytes of every storage kept."""
        return [storage.nbytes() for storage in self._storages.values()]

    @property
    def n_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.sizes)

    def release(self) -> None:
        """Lets go of the storages, so that a backward pass frees them as it does in a real run."""
        self._storages.clear()


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's is untyped
    """Bytes alive at once of what the block allocates, in whole blocks of the allocator.

    Args:
        known: tensors that were there before and don't count, such as a model's parameters.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak: int = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, torch.Tensor):
                self._count(part.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        n_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self.now += n_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, n_bytes)

    def _free(self, n_bytes: int) -> None:
        self.now -= n_bytes
