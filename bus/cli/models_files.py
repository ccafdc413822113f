"""`olympus models list`, `show`, `pull`, `import`, `rm`, `verify` and `quantize`: the files of models."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any, Final

from bus.cli import exits
from bus.cli.action import Action, configure_json
from bus.cli.arguments import settings_from
from bus.cli.confirming import confirm
from bus.cli.connection import run_with_client
from bus.cli.failures import UsageError, say
from bus.cli.hosting import hosted
from bus.cli.memory_upkeep import LONG_S
from bus.cli.model_names import check_model, in_use, prefer_model, preferred_model
from bus.cli.models_loaded import status_line
from bus.cli.output import duration, fit, number, print_json, printable, size, table, terminal_width, write_line
from bus.cli.progress import Progress
from bus.client import Client
from schemas.bodies.model import ModelInfo, ModelList, Models, ModelShow
from schemas.bodies.model_files import (
    FileProgress,
    ModelConverted,
    ModelDelete,
    ModelDeleted,
    ModelImport,
    ModelPull,
    ModelPulled,
    ModelQuantize,
    ModelRescan,
    ModelVerified,
    ModelVerify,
    PullProgress,
)


async def followed(client: Client, args: argparse.Namespace, subject: str, body: Any) -> Any:
    """The final reply of long work on files, with a bar until it comes."""
    with Progress(is_shown=not args.json) as progress:
        async with client.stream(subject, body, timeout_s=LONG_S) as parts:
            async for part in parts:
                _draw(progress, part)
            return parts.final


def _draw(progress: Progress, part: FileProgress | PullProgress) -> None:
    stage = part.step if isinstance(part, FileProgress) else f"{part.phase} {part.file}"
    again = f" (attempt {part.attempt})" if isinstance(part, PullProgress) and part.attempt > 1 else ""
    progress.show(
        printable(stage) + again, part.done_bytes, part.total_bytes, part.eta_s, bytes_per_s=part.rate_bytes_per_s
    )


# list and show ----------------------------------------------------------------------------------------------------


def _configure_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rescan", action="store_true", help="read the model folders again first")
    configure_json(parser)


def _run_list(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        models: Models = (
            await client.request("model.rescan", ModelRescan())
            if args.rescan
            else await client.request("model.list", ModelList())
        )
        if args.json:
            print_json(models, indent=2)
            return exits.OK
        width = terminal_width()
        host = hosted()
        used = (await in_use(client, host.model))[0] if host is not None else None
        for line in list_lines(models, used):
            write_line(fit(line, width))
        say(await status_line(client, models))
        return exits.OK

    return run_with_client(args, ask)


def list_lines(models: Models, used: str | None = None) -> list[str]:
    """A row for each entry, and why a file cannot be used; `*` marks the default one, `>` the one that a chat uses."""
    rows = [
        (
            ("> " if one.name == used else "") + printable(one.name) + ("*" if one.name == models.default else ""),
            size(one.size_bytes) if one.size_bytes else "-",
            printable(one.quantisation) or "-",
            _count(one.parameters),
            number(one.context_tokens) if one.context_tokens else "-",
            one.state,
            printable(one.error or ", ".join(one.aliases)),
        )
        for one in models.models
    ]
    if not rows:
        return ["there is no model yet: olympus models pull fetches one"]
    return table(("NAME", "SIZE", "TYPE", "PARAMETERS", "CONTEXT", "STATE", "NOTE"), rows)


def _count(parameters: int) -> str:
    """7.2B, 410M, 2.7M: as models are named."""
    for unit, per in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= per:
            value = parameters / per
            return f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"
    return str(parameters) if parameters else "-"


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    configure_json(parser)


def _configure_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the one that a chat uses, without")
    configure_json(parser)


def _run_show(args: argparse.Namespace) -> int:
    host = hosted()
    chosen = args.model or (host.model if host is not None else preferred_model(settings_from(args)))

    async def ask(client: Client) -> int:
        model = args.model or (await in_use(client, chosen))[0]
        if model is None:
            say("there is no model yet: olympus models pull fetches one")
            return exits.FAILED
        info: ModelInfo = await client.request("model.show", ModelShow(model=model))
        if args.json:
            print_json(info, indent=2)
        else:
            write_line("\n".join(show_lines(info)))
        return exits.OK

    return run_with_client(args, ask)


def show_lines(info: ModelInfo) -> list[str]:
    """Everything known of a model, one fact a line; what is not known is left out."""
    facts = (
        ("name", info.name),
        ("also called", ", ".join(info.aliases)),
        ("state", info.state + (f" on {info.device}" if info.device and info.state == "loaded" else "")),
        ("error", info.error or ""),
        ("family", info.family),
        ("format", f"{info.format}, run by {info.backend}" if info.backend else info.format),
        ("type", info.quantisation),
        ("parameters", _count(info.parameters) if info.parameters else ""),
        ("context", f"{info.context_tokens:,} tokens" if info.context_tokens else ""),
        ("can", ", ".join(info.capabilities)),
        ("size", f"{size(info.size_bytes)} on disk" if info.size_bytes else ""),
        ("in memory", f"about {size(info.memory_bytes)}" if info.memory_bytes else ""),
        ("kept", kept(info)),
        ("adapters", ", ".join(info.adapters)),
        ("license", info.license),
        ("description", info.description),
        ("file", info.path),
        ("sha256", info.sha256 or ""),
        ("from", info.source),
    )
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {printable(value)}" for name, value in facts if value]
    if len(info.versions) > 1:
        lines += ["versions:"]
        lines += [
            f"  {version.sha256[:12]}  {size(version.size_bytes):>9}"
            f"  {datetime.datetime.fromtimestamp(version.added_at):%Y-%m-%d %H:%M}  {printable(version.source)}"
            for version in info.versions
        ]
    if info.chat_template:
        lines += ["chat template:", *(f"  {line}" for line in printable(info.chat_template).splitlines())]
    return lines


def kept(info: ModelInfo) -> str:
    """How long it stays in memory, in words."""
    stays = (
        "pinned"
        if info.is_pinned
        else ""
        if info.keep_alive_s is None
        else "for good"
        if info.keep_alive_s < 0
        else f"{duration(info.keep_alive_s)} idle"
    )
    return f"{stays}, priority {info.priority}" if stays else ""


# use --------------------------------------------------------------------------------------------------------------


def _configure_use(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", nargs="?", help="a model, or a routing profile")
    parser.add_argument("--reset", action="store_true", help="prefer none any more")


def _run_use(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    if (args.model is None) == (not args.reset):
        raise UsageError("use needs the NAME of a model or routing profile, or --reset")
    if args.reset:
        prefer_model(settings, None)
        say("your chats begin with the default model of their project, or of the service")
        return exits.OK

    async def ask(client: Client) -> int:
        await check_model(client, args.model)
        return exits.OK

    run_with_client(args, ask)
    prefer_model(settings, args.model)
    say(f"your chats begin with {args.model}, unless their project says otherwise")
    return exits.OK


# pull, import, rm, verify -----------------------------------------------------------------------------------------


def _configure_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="ollama:NAME[:TAG], hf:OWNER/NAME[@REVISION][/FILE] or https://..."
    )
    parser.add_argument("--name", help="what to call it here")
    parser.add_argument("--sha256", help="what a single file must have")
    configure_json(parser)


def _run_pull(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = ModelPull(source=args.source, name=args.name, sha256=args.sha256)
        pulled: ModelPulled = await followed(client, args, "model.pull", body)
        if args.json:
            print_json(pulled, indent=2)
        else:
            write_line(pulled.model)
            say(
                f"{size(pulled.size_bytes)}, {size(pulled.transferred_bytes)} of it fetched now in"
                f" {duration(pulled.took_s)}, sha256 {pulled.sha256}"
            )
        return exits.OK

    return run_with_client(args, ask)


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a GGUF file, or a folder with safetensors")
    parser.add_argument("--name", help="what to call it here")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--copy", action="store_const", dest="mode", const="copy", help="copy, never link")
    mode.add_argument("--move", action="store_const", dest="mode", const="move", help="take it away from where it is")
    configure_json(parser)


def _run_import(args: argparse.Namespace) -> int:
    path = str(Path(args.path).expanduser().absolute())

    async def ask(client: Client) -> int:
        body = ModelImport(path=path, name=args.name, mode=args.mode or "link")
        info: ModelInfo = await followed(client, args, "model.import", body)
        if args.json:
            print_json(info, indent=2)
        else:
            write_line(info.name)
        return exits.OK

    return run_with_client(args, ask)


def _configure_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    configure_json(parser)


def _run_rm(args: argparse.Namespace) -> int:
    if not args.yes:
        confirm(f"Delete the files of {args.model}")

    async def ask(client: Client) -> int:
        deleted: ModelDeleted = await client.request("model.delete", ModelDelete(model=args.model))
        if args.json:
            print_json(deleted, indent=2)
        else:
            write_line(f"{deleted.model} is gone, {size(deleted.freed_bytes)} are free")
        return exits.OK

    return run_with_client(args, ask)


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--sha256", help="what it should be, from where you got the model")
    configure_json(parser)


def _run_verify(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = ModelVerify(model=args.model, sha256=args.sha256)
        verified: ModelVerified = await followed(client, args, "model.verify", body)
        if args.json:
            print_json(verified, indent=2)
        else:
            write_line("\n".join(verified_lines(verified)))
        return exits.OK if verified.is_intact else exits.FAILED

    return run_with_client(args, ask)


def verified_lines(verified: ModelVerified) -> list[str]:
    """What the content is, and whether it is what was known."""
    lines = [f"{verified.model}: {size(verified.size_bytes)}, sha256 {verified.sha256}"]
    if not verified.is_intact:
        return [*lines, f"this is not what was expected: {verified.expected}; the file is damaged or was changed"]
    return [*lines, "unchanged" if verified.expected else "hashed for the first time: nothing to compare with yet"]


# quantize ---------------------------------------------------------------------------------------------------------


def _configure_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("type", metavar="TYPE", help="of the weights, for instance Q8_0, Q4_K_M, F16")
    parser.add_argument("--name", help="of the copy (MODEL-TYPE)")
    configure_json(parser)


def _run_quantize(args: argparse.Namespace) -> int:
    async def ask(client: Client) -> int:
        body = ModelQuantize(model=args.model, type=args.type, name=args.name)
        made: ModelConverted = await followed(client, args, "model.quantize", body)
        if args.json:
            print_json(made, indent=2)
        else:
            write_line(made.model.name)
            for line in converted_lines(made):
                say(line)
        return exits.OK

    return run_with_client(args, ask)


def converted_lines(made: ModelConverted) -> list[str]:
    """How much smaller it is, and how much worse."""
    share = made.model.size_bytes / made.source_bytes if made.source_bytes else 0.0
    lines = [f"{size(made.source_bytes)} became {size(made.model.size_bytes)} ({share:.0%}) in {duration(made.took_s)}"]
    before, after = made.perplexity_before, made.perplexity_after
    if before is None or after is None:
        return [*lines, "perplexity could not be measured here"]
    return [*lines, f"perplexity {before:.3f} before, {after:.3f} after ({(after / before - 1) * 100:+.2f} %)"]


ACTIONS: Final = (
    Action(
        "list",
        "every model there is, usable or not",
        _configure_list,
        _run_list,
        """
