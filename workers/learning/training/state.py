"""The state of a training beside the adapter, as tensors and JSON: optimizer, schedule, random numbers. No pickles.

It knows torch; files and when to write them are others' business.
"""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec
import numpy
import torch
from safetensors.torch import load, save

OPTIMIZER: Final = "optimizer.safetensors"
SCHEDULE: Final = "schedule.json"


def rng_name(rank: int) -> str:
    """File of the random numbers of one process."""
    return f"rng-{rank}.safetensors"


# Optimizer ------------------------------------------------------------------------------------------------------------


def _names(optimizer: Any, model: Any) -> list[str]:
    """Names in the model of the optimizer's parameters, in the order in which its state counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_bytes(optimizer: Any, model: Any) -> bytes:
    """Moments and step counts of every parameter, named `key/parameter`."""
    names = _names(optimizer, model)
    state = optimizer.state_dict()["state"]
    return save(
        {
            f"{key}/{names[number]}": torch.as_tensor(value).detach().cpu().contiguous()
            for number, entries in state.items()
            for key, value in entries.items()
        }
    )


def load_optimizer(data: bytes, optimizer: Any, model: Any) -> None:
    """Put back what `optimizer_bytes` took. Raises ValueError when it is of another set of parameters."""
    numbers = {name: number for number, name in enumerate(_names(optimizer, model))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for entry, value in load(data).items():
        key, _, name = entry.partition("/")
        if name not in numbers:
            raise ValueError(f"the checkpoint's optimizer has {name!r}, which is not trained now")
        state.setdefault(numbers[name], {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


# Random numbers -------------------------------------------------------------------------------------------------------


def rng_state() -> dict[str, torch.Tensor]:
    """State of every generator a training may draw from."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = numpy.random.get_state()
    tensors = {
        "torch": torch.random.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def set_rng_state(tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `rng_state` took."""
    version, *words = (int(word) for word in tensors["python"])
    gauss = tensors["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss[0] if gauss else None))
    position, has_gauss, cached = tensors["numpy_rest"].tolist()
    keys = tensors["numpy"].numpy().astype(numpy.uint32)
    numpy.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.random.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


# Schedule -------------------------------------------------------------------------------------------------------------


def schedule_bytes(scheduler: Any) -> bytes:
    """Numbers of a scheduler; its rules are made anew from the spec."""
    plain = {name: value for name, value in scheduler.state_dict().items() if _is_plain(value)}
    return msgspec.json.encode(plain)


def load_schedule(data: bytes, scheduler: Any) -> None:
    """Put back what `schedule_bytes` took."""
    scheduler.load_state_dict({**scheduler.state_dict(), **msgspec.json.decode(data)})
    # The optimizer's own rates are those of the first step, and would stay so for one step.
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    return isinstance(value, int | float | bool)
