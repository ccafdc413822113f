"""Devices: what NVML, the settings and the host tell of them, and every way in which they can fail to."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bus.settings import ResourceSettings, SettingsError, load_settings
from bus.sizes import parse_size, size_in_words
from tests.fake_nvml import GIB, Card, FakeNvml, NVMLError
from workers.resources import inventory as module
from workers.resources.device import Device
from workers.resources.inventory import Inventory
from workers.resources.nvml import Nvml, Readings, Sampler

MIB = 1024**2


def gpus(inventory: Inventory) -> list[Device]:
    return [device for device in inventory.devices() if device.device != "cpu"]


def nvml(library: FakeNvml) -> Nvml:
    return Nvml(lambda: library)


# NVML ------------------------------------------------------------------------------------------------------------------


def test_a_card_is_read_whole_and_what_it_does_not_tell_is_left_out() -> None:
    """Names in bytes, memory of processes that is not told, rates that are not supported."""
    card = Card("u", used=3 * GIB)
    # Numbers that no process has.
    card.processes = {2**22 + 7: GIB, 8: None, 9: 2**64 - 1}

    (gpu,) = nvml(FakeNvml(card)).read().gpus

    assert (gpu.name, gpu.total_bytes, gpu.used_bytes) == ("Fake 3090", 24 * GIB, 3 * GIB)
    assert (gpu.processes, gpu.temperature_c, gpu.utilisation) == ({2**22 + 7: GIB}, 41.0, None)


def test_a_process_counts_for_those_that_started_it() -> None:
    """The model service holds the leases, its runners the memory."""
    card = Card("u", used=3 * GIB)
    card.processes = {os.getpid(): GIB, os.getppid(): GIB}
    (gpu,) = nvml(FakeNvml(card)).read().gpus
    assert gpu.processes[os.getpid()] == GIB
    assert gpu.processes[os.getppid()] == 2 * GIB


def test_a_driver_that_fails_is_told_and_asked_anew() -> None:
    """At initialising, and later when a reload of the driver broke the connection."""
    library = FakeNvml(Card("u"))
    driver = nvml(library)
    library.failing = "Driver/library version mismatch"
    assert driver.read() == Readings(problem="NVML cannot be initialised: Driver/library version mismatch")
    library.failing = None
    assert len(driver.read().gpus) == 1
    library.failing = "Unknown Error"
    assert driver.read().problem == "NVML does not count its devices: Unknown Error"
    assert not library.is_initialised
    library.failing = None
    assert len(driver.read().gpus) == 1


def test_a_missing_library_is_told() -> None:
    """There is a driver, and the package to ask it is not installed."""

    def load() -> Any:
        raise ImportError("No module named 'pynvml'")

    assert "nvidia-ml-py cannot be imported" in Nvml(load).read().problem


def test_one_failing_card_does_not_hide_the_others() -> None:
    """Its place in the list stays, with the reason."""
    bad = Card("a")
    bad.failing = "GPU is lost"
    readings = nvml(FakeNvml(bad, Card("b"))).read()

    assert [(gpu.index, gpu.problem) for gpu in readings.gpus] == [(0, "GPU is lost"), (1, "")]


async def test_looks_are_made_off_the_loop_and_when_asked() -> None:
    """A refresh waits for a look that begins after it; the end lets go of the driver."""
    library = FakeNvml(Card("u"))
    looks: list[Readings] = []
    sampler = Sampler(nvml(library), 3600, looks.append)
    await sampler.start()
    library.cards[0].used = 5 * GIB

    await sampler.refresh(10)

    assert looks[-1].gpus[0].used_bytes == 5 * GIB
    assert sampler.silent_s < 10
    await sampler.stop()
    assert not library.is_initialised


async def test_a_driver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh comes back when its time is up, and so does the end."""
    released = threading.Event()
    library = FakeNvml()
    monkeypatch.setattr(library, "nvmlDeviceGetCount", lambda: released.wait(30) and 0)
    sampler = Sampler(nvml(library), 3600, lambda readings: None)
    monkeypatch.setattr("workers.resources.nvml._FIRST_S", 0.01)
    try:
        async with asyncio.timeout(10):
            await sampler.start()
            await sampler.refresh(0.01)
    finally:
        released.set()
        await sampler.stop()


# The inventory -----------------------------------------------------------------------------------------------------------


def test_the_spare_part_is_taken_off_what_the_driver_tells() -> None:
    """Leases get what is left to them."""
    inventory = Inventory(ResourceSettings(spare_vram="1GiB"))
    assert inventory.update(nvml(FakeNvml(Card("u", used=GIB))).read()) == []

    (device,) = gpus(inventory)
    assert (device.device, device.source, device.total_bytes) == ("gpu0", "nvml", 23 * GIB)
    assert (device.used_bytes, device.spare_bytes) == (GIB, GIB)


