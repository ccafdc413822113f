"""Bodies of `model.pull`, `.import`, `.delete`, `.verify`, `.quantize`, `.export`, `.alias` and `.adapter.*`: a model's files."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.bodies.base import Reply, Request
from schemas.bodies.model import AdapterName, ModelInfo, ModelName

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
FilePath = Annotated[str, Meta(min_length=1, max_length=4_096)]


class ModelPull(Request, frozen=True, kw_only=True):
    """Fetch a model.

    source: "https://..." for one file; "ollama:NAME[:TAG]" from a registry that speaks Ollama's protocol;
    "hf:OWNER/NAME[@REVISION][/FILE]" from a hub. name: what it is called here; None takes the file's name. sha256: what
    a single file must have. A second pull of what is being pulled joins it; one that was cut off goes on where it was.
    """

    source: Annotated[str, Meta(min_length=1, max_length=2_048)]
    name: ModelName | None = None
    sha256: Sha256 | None = None


class PullProgress(Reply, frozen=True, kw_only=True):
    """total_bytes is 0 while it is not known, eta_s None. rate_bytes_per_s: over the last seconds."""

    phase: Literal["resolving", "downloading", "verifying", "finishing"]
    file: str
    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None = None
    attempt: int = 1


class ModelPulled(Reply, frozen=True, kw_only=True):
    """Reply, and event `model.pulled`. transferred_bytes: what came over the line this time."""

    model: str
    source: str
    size_bytes: int
    sha256: str
    transferred_bytes: int
    took_s: float


class ModelImport(Request, frozen=True, kw_only=True):
    """Bring a file or a folder of this machine into the first model root.

    mode "link" makes a hard link where both are on one file system, and copies otherwise.
    """

    path: FilePath
    name: ModelName | None = None
    mode: Literal["link", "copy", "move"] = "link"


class ModelDelete(Request, frozen=True, kw_only=True):
    """Remove a model's files. Refused while it is loaded, for the demo model, and for files outside the model roots."""

    model: ModelName


class ModelDeleted(Reply, frozen=True, kw_only=True):
    model: str
    freed_bytes: int


class ModelVerify(Request, frozen=True, kw_only=True):
    """Hash the files again and compare with what was known. `sha256` is what it should be, if given."""

    model: ModelName
    sha256: Sha256 | None = None


class FileProgress(Reply, frozen=True, kw_only=True):
    """Progress of hashing, copying or quantising. step: which."""

    step: str
    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None = None


class ModelVerified(Reply, frozen=True, kw_only=True):
    """is_intact False: the content is not what was known; `expected` says what that was, None for a first hash."""

    model: str
    is_intact: bool
    sha256: str
    expected: str | None
    size_bytes: int
    took_s: float


class ModelAlias(Request, frozen=True, kw_only=True):
    """Let `alias` mean a model; None forgets the alias."""

    alias: ModelName
    model: ModelName | None


class ModelRescan(Request, frozen=True, kw_only=True):
    """Read the model roots again now."""


class ModelQuantize(Request, frozen=True, kw_only=True):
    """Make a smaller copy of a GGUF model. name: of the copy; None appends the type.

    perplexity_text: what both are measured with; "" takes a text that comes with Olympus.
    """

    model: ModelName
    type: Annotated[str, Meta(min_length=1, max_length=16)]
    name: ModelName | None = None
    perplexity_text: Annotated[str, Meta(max_length=4_000_000)] = ""


class ModelExport(Request, frozen=True, kw_only=True):
    """Write a safetensors model as GGUF (`type` F32, F16, BF16 or Q8_0), as a new entry of the catalogue.

    adapter: a LoRA adapter to merge into it.
    """

    model: ModelName
    type: Annotated[str, Meta(min_length=1, max_length=16)] = "F16"
    name: ModelName | None = None
    adapter: AdapterName | None = None


class ModelConverted(Reply, frozen=True, kw_only=True):
    """The new entry. Perplexities are None where no backend here can measure one."""

    model: ModelInfo
    source_bytes: int
    perplexity_before: float | None
    perplexity_after: float | None
    took_s: float


# LoRA adapters ------------------------------------------------------------------------------------------------------


class AdapterList(Request, frozen=True, kw_only=True):
    """Adapters of a base model, or all of them."""

    model: ModelName | None = None


class AdapterInfo(Reply, frozen=True, kw_only=True):
    """One version of an adapter. alias: "champion", "canary", "challenger" or ""; is_attached: in the runner right now.

    share: part of the conversations naming no adapter that it answers.
    """

    model: str
    adapter: str
    version: int
    sha256: str
    size_bytes: int
    path: str
    added_at: float
    alias: str = ""
    is_attached: bool = False
    rank: int = 0
    note: str = ""
    share: float = 0.0


class Adapters(Reply, frozen=True, kw_only=True):
    adapters: list[AdapterInfo]


class AdapterAttach(Request, frozen=True, kw_only=True):
    """Make an adapter usable by name in requests to `model`, attached to its runner now if it is loaded.

    path: its GGUF file, or the folder of a PEFT adapter; a new content under a known name is its next version. None takes the
    newest known version, `version` another one. alias "challenger" marks it for comparison; "champion" comes by promote.
    """

    model: ModelName
    adapter: AdapterName
    path: FilePath | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    alias: Literal["", "challenger"] = ""
    note: Annotated[str, Meta(max_length=4_096)] = ""


class AdapterDetach(Request, frozen=True, kw_only=True):
    """Take an adapter out of use. Answers in flight with it are finished first. Refused for champion and canary.

    forget: delete what is kept of it, too; refused for one that a rollback may come back to.
    """

    model: ModelName
    adapter: AdapterName
    forget: bool = False


class AdapterPromote(Request, frozen=True, kw_only=True):
    """Let requests that name no adapter use this one.

    share: below 1 it becomes the canary, which answers that part of the conversations beside the champion, in place of
    an earlier canary; with 1 the champion, which ends any canary.
    """

    model: ModelName
    adapter: AdapterName
    version: Annotated[int, Meta(ge=1)] | None = None
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    reason: Annotated[str, Meta(max_length=4_096)] = ""


class AdapterRollback(Request, frozen=True, kw_only=True):
    """Undo the newest promotion: take the canary away, or without one go back to the champion before, or to none.

    adapter: refuse unless this is the one taken away.
    """

    model: ModelName
    adapter: AdapterName | None = None
    reason: Annotated[str, Meta(max_length=4_096)] = ""


class AdapterState(Reply, frozen=True, kw_only=True):
    """What requests without an adapter use from now on, and what they used before; None for the bare model.

    canary: what a part of them uses instead. previous: the champion before, or the canary taken away.
    """

    model: str
    champion: AdapterInfo | None
    previous: AdapterInfo | None
    canary: AdapterInfo | None = None


class AdapterChange(Reply, frozen=True, kw_only=True):
    """Events `model.adapter.promoted|rolled_back`.

    adapter: what answers requests without an adapter, or the canary that came. share: part of the conversations.
    """

    model: str
    adapter: str | None
    version: int | None
    previous: str | None
    previous_version: int | None
    reason: str
    share: float = 1.0
