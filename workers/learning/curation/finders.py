"""A child process that finds secrets and personal data in texts: one line of JSON in, one out; keeps and writes nothing.

In: a list of texts. Out: for each text its findings as [kind, is_secret, start, end],
`start` and `end` counting characters.
Its libraries take 15 MiB and 0.1 s to import, which the service is spared: it starts this when rows come in.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import phonenumbers
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from stdnum import iban, luhn
from stdnum.us import ssn


class Finding(NamedTuple):
    """One finding in one text, by characters. is_secret: it opens something, as against naming somebody."""

    kind: str
    is_secret: bool
    start: int
    end: int


# Characters looked at together, and how far the windows overlap: the expressions for keywords take time that grows faster
# than a line, and no token is longer than the overlap.
_WINDOW: Final = 2_000
_OVERLAP: Final = 300

# These report any random-looking word or any address, which ordinary text is full of.
_LEFT_OUT: Final = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})

# What detect-secrets calls its findings, where our words are other ones.
_KINDS: Final = {
    "Private Key": "private key",
    "Basic Auth Credentials": "password in a URL",
    "Secret Keyword": "password",
}

# Tokens by their documented prefixes that detect-secrets 1.5 does not know.
_TOKENS: Final = re.compile(
    r"\b(?:github_pat_[A-Za-z0-9_]{22,}|sk-(?:ant|proj|svcacct)-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|AIza[A-Za-z0-9_-]{35}"
    r"|ya29\.[A-Za-z0-9_-]{20,}|glpat-[A-Za-z0-9_-]{20,}|xapp-[0-9]-[A-Za-z0-9-]{20,}|dop_v1_[a-f0-9]{64})"
)
_SAID_PASSWORD: Final = re.compile(
    r"\b(?:password|passwd|passphrase|passwort|api[ _-]?key|secret key|access token|pin code)\b['\"]?\s*(?:is|ist|=|:|:=|was)\s*"
    r"['\"]?(?P<secret>(?=[^\s'\"]*[0-9])[^\s'\"]{6,})",
    re.IGNORECASE,
)
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL
)

# Without one of these nothing is given a value, and half the time of a search is saved.
_ASSIGNS: Final = re.compile(r"[=:]|->")

# RFC 5321 allows more; this is what people write.
_EMAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,5}\.[^\W\d_]{2,24}(?![\w-])")
_CARD: Final = re.compile(r"(?<![\d.-])(?:\d[ -]?){12,18}\d(?![\d-])")
_IBAN: Final = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_SSN: Final = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_TOKEN_REST: Final = re.compile(r"[A-Za-z0-9_+/=~-]*(?:\.[A-Za-z0-9_+/=~-]+)*")

# A number without the + of its country is taken for one in the form of North America when it is written with separators.
_LOCAL_PHONE: Final = re.compile(r"(?<![\d.-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\d-])")


def find(text: str) -> list[Finding]:
    """The findings of one text in their order; none overlaps another."""
    return _apart([*_secrets(text), *_personal(text)])


def _secrets(text: str) -> Iterator[Finding]:
    for match in _PRIVATE_KEY.finditer(text):
        yield Finding("private key", True, *match.span())
    for match in _TOKENS.finditer(text):
        yield Finding("token", True, *match.span())
    for match in _SAID_PASSWORD.finditer(text):
        yield Finding("password", True, *match.span("secret"))
    for offset, piece in _pieces(text):
        for plugin in _plugins if _ASSIGNS.search(piece) else _quick_plugins:
            # The name makes the expressions for settings files apply, where a value needs no quotes.
            for found in plugin.analyze_line("rows.ini", piece, 1):
                yield from _places(_kind(found.type), found.secret_value, piece, offset)


def _places(kind: str, secret: str | None, piece: str, offset: int) -> Iterator[Finding]:
    if not secret or kind == "private key":
        return  # a private key is found whole above
    if kind == "password" and not any(map(str.isdigit, secret)):
        return  # `password: forgotten` is a sentence
    at = piece.find(secret)
    while at >= 0:
        # Some name only the beginning of a token.
        rest = _TOKEN_REST.match(piece, at + len(secret))
        end = rest.end() if rest and kind not in {"password", "password in a URL"} else at + len(secret)
        yield Finding(kind, True, offset + at, offset + end)
        at = piece.find(secret, end)


def _personal(text: str) -> Iterator[Finding]:
    for match in _EMAIL.finditer(text):
        yield Finding("e-mail address", False, *match.span())
    for match in _IBAN.finditer(text):
        if iban.is_valid(match[0]):
            yield Finding("bank account", False, *match.span())
    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub(r"\D", "", match[0])) and match[0][0] in "3456":
            yield Finding("card number", False, *match.span())
    for match in _SSN.finditer(text):
        if ssn.is_valid(match[0]):
            yield Finding("social security number", False, *match.span())
    for phone in phonenumbers.PhoneNumberMatcher(text, None):
        yield Finding("phone number", False, phone.start, phone.end)
    for match in _LOCAL_PHONE.finditer(text):
        if _is_phone(match[0]):
            yield Finding("phone number", False, *match.span())


def _is_phone(text: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, "US"))
    except phonenumbers.NumberParseException:
        return False


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    offset = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), _WINDOW):
            piece = line[start : start + _WINDOW + _OVERLAP].rstrip()
            if piece:
                yield offset + start, piece
        offset += len(line)


def _apart(findings: Iterable[Finding]) -> list[Finding]:
    """In order. What overlaps an earlier one joins it, and is a secret when either is."""
    apart: list[Finding] = []
    for finding in sorted(findings, key=lambda one: (one.start, -one.end)):
        if apart and finding.start < apart[-1].end:
            last = apart[-1]
            named = finding if finding.is_secret and not last.is_secret else last
            apart[-1] = Finding(named.kind, named.is_secret, last.start, max(last.end, finding.end))
        else:
            apart.append(finding)
    return apart


def _kind(kind: str) -> str:
    return _KINDS.get(kind, "token")


def _all_plugins() -> list[Any]:
    kinds: Iterable[Any] = get_mapping_from_secret_type_to_class().values()
    return [kind() for kind in kinds if kind.__name__ not in _LEFT_OUT]


_plugins = _all_plugins()
_quick_plugins = [plugin for plugin in _plugins if type(plugin).__name__ != "KeywordDetector"]


def main() -> None:
    """Answer lines until the input ends."""
    for line in sys.stdin:
        answer = [find(text) for text in json.loads(line)]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