olympus models list
olympus models list --json | jq -r '.models[].name'
""",
    ),
    Action(
        "show",
        "everything known of one model",
        _configure_show,
        _run_show,
        """
olympus models show olympus-demo
""",
    ),
    Action(
        "info",
        "the same as show; without MODEL, of the one that a chat uses",
        _configure_info,
        _run_show,
        """
olympus models info
""",
    ),
    Action(
        "use",
        "which model or routing profile your chats begin with",
        _configure_use,
        _run_use,
        """
olympus models use qwen3
olympus models use fast
olympus models use --reset
""",
    ),
    Action(
        "pull",
        "fetch a model; one that was cut off goes on where it was",
        _configure_pull,
        _run_pull,
        """
olympus models pull ollama:qwen3:4b
olympus models pull hf:Qwen/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf --name qwen3
""",
    ),
    Action(
        "import",
        "bring a file or folder of this machine in",
        _configure_import,
        _run_import,
        """
olympus models import ~/Downloads/model.gguf
olympus models import ./my-model --name mine --copy
""",
    ),
    Action(
        "rm",
        "delete a model's files",
        _configure_rm,
        _run_rm,
        """
olympus models rm qwen3
""",
    ),
    Action(
        "verify",
        "hash a model again; ends with 1 where it is not what it was",
        _configure_verify,
        _run_verify,
        """
olympus models verify olympus-demo
""",
    ),
    Action(
        "quantize",
        "make a smaller copy, and say how much worse it is",
        _configure_quantize,
        _run_quantize,
        """
olympus models quantize olympus-demo Q8_0
""",
    ),
)
