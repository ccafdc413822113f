"""The keys folder, Z85, and the settings of an encrypted bus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import z85
from bus.curve import key_pair
from bus.keys import Keys, UnusableKey, parse_key
from bus.settings import Need, SettingsError, load_settings, parse_services


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Those of a home of its own."""
    return Keys(load_settings("/dev/null", {"home": str(tmp_path)}))


# Z85 ------------------------------------------------------------------------------------------------------------


def test_z85_is_that_of_the_specification() -> None:
    """The test vector of ZeroMQ RFC 32."""
    assert z85.encode(bytes.fromhex("864fd26fb559f75b")) == "HelloWorld"
    assert z85.decode("HelloWorld") == bytes.fromhex("864fd26fb559f75b")


@given(st.binary(max_size=80).map(lambda data: data[: len(data) // 4 * 4]))
def test_z85_gives_back_what_it_was_made_of(data: bytes) -> None:
    """Every multiple of four bytes."""
    assert z85.decode(z85.encode(data)) == data


@pytest.mark.parametrize("text", ["1234", "12 45", "~2345", "#####", "é2345"])
def test_other_text_is_no_z85(text: str) -> None:
    """Wrong length, characters that are not in it, five that stand for more than 32 bits."""
    with pytest.raises(ValueError, match=r"multiple of five|no character|more than four bytes"):
        z85.decode(text)


# The folder -----------------------------------------------------------------------------------------------------


def test_key_that_is_made_is_read_again_and_readable_by_nobody_else(keys: Keys) -> None:
    """The folder too is this user's alone, and the public key begins as no shell option does."""
    made = keys.make()

    assert keys.own() == made
    assert (keys.folder / "secret").stat().st_mode & 0o777 == 0o600
    assert keys.folder.stat().st_mode & 0o777 == 0o700
    assert z85.encode(made.public)[0].isalnum()


def test_missing_key_says_how_to_make_one(keys: Keys) -> None:
    """Also before the folder is there."""
    assert not keys.has_own()
    with pytest.raises(UnusableKey, match="olympus keys make"):
        keys.own()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_key_that_others_could_read_is_refused(keys: Keys, mode: int) -> None:
    """And it is not quietly made private: somebody may have read it."""
    keys.make()
    (keys.folder / "secret").chmod(mode)

    with pytest.raises(UnusableKey, match=f"mode {mode:o}"):
        keys.own()


@pytest.mark.parametrize("text", ["", "too short", "x" * 39, "é" * 40, "0" * 45])
def test_key_file_with_something_else_is_refused_by_name(keys: Keys, text: str) -> None:
    """A truncated file is no key."""
    keys.make()
    (keys.folder / "secret").write_text(text)

    with pytest.raises(UnusableKey, match="secret"):
        keys.own()


def test_trusted_keys_are_there_by_name_until_they_are_taken_back(keys: Keys) -> None:
    """Nothing trusted is an empty list, also before the folder is there."""
    one, other = key_pair().public, key_pair().public
    assert keys.trusted() == {}

    keys.trust("pc2", one)
    keys.trust("attic", other)
    keys.trust("pc2", other)

    assert keys.trusted() == {"attic": other, "pc2": other}
    assert keys.untrust("pc2") and not keys.untrust("pc2")
    assert keys.trusted() == {"attic": other}


def test_list_that_others_could_write_is_refused(keys: Keys) -> None:
    """Or they would let themselves in."""
    keys.trust("pc2", key_pair().public)
    (keys.folder / "trusted").chmod(0o770)

    with pytest.raises(UnusableKey, match="can be written by other users"):
        keys.trusted()


def test_files_of_editors_beside_the_keys_are_no_keys_and_a_broken_key_is_named(keys: Keys) -> None:
    """What is not called like a machine is left alone."""
    public = key_pair().public
    keys.trust("pc2", public)
    for stray in (".pc2.new", "pc2~", "README"):
        (keys.folder / "trusted" / stray).write_text("no key")
    assert keys.trusted() == {"pc2": public}

    (keys.folder / "trusted" / "attic").write_text("no key")
    with pytest.raises(UnusableKey, match="attic"):
        keys.trusted()


def test_error_about_a_damaged_secret_holds_nothing_of_it(keys: Keys) -> None:
    """Most of it may still be right."""
    keys.make()
    (keys.folder / "secret").write_text("abcde" * 7 + "#####")

    with pytest.raises(UnusableKey) as caught:
        keys.own()

    assert "abcde" not in str(caught.value) and "###" not in str(caught.value)


def _swap(folder: Path) -> None:
    (folder / "trusted" / "pc2").unlink()
    (folder / "trusted").rmdir()
    (folder / "trusted").write_text("")
    (folder / "trusted").chmod(0o600)


@pytest.mark.parametrize("spoil", [lambda folder: (folder / "trusted" / "attic").mkdir(), _swap])
def test_folder_that_is_no_list_of_keys_is_unusable_and_not_a_crash(
    keys: Keys, spoil: Callable[[Path], object]
) -> None:
    """A folder where a key belongs, a file where the folder belongs: the broker that asks must go on."""
    keys.trust("pc2", key_pair().public)
    spoil(keys.folder)

    with pytest.raises(UnusableKey, match="cannot be read"):
        keys.trusted()


def test_key_that_is_taken_back_while_the_list_is_read_leaves_the_others(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the connections of every other machine would be ended with it."""
    kept = key_pair().public
    keys.trust("attic", key_pair().public)
    keys.trust("pc2", kept)
    read = Path.read_text

    def read_late(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "attic":
            path.unlink()
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_late)
    assert keys.trusted() == {"pc2": kept}


def test_server_key_is_a_trusted_name_or_the_key_itself(keys: Keys) -> None:
    """A name nobody is trusted under says what to type."""
    public = key_pair().public
    assert keys.of_server(z85.encode(public)) == public
    with pytest.raises(UnusableKey, match="olympus keys trust mainpc KEY"):
        keys.of_server("mainpc")

    keys.trust("mainpc", public)

    assert keys.of_server("mainpc") == public
    assert parse_key(z85.encode(public)) == public


# Settings -------------------------------------------------------------------------------------------------------


def refused(**overrides: str) -> str:
    """The message of the SettingsError that these overrides raise, `__` standing for the dot."""
    with pytest.raises(SettingsError) as caught:
        load_settings("/dev/null", {name.replace("__", "."): value for name, value in overrides.items()})
    return str(caught.value)


def test_host_past_loopback_takes_the_key_of_its_broker() -> None:
    """Without one it is refused, and the message knows the way for both machines."""
    message = refused(bus__host="192.168.100.16")
    assert all(word in message for word in ("bus.server_key", "bus.listen", "bus.insecure"))

    assert load_settings("/dev/null", {"bus.host": "192.168.100.16", "bus.server_key": "mainpc"}).bus.listen == ()


@pytest.mark.parametrize(
    ("listen", "why"),
    [("0.0.0.0", "would take in loopback"), ("::", "would take in loopback"), ("127.0.0.1", "bound already")],
)
def test_listen_names_addresses_of_their_own(listen: str, why: str) -> None:
    """The wildcard would collide with the plain port of loopback."""
    assert why in refused(bus__listen=listen)


@pytest.mark.parametrize("text", ["Main", "a" * 39, "x" * 41, "a b", "-"])
def test_server_key_that_is_neither_name_nor_key_is_refused(text: str) -> None:
    """At start, not at the first connection."""
    assert "bus.server_key" in refused(bus__server_key=text)


def test_machine_names_stand_for_their_addresses() -> None:
    """In every setting of a host; an address stands for itself."""
    settings = load_settings(
        "/dev/null",
        {
            "machine.addresses": "mainpc=192.168.1.2, pc2=192.168.1.3",
            "bus.listen": "mainpc,10.0.0.1",
            "rest.host": "mainpc",
            "rest.insecure": "true",
            "legacy.host": "pc2",
            "legacy.insecure": "true",
            "legacy.announce": "pc2",
        },
    )

    assert (settings.bus.host, settings.bus.listen) == ("127.0.0.1", ("192.168.1.2", "10.0.0.1"))
    assert (settings.rest.host, settings.legacy.host) == ("192.168.1.2", "192.168.1.3")
    assert settings.legacy.announce == "192.168.1.3"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("machine.addresses", "mainpc", "is not NAME=ADDRESS"),
        ("machine.addresses", "mainpc=", "is not NAME=ADDRESS"),
        ("machine.addresses", "Main=10.0.0.1", "no name of a machine"),
        ("machine.addresses", "pc2=10.0.0.1,pc2=10.0.0.2", "two addresses"),
        ("machine.name", "../etc", "no name of a machine"),
        ("machine.services", "memory=", "is not NAME or NAME=NEED"),
        ("machine.services", "memory@pc2", "is not NAME or NAME=NEED"),
        ("machine.services", "memory,memory", "stands there twice"),
        ("machine.services", "learning=memory", "which does not run here; name its machine"),
    ],
)
def test_malformed_machine_settings_are_refused(key: str, value: str, why: str) -> None:
    """With the key, what was written, and what is wrong."""
    message = refused(**{key.replace(".", "__"): value})

    assert key in message and why in message


def test_services_say_what_they_wait_for_in_their_order() -> None:
    """NAME, or NAME=NEED+NEED@MACHINE."""
    assert parse_services(("broker", "models=broker", "learning=broker+models+memory@pc2")) == {
        "broker": (),
        "models": (Need("broker", ""),),
        "learning": (Need("broker", ""), Need("models", ""), Need("memory", "pc2")),
    }
