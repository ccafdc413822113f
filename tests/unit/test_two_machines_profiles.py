"""The files of two machines say what is true, and what they say is read; waiting is told in measure."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from honcho.environ import parse_procfile

from broker.admission import Admission
from bus import needs
from bus.cli import clone, doctor
from bus.curve import key_pair
from bus.keys import Keys
from bus.reminder import Reminder
from bus.settings import Need, Settings, load_settings, parse_services
from schemas.bodies.control import ServiceInfo
from workers.gateway.legacy.agents.roster import roster

ROOT = Path(__file__).resolve().parents[2]
MACHINES = ("mainpc", "pc2")


@pytest.fixture(autouse=True)
def no_settings_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's environment does not reach these tests."""
    for name in list(__import__("os").environ):
        if name.startswith(("OLYMPUS_", "OLLM_")):
            monkeypatch.delenv(name)


def profile(machine: str) -> Settings:
    """What config/MACHINE.yaml says."""
    return load_settings(ROOT / "config" / f"{machine}.yaml")


# The files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_procfile_has_the_lines_of_the_profile_in_its_order(machine: str) -> None:
    """And each is the line that Procfile has for one machine."""
    lines = parse_procfile(clone.procfile(machine).read_text()).processes
    whole = parse_procfile(clone.procfile().read_text()).processes

    assert list(lines) == list(parse_services(profile(machine).machine.services))
    assert lines == {name: whole[name] for name in lines}
    assert profile(machine).machine.name == machine


def test_profiles_together_run_every_service_once_and_the_gateway_twice() -> None:
    """And each service that waits for another machine's names the machine that runs it."""
    runs = {machine: parse_services(profile(machine).machine.services) for machine in MACHINES}
    whole = parse_procfile(clone.procfile().read_text()).processes

    assert sorted([*runs["mainpc"], *runs["pc2"]]) == sorted([*whole, "gateway"])
    for services in runs.values():
        for wanted in services.values():
            assert all(need.service in runs[need.machine] for need in wanted if need.machine)


def test_profiles_agree_on_addresses_and_ports() -> None:
    """PC2 connects encrypted to where MainPC listens, and each HTTP port is opened by one of them."""
    main, second = profile("mainpc"), profile("pc2")

    assert main.machine.addresses == second.machine.addresses
    assert main.bus.listen == (second.bus.host,) and second.bus.server_key == "mainpc"
    assert not main.bus.insecure and not second.bus.insecure
    ports = ("request_port", "publish_port", "subscribe_port", "sequenced_port")
    assert [getattr(main.bus, port) for port in ports] == [getattr(second.bus, port) for port in ports]
    assert sorted([*main.rest.services, *second.rest.services]) == ["learning", "memory", "models"]


def test_profiles_replace_every_agent_once_and_tell_its_port() -> None:
    """The number beside a name is the agent's first port for requests."""
    written = {
        name: int(port)
        for machine in MACHINES
        for name, port in re.findall(r"- (\w+)  # (\d+)", (ROOT / "config" / f"{machine}.yaml").read_text())
    }
    listed = [name for machine in MACHINES for name in profile(machine).legacy.agents]
    agents = {agent.name: agent for agent in roster()}

    assert sorted(listed) == sorted(agents) == sorted(written)
    for name, agent in agents.items():
        assert written[name] == (*agent.ports, *agent.intake_ports)[0], name


# Who waits for whom ---------------------------------------------------------------------------------------------


def test_service_waits_for_what_its_line_says() -> None:
    """Under the name it has on the bus; nothing where the settings do not say."""
    learning = needs.needs_of(profile("mainpc"), "learning")

    assert Need("memory", "pc2") in learning and Need("models", "") in learning
    assert needs.needs_of(profile("mainpc"), "model") == (Need("broker", ""), Need("resources", ""))
    assert needs.needs_of(Settings(), "learning") == ()
    absent = needs.missing(learning, {"model"})
    assert needs.in_words(absent) == "resources, memory on pc2"
    assert needs.missing(learning, {"model", "memory", "resource"}) == []


def test_doctor_reports_what_each_service_waits_for() -> None:
    """Absent is no fault of this machine."""
    running = ServiceInfo(
        service="model",
        instances=1,
        capacity=1,
        in_flight=0,
        queued=0,
        answered=0,
        failed=0,
        p50_s=None,
        p99_s=None,
        subjects=[],
    )
    gone = msgspec.structs.replace(running, service="memory", instances=0)

    checks = {check.name: check for check in doctor.check_needs(profile("mainpc"), [running, gone])}

    assert checks["needs of learning"].state == "absent"
    assert checks["needs of learning"].found == "waits for resources, memory on pc2"
    assert checks["needs of gateway"].state == "ok"


def test_doctor_names_the_keys_that_are_missing(tmp_path: Path) -> None:
    """Its own and that of the broker; nothing where nothing is encrypted."""
    settings = msgspec.structs.replace(profile("pc2"), home=str(tmp_path))
    assert [check.state for check in doctor.check_keys(settings)] == ["missing", "missing"]

    keys = Keys(settings)
    keys.make()
    keys.trust("mainpc", key_pair().public)

    assert [check.state for check in doctor.check_keys(settings)] == ["ok", "ok"]
    assert list(doctor.check_keys(Settings())) == []


def test_reminder_speaks_soon_at_first_and_ever_more_rarely() -> None:
    """Every 0.1 s it is asked for twenty minutes."""
    reminder = Reminder()
    due = [tick / 10 for tick in range(12_000) if reminder.is_due("no broker", tick / 10)]

    assert due[:4] == [2.0, 4.0, 8.0, 16.0]
    assert due[-2:] == [812.0, 1112.0] and len(due) == 11


def test_reminder_says_at_once_what_is_new_and_begins_anew_when_cleared() -> None:
    """But nothing before its first time: everything takes a moment to start."""
    reminder = Reminder()
    assert not reminder.is_due("no broker", 100.0)
    assert not reminder.is_due("key not trusted", 101.0)
    assert reminder.is_due("key not trusted", 102.0)
    assert reminder.is_due("no broker", 102.5)

    reminder.clear()

    assert not reminder.is_due("no broker", 103.0)
    assert reminder.is_due("no broker", 105.0)


def test_refusals_of_many_keys_are_said_once_a_minute_each_and_forgotten_in_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood of new keys can fill neither the memory nor the log."""
    now = [0.0]
    settings = msgspec.structs.replace(Settings(), home=str(tmp_path))
    admission = Admission(settings, clock=lambda: now[0])
    one = key_pair().public

    for at in (0.0, 30.0, 59.0, 61.0):
        now[0] = at
        admission.on_refused(one, "10.0.0.9:1")
    assert len(caplog.records) == 2

    for number in range(2_500):
        admission.on_refused(number.to_bytes(32, "big"), "10.0.0.9:1")
    assert len(caplog.records) == 101 and len(admission._said) <= 100

    now[0] = 200.0
    admission.on_refused(one, "10.0.0.9:1")
    assert len(caplog.records) == 102


def test_nobody_is_admitted_when_the_keys_are_unusable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the broker says why, once."""
    settings = msgspec.structs.replace(Settings(), home=str(tmp_path))
    keys = Keys(settings)
    own, friend = keys.make().public, key_pair().public
    keys.trust("pc2", friend)
    admission = Admission(settings)
    assert admission.admits(own) and admission.admits(friend) and not admission.admits(key_pair().public)

    (tmp_path / "keys").chmod(0o777)

    assert not admission.admits(friend) and not admission.admits(friend)
    assert [record.getMessage() for record in caplog.records] == ["keys unusable"]
