"""Loads a folder of safetensors with transformers: weights as data only, never code that the folder brings.

Knows nothing of how it then answers (`torch_model`), and imports torch and transformers only when it is asked to load.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from schemas.errors import Unprocessable, Unsupported
from workers.models.backends.backend import LoadFailed, LoadOptions, TokenModel

_MISSING = (
    "the backend 'transformers' needs torch, transformers and safetensors, the extra 'learning': pip install -c"
    " constraints.txt '.[learning]' in the project's folder"
)


def load(path: Path, options: LoadOptions) -> TokenModel:
    """The model in the folder `path`, on `options.device`, in the type its weights are kept in.

    Raises LoadFailed with the reason for a folder that cannot be used (no safetensors, code of its own, weights that
    are missing), Unsupported without the libraries or the device, Unprocessable when the memory is not enough. Blocks;
    call it in the thread of the loop that will use the model.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "safetensors")):
        raise Unsupported(_MISSING)
    if not path.is_dir() or not any(path.glob("*.safetensors")):
        raise LoadFailed(f"{path.name} is no folder with .safetensors files")
    # CUDA counts fastest first unless told to count as the driver does, and so as we do.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # Set before the import: nothing is ever fetched here, and the service says what is loaded.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from workers.models.backends.torch_model import TorchModel, is_out_of_memory

    device = _torch_device(options)
    try:
        model = _weights(path, device)
        return TorchModel(model, _tokenizer(path), options, device)
    except (LoadFailed, Unprocessable):
        raise
    # A folder comes from strangers, and transformers raises whatever its configuration provokes.
    except Exception as error:
        if is_out_of_memory(error):
            raise Unprocessable(f"{path.name} does not fit into the memory of {options.device}") from error
        raise LoadFailed(" ".join(str(error).split())[:400] or type(error).__name__) from error


def _torch_device(options: LoadOptions) -> str:
    if options.device == "cpu":
        return "cpu"
    import torch

    number = int(options.device.removeprefix("gpu"))
    if number >= torch.cuda.device_count():
        raise Unsupported(
            f"{options.device} is asked for, torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices",
            device=options.device,
        )
    return f"cuda:{number}"


def _weights(path: Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(
        path,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    # transformers fills what is missing with random numbers and goes on.
    absent = sorted(told["missing_keys"]) + sorted(str(key) for key in told["mismatched_keys"])
    if absent:
        raise LoadFailed(f"{len(absent)} tensors are missing or of another shape, first {absent[0]}")
    return model.eval().to(device)


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise LoadFailed(f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form")
    return tokenizer