def test_declared_devices_go_before_what_is_measured() -> None:
    """The declared size counts; what is in use is still known where NVML sees the same device."""
    inventory = Inventory(ResourceSettings(devices=("gpu0=8GiB", "gpu3=4GiB", "cpu=2GiB")))
    inventory.update(nvml(FakeNvml(Card("u", used=GIB))).read())

    first, second = gpus(inventory)
    assert (first.source, first.total_bytes, first.used_bytes) == ("declared", 8 * GIB, GIB)
    assert (second.device, second.total_bytes, second.used_bytes) == ("gpu3", 4 * GIB, None)
    memory = inventory.devices()[-1]
    assert (memory.device, memory.source, memory.total_bytes) == ("cpu", "declared", 2 * GIB)


def test_a_card_that_goes_away_is_lost_once_and_comes_back() -> None:
    """By its own failure, or by falling out of the driver's list."""
    first, second = Card("a"), Card("b")
    library = FakeNvml(first, second)
    driver, inventory = nvml(library), Inventory(ResourceSettings())
    inventory.update(driver.read())

    first.failing = "GPU is lost"
    assert [one.device for one in inventory.update(driver.read())] == ["gpu0"]
    assert inventory.update(driver.read()) == []
    assert gpus(inventory)[0].problem == "GPU is lost"

    # The driver counts anew: the second card moves up, and is still gpu1.
    library.cards = [second]
    assert inventory.update(driver.read()) == []
    lost, there = gpus(inventory)
    assert (lost.device, lost.is_lost) == ("gpu0", True)
    assert (there.device, there.is_lost) == ("gpu1", False)

    first.failing = None
    library.cards = [first, second]
    assert inventory.update(driver.read()) == []
    assert [one.is_lost for one in gpus(inventory)] == [False, False]
    assert inventory.problem == ""


def test_a_driver_that_fails_takes_the_cards_from_new_leases_alone() -> None:
    """What runs on them goes on, so nobody is told that a card is gone; a declared one needs no measuring."""
    library = FakeNvml(Card("a", used=GIB), Card("b"))
    driver, inventory = nvml(library), Inventory(ResourceSettings(devices=("gpu0=8GiB",)))
    inventory.update(driver.read())
    library.failing = "Unknown Error"

    assert inventory.update(driver.read()) == []
    declared, measured = gpus(inventory)
    assert (declared.is_lost, declared.total_bytes, declared.used_bytes) == (False, 8 * GIB, None)
    assert measured.is_lost and "Unknown Error" in measured.problem
    library.failing = None
    assert inventory.update(driver.read()) == []
    assert [(one.is_lost, one.used_bytes) for one in gpus(inventory)] == [(False, GIB), (False, 0)]
    assert inventory.problem == ""


def test_main_memory_is_a_share_of_the_host_or_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel tells, times the share; a container's limit where that is less."""
    (tmp_path / "meminfo").write_text("MemTotal: 10485760 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP_LIMIT", tmp_path / "memory.max")
    inventory = Inventory(ResourceSettings(ram_share=0.5))
    (memory,) = inventory.devices()
    assert (memory.total_bytes, memory.used_bytes, memory.source) == (5 * GIB, 2 * GIB, "host")

    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    assert inventory.devices()[0].total_bytes == 2 * GIB

    (tmp_path / "meminfo").unlink()
    (memory,) = inventory.devices()
    assert memory.is_lost and "cannot be read" in memory.problem


def test_the_stand_in_speaks_the_names_of_the_library() -> None:
    """Every name that is used exists in nvidia-ml-py, so that the tests above speak of the real one."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

    names = [name for name in dir(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert [name for name in names if not hasattr(pynvml, name)] == []
    assert issubclass(pynvml.NVMLError, Exception) and issubclass(NVMLError, Exception)


# Sizes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("512MiB", 512 * MIB), ("1.5 GiB", GIB * 3 // 2), ("2GB", 2_000_000_000), ("0B", 0)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    """Binary and decimal units."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("resources.devices", "gpu0", "NAME=SIZE"),
        ("resources.devices", "tpu0=4GiB", "NAME=SIZE"),
        ("resources.devices", "gpu0=4", "is no size"),
        ("resources.devices", "gpu0=0GiB", "above 0"),
        ("resources.devices", "gpu0=1GiB,gpu0=2GiB", "stands there twice"),
        ("resources.devices", "gpu0=-4GiB", "is no size"),
        ("resources.spare_vram", "much", "is no size"),
        ("resources.spare_vram", "9999999TiB", "is no size"),
        ("resources.quotas", "model=20Gib", "is no size"),
        ("resources.quotas", "mo del=20GiB", "NAME=SIZE"),
    ],
)
def test_sizes_in_the_settings_are_checked_at_start(key: str, value: str, words: str) -> None:
    """The error names key, value and what may stand there."""
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(None, {key: value})
    assert f"flag --set {key}" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "words"), [(5, "5 B"), (1536, "1.5 KiB"), (24 * GIB, "24.0 GiB"), (2**53, "8192.0 TiB")]
)
def test_sizes_are_told_in_words(size: int, words: str) -> None:
    """For messages."""
    assert size_in_words(size) == words
