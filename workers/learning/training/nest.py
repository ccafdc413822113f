"""A process with everything imported that forks a trainer for each job: `python -m workers.learning.training.nest`.

    stdin   a Unix socket of whole messages: Fork or Compare with a descriptor in; Ready, Forked and Ended out

What compares an adapter with PEFT needs the same libraries, and is forked here, too. A cold trainer spends seconds on imports, a forked one none. Nothing here may start a thread of torch or touch a GPU: a
forked child has neither. It ends with the service, and its trainers end with it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from bus.parent import die_with_parent, take_stdout
from schemas.errors import BusError
from workers.learning.training.spec import LOG, read_spec

# Kinds of models whose code is imported ahead: the shipped one's, and most of those made since.
_AHEAD: Final = ("llama",)

_MESSAGE_BYTES: Final = 65_536


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag="fork"):
    """Train the job in `folder`; the descriptor that comes along takes what the trainer says."""

    number: int
    folder: str


class Compare(msgspec.Struct, frozen=True, kw_only=True, tag="compare"):
    """Answer one task of `promotion.reference`; the descriptor that comes along is a socket for task and answer."""

    number: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Everything is imported."""


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked"):
    """The child asked for as `number` runs."""

    number: int
    pid: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """It ended with `status`, negative for a signal."""

    number: int
    status: int


News = Ready | Forked | Ended
decode_news = msgspec.json.Decoder(News).decode
_decode_order = msgspec.json.Decoder(Fork | Compare).decode


def main(argv: Sequence[str] | None = None) -> None:
    """Fork trainers until the service goes away."""
    parser = argparse.ArgumentParser(prog="python -m workers.learning.training.nest", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parent = parser.parse_args(argv).parent
    die_with_parent(parent)
    # Ctrl-C in a terminal reaches the service, which then decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    service = socket.socket(fileno=os.dup(0))
    _import_all()
    # What was imported is never garbage, and a child that looked for some would copy the pages it lies on.
    gc.collect()
    gc.freeze()
    service.send(msgspec.json.encode(Ready()))
    _serve(service)


def _import_all() -> None:
    for name in (
        "workers.learning.training.trainer",
        "workers.learning.training.dry_step",
        "workers.learning.training.keeper",
        "workers.learning.promotion.reference",
    ):
        importlib.import_module(name)
    importlib.import_module("trl").SFTTrainer  # noqa: B018  trl and transformers import on first use
    importlib.import_module("transformers").AutoModelForCausalLM  # noqa: B018
    for family in _AHEAD:
        _import_family(family)


def _import_family(family: str) -> None:
    """Code of one kind of model. A kind that transformers has not is the trainer's to refuse."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if family in CONFIG_MAPPING_NAMES and family.isidentifier():
        name = f"transformers.models.{family}.modeling_{family}"
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)


def _serve(service: socket.socket) -> None:
    children: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(service, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is service:
                    data, descriptors, _, _ = socket.recv_fds(service, _MESSAGE_BYTES, 1)
                    if not data:
                        return
                    order = _decode_order(data)
                    pid, alive = _fork(order, descriptors[0], service, selector)
                    children[alive] = (order.number, pid)
                    selector.register(alive, selectors.EVENT_READ)
                    service.send(msgspec.json.encode(Forked(number=order.number, pid=pid)))
                else:
                    number, pid = children.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    service.send(msgspec.json.encode(Ended(number=number, status=os.waitstatus_to_exitcode(status))))


def _fork(
    order: Fork | Compare, pipe: int, service: socket.socket, selector: selectors.BaseSelector
) -> tuple[int, int]:
    """The child's process id, and a descriptor that comes to its end when the child ends."""
    if isinstance(order, Fork):
        _import_for(Path(order.folder))
    alive, held = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(held)
        os.close(pipe)
        return pid, alive
    try:
        selector.close()
        service.close()
        os.close(alive)
        die_with_parent(parent)
        if isinstance(order, Fork):
            _train(Path(order.folder), pipe)
        _compare(pipe)
        os._exit(0)
    except BaseException:  # noqa: BLE001  a child must never go on as the parent
        traceback.print_exc()
    finally:
        os._exit(1)


def _train(folder: Path, pipe: int) -> NoReturn:
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    os.dup2(pipe, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.close(pipe)
    os.close(log)
    from workers.learning.training.trainer import run

    run(folder, take_stdout())


def _compare(pipe: int) -> None:
    os.dup2(pipe, 0)
    os.dup2(pipe, 1)
    os.close(pipe)
    from workers.learning.promotion.reference import answer

    answer(take_stdout())


def _import_for(folder: Path) -> None:
    """Import what the job's base needs here, so that the next one finds it. Its errors are the trainer's to tell."""
    from workers.learning.training.base import shape_of

    try:
        family = shape_of(Path(read_spec(folder).base)).family
    except (BusError, OSError):
        return
    _import_family(family)


if __name__ == "__main__":
    main()
    sys.exit(0)
