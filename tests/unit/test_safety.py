"""What holds for the whole house: bound addresses, scopes, fields, tokens' headers, files' modes, and docs/security.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bus.cli import safety
from bus.curve import key_pair
from bus.keys import Keys, parse_key
from bus.permissions import NOTHING
from bus.settings import SettingsError, every_key, is_loopback, load_settings
from schemas import catalog
from workers.memory.accounts import access_tokens
from workers.memory.accounts.access_tokens import BadToken
from workers.memory.accounts.keys import KeyRing

ROOT = Path(__file__).resolve().parents[2]
SECURITY = (ROOT / "docs" / "security.md").read_text()

# Settings that name where something is bound; `models.host` is an address that is asked.
BOUND = ("bus.host", "rest.host", "legacy.host", "exporter.host")
OPENED_BY = {
    "bus.host": {"bus.insecure": "true"},
    "rest.host": {"rest.insecure": "true"},
    "legacy.host": {"legacy.insecure": "true"},
    "exporter.host": {"exporter.insecure": "true"},
}


# Addresses ------------------------------------------------------------------------------------------------------


def test_every_address_is_loopback_and_stays_so_without_a_word() -> None:
    """Every setting that names one: its default, any other address without the word for it, and with it."""
    named = {key.name for key in every_key() if key.name.endswith((".host", ".listen", "_host"))}
    assert named == {*BOUND, "bus.listen", "models.host"}
    settings = load_settings("/dev/null", {})
    assert settings.bus.listen == () and settings.models.host == ""

    for name in BOUND:
        section, _, field = name.partition(".")
        assert is_loopback(getattr(getattr(settings, section), field))
        also = {"legacy.enabled": "true"} if section == "legacy" else {}
        for address in ("0.0.0.0", "::", "192.168.1.5", "house.lan", "127.0.0.1.nip.io", "0", "*"):
            with pytest.raises(SettingsError, match=re.escape(name)):
                load_settings("/dev/null", {name: address, **also})
        opened = load_settings("/dev/null", {name: "0.0.0.0", **also, **OPENED_BY[name]})
        assert safety.open_binds(opened) == [f"{name} = 0.0.0.0"]
    for address in ("0.0.0.0", "::", "*", ""):
        with pytest.raises(SettingsError, match=r"bus\.listen"):
            load_settings("/dev/null", {"bus.listen": f'["{address}"]'})


# The catalogue --------------------------------------------------------------------------------------------------


def test_every_operation_takes_a_scope_but_those_that_are_for_everybody() -> None:
    """A new operation without one is a decision to be written down here."""
    open_to_all = {one.subject for one in catalog.OPERATIONS.values() if not one.scope}

    assert open_to_all == {
        "auth.register", "auth.login", "auth.verify", "auth.refresh", "auth.logout", "auth.password",
        "bus.ping", "bus.services", "bus.workers", "bus.stats",
    }  # fmt: skip


def test_no_request_takes_a_field_that_its_operation_does_not_have() -> None:
    """Of every operation: `is_admin`, `scopes` or a misspelt name is refused, not ignored."""
    for operation in catalog.OPERATIONS.values():
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"a_field_of_nobody": True}, operation.request)


def test_only_admins_name_addresses_that_are_fetched() -> None:
    """Operations whose requests hold an address take an admin's scope."""
    suspicious = re.compile(r"(^|_)(url|uri|address|webhook|endpoint|host|callback)(_|$)")
    named = {
        one.subject: one.scope
        for one in catalog.OPERATIONS.values()
        if any(suspicious.search(field) for field in one.request.__struct_fields__)
    }

    assert set(named) <= {"resource.lease.acquire"}, "is it fetched? then it takes an admin, and a line here"
    assert catalog.OPERATIONS["model.pull"].scope == "model:admin"
    assert catalog.OPERATIONS["model.import"].scope == "model:admin"


def test_whatever_deletes_promotes_or_changes_rights_is_audited() -> None:
    """By the words in its name; what is left out says why here."""
    telling = re.compile(r"delete|forget|purge|cleanup|restore|flush|promote|rollback|rotate|user\.(add|update)|issue")
    unaudited = {one.subject for one in catalog.OPERATIONS.values() if telling.search(one.subject) and not one.audit}

    # An entry of a cache, and the tier of one memory.
    assert unaudited == {"memory.cache.delete", "memory.promote"}


# Tokens ---------------------------------------------------------------------------------------------------------


