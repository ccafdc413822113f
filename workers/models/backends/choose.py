"""Opens the backend that a load names, importing it and nothing else."""

from __future__ import annotations

from pathlib import Path

from bus.settings import ModelSettings
from schemas.errors import Unprocessable, Unsupported
from workers.models.backends.backend import Backend, LoadOptions
from workers.models.backends.local import LocalBackend
from workers.models.backends.own_words import OwnWords, words_of_folder, words_of_gguf
from workers.models.control import LoadModel


async def open_backend(command: LoadModel, own: OwnWords) -> Backend:
    """The loaded model. `own`: what its files say of themselves, see `own_words`.

    Raises LoadFailed with the backend's reason, Unprocessable for a window beyond the model's, Unsupported where what
    the backend needs is not installed or there is no backend of that name.
    """
    match command.backend:
        case "llama.cpp":
            from workers.models.backends import llama_cpp

            options = load_options(command, own.context_tokens)
            return LocalBackend(llama_cpp.load(Path(command.path), options), own.chat_template)
        case "transformers":
            from workers.models.backends import transformers

            options = load_options(command, own.context_tokens)
            return LocalBackend(transformers.load(Path(command.path), options), own.chat_template)
        case "vllm":
            from workers.models.backends import vllm

            return await vllm.load(command)
        case "openai":
            from workers.models.backends import openai

            return await openai.load(command)
    raise Unsupported(f"there is no backend {command.backend!r}; there are llama.cpp, transformers, vllm and openai")


def own_words(command: LoadModel) -> OwnWords:
    """What the model's files say of themselves. Raises UnusableFile, OSError."""
    if command.remote is not None:
        return OwnWords()
    path = Path(command.path)
    return words_of_folder(path) if path.is_dir() else words_of_gguf(path)


def load_options(command: LoadModel, trained: int) -> LoadOptions:
    """How to load what the command names: its own wishes, then the settings. `trained`: tokens, 0 when unknown."""
    models = command.settings.models
    layers = models.gpu_layers if command.gpu_layers is None else command.gpu_layers
    return LoadOptions(
        context_tokens=context_length(command.context_tokens, trained, models),
        parallel=command.parallel or models.parallel,
        threads=models.threads if command.threads is None else command.threads,
        gpu_layers=0 if command.device == "cpu" else layers,
        device=command.device,
    )


def context_length(asked: int | None, trained: int, settings: ModelSettings) -> int:
    """Tokens of each sequence's window. `trained` is the model's own length, 0 when unknown.

    Raises Unprocessable when more is asked for than the model was trained for: beyond it answers are noise.
    """
    if asked is not None:
        if trained and asked > trained:
            raise Unprocessable(
                f"context_tokens is {asked}, the model was trained for {trained}",
                context_tokens=asked,
                limit_tokens=trained,
            )
        return asked
    wanted = settings.context_tokens or settings.max_context_tokens
    return min(wanted, trained) if trained else wanted
