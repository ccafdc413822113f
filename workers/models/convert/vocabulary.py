"""A Hugging Face tokenizer as GGUF wants it: texts, kinds, merges and how text is split first. Pure.

llama.cpp does not read the rules by which text is split before merging; it knows those of some models by name. A tokenizer
with other rules is refused: a model that reads text in other pieces than it was trained on answers badly and says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from schemas.errors import Unprocessable, Unsupported

# `gguf.TokenType`.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Regular expressions by which published tokenizers split, and the name that llama.cpp has for each.
LLAMA3: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2: Final = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RULES: Final = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
    (TEKKEN,): "tekken",
}

_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")

# SentencePiece's mark of a space.
_SPACE: Final = "\u2581"


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """model: "gpt2" (pieces of bytes, merges) or "llama" (SentencePiece, scores). pre: the rules of splitting."""

    model: str
    pre: str
    texts: list[str]
    kinds: list[int]
    merges: list[str] = []
    scores: list[float] = []
    special: dict[str, int] = {}
    adds_bos: bool = False
    adds_eos: bool = False
    adds_space: bool = False
    chat_template: str | None = None


def vocabulary_of(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any], template: str | None = None
) -> Vocabulary:
    """The vocabulary of tokenizer.json, tokenizer_config.json and config.json; template: of a file of its own.

    Raises Unsupported for a tokenizer of another kind, Unprocessable for one that contradicts the model.
    """
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"a tokenizer of type {model.get('type')!r} cannot be exported, BPE can")
    is_sentencepiece = bool(model.get("byte_fallback"))
    texts, kinds = _tokens(tokenizer, model, int(config["vocab_size"]), is_sentencepiece=is_sentencepiece)
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    special = _special(settings, config, {text: id for id, text in enumerate(texts)})
    adds_bos, adds_eos = _added(tokenizer, settings, texts, special)
    read = Vocabulary(
        model="gpt2",
        pre="default",
        texts=texts,
        kinds=kinds,
        special=special,
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        chat_template=_template(settings) or template,
    )
    if is_sentencepiece:
        return msgspec.structs.replace(
            read, model="llama", scores=_scores(texts, merges), adds_space=_adds_space(tokenizer)
        )
    return msgspec.structs.replace(read, pre=_rules(tokenizer), merges=[" ".join(merge) for merge in merges])


def _tokens(
    tokenizer: Mapping[str, Any], model: Mapping[str, Any], size: int, *, is_sentencepiece: bool
) -> tuple[list[str], list[int]]:
    texts = [f"[PAD{id}]" for id in range(size)]
    kinds = [UNUSED] * size
    entries = [(text, id, NORMAL) for text, id in model["vocab"].items()]
    entries += [
        (added["content"], added["id"], CONTROL if added.get("special") else USER_DEFINED)
        for added in tokenizer.get("added_tokens") or []
    ]
    for text, id, kind in entries:
        if not 0 <= id < size:
            raise Unprocessable(f"tokenizer.json: token {text[:40]!r} has id {id}, the model has {size} tokens")
        if is_sentencepiece and kind == NORMAL and _BYTE_TOKEN.fullmatch(text):
            kind = BYTE
        texts[id], kinds[id] = text, kind
    unknown = model.get("unk_token")
    if is_sentencepiece and unknown in texts:
        kinds[texts.index(unknown)] = UNKNOWN
    return texts, kinds


def _scores(texts: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """A piece that is merged earlier has the higher score, as SentencePiece's BPE has it."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    last = len(merges)
    return [-float(ranks.get(text, last)) for text in texts]


def _rules(tokenizer: Mapping[str, Any]) -> str:
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    rules = tuple(rule for step in steps if (rule := _rule(step)))
    name = _RULES.get(rules)
    if name is None:
        raise Unsupported(
            "its tokenizer splits text by rules that llama.cpp is not known to have; known are those of"
            f" {', '.join(sorted(_RULES.values()))}"
        )
    return name


def _rule(step: Mapping[str, Any]) -> str:
    match step.get("type"):
        case "ByteLevel":
            return "bytes" if step.get("use_regex", True) else ""
        case "Digits" if step.get("individual_digits"):
            return "digits"
        case "Split" if isinstance(step.get("pattern"), dict):
            return str(step["pattern"].get("Regex", step["pattern"]))
    return json.dumps(dict(step))


def _special(settings: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    special: dict[str, int] = {}
    for kind in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        id: Any = ids.get(text) if isinstance(text, str) else None
        if id is None:
            known = config.get(f"{kind}_token_id")
            id = known[0] if isinstance(known, list) and known else known
        if isinstance(id, int) and 0 <= id < len(ids):
            special[kind] = id
    return special


def _added(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], texts: list[str], special: Mapping[str, int]
) -> tuple[bool, bool]:
    """Does the tokenizer put a first and a last token around every text? By its settings, or its template."""
    pieces = [piece for step in _processors(tokenizer) for piece in step.get("single") or []]
    named = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else None for piece in pieces]
    bos = settings.get("add_bos_token")
    eos = settings.get("add_eos_token")
    if bos is None:
        bos = bool(named) and "bos" in special and named[0] == texts[special["bos"]]
    if eos is None:
        eos = len(named) > 1 and "eos" in special and named[-1] == texts[special["eos"]]
    return bool(bos), bool(eos)


def _processors(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    processor = tokenizer.get("post_processor") or {}
    return list(processor.get("processors", [processor]))


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizer = tokenizer.get("normalizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), tokenizer.get("pre_tokenizer") or {}]
    return any(
        (step.get("type") == "Prepend" and step.get("prepend") == _SPACE)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _template(settings: Mapping[str, Any]) -> str | None:
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