def test_no_word_in_a_tokens_header_chooses_its_key_or_algorithm(tmp_path: Path) -> None:
    """Keys brought along, addresses to fetch them from, other types, critical extensions, kids of any shape."""
    ring = KeyRing(tmp_path / "keys", "EdDSA")
    key = ring.signing()
    claims = access_tokens.new_claims("ada", "f", ("memory:read",), ("user.ada",), now=0.0, ttl_s=60.0)
    good = access_tokens.sign(key, claims)
    assert access_tokens.read(ring, good, 1.0) == claims
    mine = Ed25519PrivateKey.generate()
    raw = mine.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": jwt.utils.base64url_encode(raw).decode()}
    payload = msgspec.to_builtins(claims)
    headers: list[dict[str, Any]] = [
        {"kid": key.kid, "jwk": jwk},
        {"kid": key.kid, "jku": "http://127.0.0.1/keys", "x5u": "http://127.0.0.1/cert"},
        {"kid": key.kid, "x5c": ["MIIB"]},
        {"kid": key.kid, "crit": ["exp"], "exp": 0},
        {"kid": f"{key.kid}\0"},
        {"kid": f"../keys/{key.kid}"},
        {"kid": "x" * 100_000},
        {"kid": ""},
        {},
    ]
    for header in headers:
        forged = jwt.encode(payload, mine, "EdDSA", headers=header)
        with pytest.raises(BadToken, match="forged"):
            access_tokens.read(ring, forged, 1.0)
    for kid in ([key.kid], {"a": key.kid}, 7, None, True):
        head = jwt.utils.base64url_encode(msgspec.json.encode({"alg": "EdDSA", "typ": "JWT", "kid": kid})).decode()
        with pytest.raises(BadToken, match="forged"):
            access_tokens.read(ring, f"{head}.{good.partition('.')[2]}", 1.0)
    with pytest.raises(BadToken, match="expired"):
        access_tokens.read(ring, good, 60.0)


# Files ----------------------------------------------------------------------------------------------------------


def test_doctor_names_open_ports_open_files_and_keys_that_may_everything(tmp_path: Path) -> None:
    """One line each, with what to type; and three times ok where all is well."""
    home = tmp_path / "home"
    settings = load_settings("/dev/null", {"home": str(home), "bus.listen": '["192.168.1.5"]'})
    keys = Keys(settings)
    keys.make()
    keys.trust("pc2", key_pair().public)
    keys.allow("pc2", NOTHING)
    home.chmod(0o700)
    assert [finding.state for finding in safety.findings(settings)] == ["ok", "ok", "ok"]

    keys.allow("pc2", None)
    (home / "auth").mkdir()
    (home / "auth" / "local-admin").write_text("x")
    (home / "auth" / "local-admin").chmod(0o644)
    home.chmod(0o755)
    also = {"rest.host": "0.0.0.0", "rest.insecure": "true"}
    opened = load_settings("/dev/null", {"home": str(home), "bus.listen": '["192.168.1.5"]', **also})
    binds, files, rights = safety.findings(opened)

    assert "rest.host = 0.0.0.0, and nobody has to sign in" in binds.found
    assert files.state == "missing" and "local-admin" in files.found and "chmod" in files.advice
    assert "may do everything: pc2" in rights.found and "olympus keys allow pc2" in rights.advice


def test_home_that_its_first_key_makes_is_this_users_alone(tmp_path: Path) -> None:
    """`olympus keys make` is the first command on a second machine; every folder that it makes is closed."""
    home = tmp_path / "new" / "home"
    keys = Keys(load_settings("/dev/null", {"home": str(home)}))
    keys.make()
    keys.trust("pc2", bytes(32))

    made = (home.parent, home, home / "keys", home / "keys" / "trusted")
    assert {folder.stat().st_mode & 0o777 for folder in made} == {0o700}


def test_private_file_is_never_written_through_a_link_that_waits_there(tmp_path: Path) -> None:
    """The file takes the place of the link; what that leads to stays as it was."""
    from bus.private_file import write_private

    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    (folder / "secret").symlink_to(victim)
    write_private(folder / "secret", b"key")

    assert victim.read_text() == "mine"
    assert not (folder / "secret").is_symlink() and (folder / "secret").read_bytes() == b"key"
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600


# The document ---------------------------------------------------------------------------------------------------


def test_keys_in_the_documents_are_keys() -> None:
    """Whoever tries a command as it stands there is not told that its key is none."""
    shown = [
        key
        for page in (ROOT / "docs").glob("*.md")
        for key in re.findall(r"olympus keys trust \S+ '([^']{30,})'", page.read_text())
    ]

    assert shown and all(len(parse_key(key)) == 32 for key in shown)


def test_every_test_that_the_document_names_exists() -> None:
    """File and function; and each point of the list names at least one."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SECURITY)
    missing = [f"{file}::{name}" for file, name in named if name not in _functions(ROOT / file)]
    points = re.split(r"^### ", SECURITY, flags=re.MULTILINE)[1:]

    assert not missing
    assert [point.split()[0] for point in points] == [f"API{number}" for number in range(1, 11)]
    assert all("`tests/" in point for point in points)


def _functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
