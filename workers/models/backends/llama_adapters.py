"""LoRA adapters of a model in llama.cpp: loaded, in use by the context, freed. Used by the decode thread alone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import Internal, Unsupported
from workers.models.backends.backend import AdapterFile, LoadFailed
from workers.models.backends.llama_library import log_router, reason_of_failure
from workers.models.gguf_header import UnusableFile, read_header


class Adapters:
    """The loaded adapters by the hash of their content. `current`: the one the context computes with, None for none."""

    def __init__(self, library: Any, model: Any, context: Any) -> None:
        self._lib = library
        self._model = model
        self._context = context
        self._handles: dict[str, Any] = {}
        self._scales: dict[str, float] = {}
        self._left_out: set[str] = set()
        self.current: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether none is loaded."""
        return not self._handles

    @property
    def has_left_out(self) -> bool:
        """Whether some wait for their last answer, to be freed."""
        return bool(self._left_out)

    def attach(self, files: Sequence[AdapterFile]) -> None:
        """Have these loaded; the others are left out. Raises LoadFailed for one that does not fit: nothing changes."""
        loaded: dict[str, Any] = {}
        try:
            for file in files:
                if file.sha256 not in self._handles and file.sha256 not in loaded:
                    loaded[file.sha256] = self._load(file)
        except LoadFailed:
            for handle in loaded.values():
                self._lib.llama_adapter_lora_free(handle)
            raise
        self._handles |= loaded
        self._scales |= {file.sha256: file.scale for file in files}
        self._left_out = self._handles.keys() - {file.sha256 for file in files}

    def check(self, adapter: str | None) -> None:
        """Raises Unsupported when it is not attached."""
        if adapter is not None and adapter not in self._handles:
            raise Unsupported("this adapter is not attached to the model", adapter=adapter)

    def use(self, adapter: str | None) -> None:
        """Let the context compute with it from the next decode on."""
        lib = self._lib
        if adapter is None:
            status = lib.llama_set_adapters_lora(self._context, None, 0, None)
        else:
            handles = (lib.llama_adapter_lora_p_ctypes * 1)(self._handles[adapter])
            scales = (ctypes.c_float * 1)(self._scales[adapter])
            status = lib.llama_set_adapters_lora(self._context, handles, 1, scales)
        if status != 0:
            raise Internal(f"llama.cpp could not set an adapter (status {status})", status=status)
        self.current = adapter

    def free_unused(self, used: Collection[str | None]) -> list[str]:
        """Free those left out that are not in `used`; returns them. Each holds memory until it is freed."""
        done = [adapter for adapter in self._left_out if adapter not in used]
        for adapter in done:
            if adapter == self.current:
                self.use(None)
            self._lib.llama_adapter_lora_free(self._handles.pop(adapter))
            self._left_out.discard(adapter)
        return done

    def close(self) -> None:
        """Free all; before the model."""
        for handle in self._handles.values():
            self._lib.llama_adapter_lora_free(handle)
        self._handles.clear()

    def _load(self, file: AdapterFile) -> Any:
        path = Path(file.path)
        try:
            header = read_header(path)
        except UnusableFile as error:
            raise LoadFailed(f"adapter {file.name}: {error}") from error
        except OSError as error:
            raise LoadFailed(f"adapter {file.name}: {error.strerror or error}") from error
        if header.text("general.type") != "adapter" or header.text("adapter.type") != "lora":
            raise LoadFailed(f"adapter {file.name}: the file is no LoRA adapter")
        router = log_router(self._lib)
        router.errors = []
        handle = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        if not handle:
            reason = reason_of_failure(router.errors, "llama.cpp gave no reason")
            raise LoadFailed(f"adapter {file.name} does not fit the model: {reason}")
        return handle
