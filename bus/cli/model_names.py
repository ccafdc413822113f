"""Names that people give for models: whether there is one, which was probably meant, and which model it comes to."""

from __future__ import annotations

import msgspec

from bus import preferences
from bus.cli.failures import UsageError
from bus.cli.output import printable
from bus.client import Client
from bus.near_names import hint
from bus.project_file import ProjectError
from bus.settings import Settings, SettingsError
from schemas.bodies.model import ModelList, Models, ModelShow
from schemas.bodies.model_trials import ProfileList, Profiles, Route, Routed
from schemas.errors import BadRequest, NotFound


async def check_model(client: Client, name: str) -> None:
    """Raises UsageError where `name` is neither a usable model nor a routing profile; it names the nearest one."""
    models: Models = await client.request("model.list", ModelList())
    usable = {each for one in models.models if one.state != "unusable" for each in (one.name, *one.aliases)}
    if name in usable:
        return
    broken = next((one for one in models.models if name in (one.name, *one.aliases)), None)
    if broken is not None:
        raise UsageError(f"{name} cannot be used: {printable(broken.error or 'its file is broken')}")
    listed: ProfileList = await client.request("model.profiles", Profiles())
    profiles = {one.name for one in listed.profiles}
    if name in profiles or await _is_known(client, name):
        return
    other = printable(hint(name, sorted(usable | profiles)))
    raise UsageError(f"there is no model and no routing profile '{printable(name)}'; {other}")


async def _is_known(client: Client, name: str) -> bool:
    """Whether the service knows a name that no list has: of an endpoint's models, or of a file that came just now."""
    try:
        await client.request("model.show", ModelShow(model=name))
    except (NotFound, BadRequest):
        return False
    return True


async def in_use(client: Client, chosen: str | None) -> tuple[str | None, str]:
    """The model that answers where `chosen` is asked for, and why; None where the service has none at all."""
    models: Models = await client.request("model.list", ModelList())
    if chosen is None:
        return models.default, "it is the default of the model service"
    found = next((one.name for one in models.models if chosen in (one.name, *one.aliases)), None)
    if found is not None:
        return found, "it was named"
    routed: Routed = await client.request("model.route", Route(profile=chosen))
    return routed.model, routed.reason


def preferred_model(settings: Settings) -> str | None:
    """The model or routing profile that this person's chats begin with. Raises SettingsError for a broken file."""
    try:
        preferred = preferences.load(settings)
    except ProjectError as error:
        raise SettingsError(str(error)) from error
    return preferred.model or preferred.routing


def prefer_model(settings: Settings, name: str | None) -> None:
    """Let this person's chats begin with that model, or with none in particular. Raises SettingsError, OSError."""
    try:
        preferences.save(settings, msgspec.structs.replace(preferences.load(settings), model=name, routing=None))
    except ProjectError as error:
        raise SettingsError(str(error)) from error
