"""LoRA adapters of a transformers model, attached and taken off at run time with peft.

Adapters are known by the hash of their content, never by a name: no state is shared between two contents.
It does not know who runs with which; the decode thread does, and calls it between two steps only.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from schemas.errors import Unsupported
from workers.models.backends.backend import AdapterFile, LoadFailed

_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"


class TorchAdapters:
    """What is attached to one model. A bare model is active at first."""

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._loaded: set[str] = set()
        self._wanted: dict[str, AdapterFile] = {}
        self._active: str | None = None
        self._is_active_known = True

    def has(self, adapter: str | None) -> bool:
        """Whether requests may name it; the bare model always is one of them."""
        return adapter is None or adapter in self._wanted

    def check(self, adapter: str | None) -> None:
        """Raises Unsupported when requests may not name it."""
        if adapter is not None and adapter not in self._wanted:
            raise Unsupported(f"no adapter with content {adapter[:12]} is attached", field="adapter")

    def activate(self, adapter: str | None) -> None:
        """Compute with this one from now on, None with the bare model. It must have been attached, and be in use since."""
        if self._is_active_known and self._active == adapter:
            return
        if self._loaded:
            if adapter is None:
                self._model.disable_adapters()
            else:
                self._model.enable_adapters()
                self._model.set_adapter(adapter)
        self._active, self._is_active_known = adapter, True

    def forget_active(self) -> None:
        """Something failed half way: set the active one anew before the next step."""
        self._is_active_known = False

    def attach(self, adapters: Sequence[AdapterFile]) -> None:
        """Want exactly these. Raises LoadFailed for one that does not fit, and then nothing has changed."""
        wanted = {adapter.sha256: adapter for adapter in adapters}
        new = [adapter for sha256, adapter in wanted.items() if sha256 not in self._loaded]
        self.forget_active()
        try:
            for adapter in new:
                self._load(adapter)
        except Exception:
            for adapter in new:
                self._delete(adapter.sha256)
            raise
        self._wanted = wanted
        for adapter in wanted.values():
            self._scale(adapter)

    def drop_unused(self, used: set[str | None]) -> None:
        """Take off what nobody wants any more and no answer runs with."""
        for adapter in self._loaded - set(self._wanted) - used:
            self._delete(adapter)

    def _load(self, adapter: AdapterFile) -> None:
        folder = Path(adapter.path)
        folder = folder if folder.is_dir() else folder.parent
        absent = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
        if absent:
            raise LoadFailed(f"adapter {adapter.name} has no {absent[0]}; transformers takes peft's folders only")
        # Files come from strangers, and peft raises whatever they provoke.
        try:
            with _quiet():
                told = self._model.load_adapter(str(folder), adapter_name=adapter.sha256)
        except Exception as error:
            reason = " ".join(str(error).split())[:400] or type(error).__name__
            self._loaded.add(adapter.sha256)
            raise LoadFailed(f"adapter {adapter.name} does not fit: {reason}") from error
        self._loaded.add(adapter.sha256)
        self._model.eval().to(self._device)
        # peft also misses the tensors of the other adapters.
        missing = [key for key in told.missing_keys if adapter.sha256 in key]
        wrong = [*missing, *told.unexpected_keys, *told.mismatched_keys]
        if wrong:
            raise LoadFailed(f"adapter {adapter.name} does not fit: {len(wrong)} tensors, first {wrong[0]}")

    def _delete(self, adapter: str) -> None:
        if adapter not in self._loaded:
            return
        self.forget_active()
        self._loaded.discard(adapter)
        # One that failed before anything of it was put in place is unknown to peft.
        with contextlib.suppress(ValueError), _quiet():
            self._model.delete_adapter(adapter)

    def _scale(self, adapter: AdapterFile) -> None:
        from peft.tuners.lora import LoraLayer

        for module in self._model.modules():
            if isinstance(module, LoraLayer) and adapter.sha256 in module.scaling:
                module.set_scale(adapter.sha256, adapter.scale)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft warns of what is done here on purpose: a second adapter, and taking off the active one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
