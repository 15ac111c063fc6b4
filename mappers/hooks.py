"""The one place where forward hooks are put on a model.

A callback receives a block's output ``h_BTD`` (B batch, T tokens, D width) and returns the tensor to go on with, or
None to leave the output as it is. Hooks hold no policy and look up no global.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mappers.architectures import DecoderStack
from mappers.sites import Site

BlockCallback = Callable[[Tensor], Tensor | None]


class HookHandle:
    """Hooks that were attached together and are removed together."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Takes the hooks off; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def attach(stack: DecoderStack, callbacks: Mapping[Site, BlockCallback]) -> HookHandle:
    """Puts each callback on the output of its site; raises ArtifactMismatch for a layer that does not exist."""
    modules = [(stack.site_module(site), callback) for site, callback in callbacks.items()]
    return HookHandle([module.register_forward_hook(_hook(callback)) for module, callback in modules])


@contextmanager
def block_outputs(stack: DecoderStack, callbacks: Mapping[Site, BlockCallback]) -> Iterator[None]:
    """Hooks for the length of a ``with`` block, removed also when it raises."""
    handle = attach(stack, callbacks)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recorded_inputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """What each module is given first, call by call, while the ``with`` block lasts; kept alive by the mapping."""
    seen: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
    handles = [module.register_forward_pre_hook(lambda module, args: seen[module].append(args[0])) for module in seen]
    try:
        yield seen
    finally:
        HookHandle(handles).remove()


def _hook(callback: BlockCallback) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = callback(hidden)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook
