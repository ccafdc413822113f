"""The project a folder belongs to: what kind it is, what its own file says, and where each of that is from.

A project is the nearest folder, from the one asked about upwards, that holds a project file, else the nearest with a
file that tells its kind (pyproject.toml, Cargo.toml ...), else the root of the repository. The search ends with the
repository's root; it never looks at the home folder itself, nor into folders of other people.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bus import near_names
from bus.project_file import Asked, ProjectError, is_within, read
from bus.settings import Settings

# Where a project file may be, the first that is there counts.
OURS: Final = Path(".olympus", "project.yaml")
FOREIGN: Final = Path(".ollm", "project.yaml")

# Where a project's templates may be besides; a new one goes to the first.
TEMPLATES: Final = (Path(".olympus", "templates"), Path(".ollm", "templates"))

# Profiles that come with Olympus: config/projects/NAME.yaml.
SHIPPED: Final = Path(__file__).resolve().parents[1] / "config" / "projects"

# Says that a project has no profile, whatever its files look like.
NO_PROFILE: Final = "none"


class Candidate(NamedTuple):
    """A kind that a folder may be of. evidence: what was found, strongest first. score: its weight, for comparing."""

    profile: str
    folder: Path
    evidence: tuple[str, ...]
    score: int


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A project and what it asks for.

    profile: built-in or the person's own, "" for none. chosen_by: who said so, in words for people. evidence: what its
    files told about its kind. file: the project file that was read. asked: what that says. profile_asked: what the
    profile says. templates: folders of them. notes: what was passed over, and why.
    """

    root: Path
    name: str
    profile: str = ""
    chosen_by: str = ""
    evidence: tuple[str, ...] = ()
    file: Path | None = None
    asked: Asked = Asked()
    profile_asked: Asked = Asked()
    templates: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def find(
    folder: Path,
    settings: Settings,
    *,
    profile: str = "",
    kept: Mapping[str, str] | None = None,
    reads_file: bool = True,
) -> Project | None:
    """The project that `folder` belongs to; None where it belongs to none.

    profile: named by the person for this time. kept: profiles that the person chose for good, by root. reads_file: False
    goes by the looks of the folder alone, where its project file cannot be used. Raises ProjectError for a project file
    or a profile that cannot be used, and for a `profile` that does not exist.
    """
    levels, file = _within(folder, settings)
    own, notes = _own_markers(settings)
    candidates = _candidates(levels, own)
    root = _root(file, candidates, levels)
    if root is None:
        return None
    file = file if reads_file else None
    is_foreign = file is not None and file.is_foreign
    asked = read(file.path, "foreign" if is_foreign else "project", within=root) if file else Asked()
    chosen = _choice(profile, (kept or {}).get(str(root), ""), asked, is_foreign=is_foreign, candidates=candidates)
    name, about_it = _existing(chosen, settings)
    return Project(
        root=root,
        name=asked.name or root.name,
        profile=name,
        chosen_by=chosen.by if name else "",
        evidence=candidates[0].evidence if candidates else (),
        file=file.path if file else None,
        asked=asked,
        profile_asked=load_profile(name, settings) if name else Asked(),
        templates=_template_folders(root, asked),
        notes=(*notes, *(file.notes if file else ()), *asked.notes, *about_it),
    )


def detect(folder: Path, settings: Settings) -> tuple[Candidate, ...]:
    """The kinds that the project of `folder` may be of, the likeliest first."""
    return tuple(_candidates(_within(folder, settings)[0], _own_markers(settings)[0]))


def profile_files(settings: Settings) -> dict[str, Path]:
    """Every profile and its file, the person's own (OLYMPUS_HOME/projects) in the place of built-in ones."""
    files: dict[str, Path] = {}
    for place in (SHIPPED, settings.path("projects")):
        files |= {path.stem: path for path in _listed(place) if path.suffix == ".yaml"}
    return dict(sorted(files.items()))


def load_profile(name: str, settings: Settings) -> Asked:
    """What the profile says. Raises ProjectError, also where there is none of that name."""
    files = profile_files(settings)
    if name not in files:
        raise ProjectError("profiles", _no_profile(name, files))
    return read(files[name], "profile")


def profiles(settings: Settings) -> dict[str, tuple[Path, str]]:
    """Every profile with its file and what it is for; of one that cannot be used, why."""
    told = {}
    for name, path in profile_files(settings).items():
        try:
            told[name] = (path, read(path, "profile").description)
        except ProjectError as error:
            told[name] = (path, f"cannot be used: {error}")
    return told


# Folders ------------------------------------------------------------------------------------------------------------


def _levels(folder: Path) -> Iterator[Path]:
    """`folder` and those above it that may belong to the same project.

    A file that somebody else put into a folder above, as into /tmp, must not speak for what lies below.
    """
    start = Path(os.path.realpath(folder))
    never = never_projects()
    owners = {0, os.geteuid(), *_owner(start)}
    for level in (start, *start.parents):
        if level in never or (level != start and not _is_trusted(level, owners)):
            return
        yield level
        if _is_repository(level):
            return


def never_projects() -> set[Path]:
    """The home folder, where things lie for other reasons, and the root of all; a user may have no home."""
    return {Path(os.path.realpath(os.path.expanduser("~"))), Path("/")}


def _owner(folder: Path) -> tuple[int, ...]:
    try:
        return (folder.stat().st_uid,)
    except OSError:
        return ()


def _is_trusted(folder: Path, owners: set[int]) -> bool:
    try:
        found = folder.stat()
    except OSError:
        return False
    everybody_writes = stat.S_ISVTX | stat.S_IWOTH
    return found.st_uid in owners and found.st_mode & everybody_writes != everybody_writes


def _is_repository(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in (".git", ".hg", ".jj"))


class _File(NamedTuple):
    """A project file that counts. notes: about another one beside it."""

    path: Path
    folder: Path
    is_foreign: bool
    notes: tuple[str, ...] = ()


def _within(folder: Path, settings: Settings) -> tuple[list[Path], _File | None]:
    """The folders that say what the project is, and its file. What lies above the folder of that file is another's."""
    levels = list(_levels(folder))
    file = _project_file(levels, settings)
    return (levels[: levels.index(file.folder) + 1] if file else levels), file


def _project_file(levels: Sequence[Path], settings: Settings) -> _File | None:
    for level in levels:
        # The home of Olympus has that name too, and may lie in a project.
        has_ours = os.path.lexists(level / OURS) and not _is_home_of_olympus(level / OURS.parent, settings)
        has_foreign = os.path.lexists(level / FOREIGN)
        if has_ours:
            both = (f"{level / FOREIGN} is passed over: {OURS} is there too",) if has_foreign else ()
            return _File(level / OURS, level, is_foreign=False, notes=both)
        if has_foreign:
            return _File(level / FOREIGN, level, is_foreign=True)
    return None


def _is_home_of_olympus(folder: Path, settings: Settings) -> bool:
    return os.path.realpath(folder) == os.path.realpath(settings.home_path)


def _root(file: _File | None, candidates: Sequence[Candidate], levels: Sequence[Path]) -> Path | None:
    if file is not None:
        return file.folder
    if candidates:
        return candidates[0].folder
    return levels[-1] if levels and _is_repository(levels[-1]) else None


def _template_folders(root: Path, asked: Asked) -> tuple[Path, ...]:
    folders = [root / asked.folder] if asked.folder else []
    if asked.folder and not is_within(folders[0], root):
        why = f"templates = {asked.folder!r} is not allowed; allowed: a folder below {root}"
        raise ProjectError(asked.origins["folder"], why)
    folders += [root / below for below in TEMPLATES]
    return tuple(folder for folder in folders if folder.is_dir() and is_within(folder, root))


# Kinds --------------------------------------------------------------------------------------------------------------

# What a file says about the kind of its folder, in points. A manifest decides, the rest breaks ties between manifests;
# what has less than `_DECIDES` counts only where nothing above or below it does.
_DECIDES: Final = 10
_MARKERS: Final = (
    ("pyproject.toml", "python", 10),
    ("setup.py", "python", 10),
    ("setup.cfg", "python", 3),
    ("requirements.txt", "python", 10),
    ("Pipfile", "python", 10),
    ("Cargo.toml", "rust", 10),
    ("go.mod", "go", 10),
    ("go.work", "go", 10),
    ("package.json", "typescript", 10),
    ("tsconfig.json", "typescript", 10),
    ("deno.json", "typescript", 10),
    ("mkdocs.yml", "documentation", 5),
    ("antora.yml", "documentation", 5),
    ("book.toml", "documentation", 5),
    ("conf.py", "documentation", 5),
    ("docs", "documentation", 2),
)
# Points of a marker that the person named for a profile of their own: before everything built in.
_OWN_MARKER: Final = 20

# Suffixes of sources, counted where several manifests lie in one folder, and the points that all of them together give.
_SOURCES: Final = {
    ".py": "python",
    ".rs": "rust",
    ".go": "go",
    ".ts": "typescript",
    ".tsx": "typescript",
    ".js": "typescript",
    ".md": "documentation",
    ".rst": "documentation",
}
_SOURCES_SCORE: Final = 9
# Entries looked at for that, and folders below the first: a few milliseconds.
_ENTRIES_MAX: Final = 2_000
_DEPTH_MAX: Final = 3
_NOT_SOURCES: Final = frozenset({"node_modules", "target", "vendor", "dist", "build", "venv", "site-packages"})


def _candidates(levels: Sequence[Path], own: Sequence[tuple[str, str]]) -> list[Candidate]:
    """Of the nearest level with a manifest; of the nearest with anything where there is none."""
    weak: list[Candidate] = []
    for level in levels:
        found = _kinds_of(level, own)
        if any(one.score >= _DECIDES for one in found):
            return found
        weak = weak or found
    return weak


def _kinds_of(folder: Path, own: Sequence[tuple[str, str]]) -> list[Candidate]:
    evidence: dict[str, list[tuple[int, str]]] = {}
    for name, profile, points in _MARKERS:
        if os.path.exists(folder / name):
            evidence.setdefault(profile, []).append((points, name))
    names = os.listdir(folder) if own and os.access(folder, os.R_OK) else []
    for pattern, profile in own:
        if match := next((name for name in sorted(names) if fnmatch(name, pattern)), None):
            evidence.setdefault(profile, []).append((_OWN_MARKER, match))
    if sum(points >= _DECIDES for found in evidence.values() for points, _ in found[:1]) > 1:
        for profile, share in _shares(folder).items():
            if profile in evidence and round(share * _SOURCES_SCORE):
                evidence[profile].append((round(share * _SOURCES_SCORE), f"{share:.0%} of the sources"))
    candidates = [
        Candidate(profile, folder, tuple(what for _, what in sorted(found, key=lambda one: -one[0])), _score(found))
        for profile, found in evidence.items()
    ]
    return sorted(candidates, key=lambda one: -one.score)


def _score(found: Sequence[tuple[int, str]]) -> int:
    """The strongest counts whole and each other one as a point: three manifests of one kind are one project still."""
    shares = sum(points for points, what in found if what.endswith("of the sources"))
    markers = [points for points, what in found if not what.endswith("of the sources")]
    return max(markers) + min(len(markers) - 1, 3) + shares


def _shares(folder: Path) -> dict[str, float]:
    """Part of the sources that each kind has."""
    counts: dict[str, int] = {}
    for name in _files(folder):
        if kind := _SOURCES.get(os.path.splitext(name)[1]):
            counts[kind] = counts.get(kind, 0) + 1
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}


def _files(folder: Path) -> Iterator[str]:
    """Names of files below `folder`, links not followed, within the bounds above."""
    left, waiting = _ENTRIES_MAX, [(folder, 0)]
    while waiting:
        below, depth = waiting.pop(0)
        for entry in _entries(below):
            left -= 1
            if left < 0:
                return
            if entry.is_file(follow_symlinks=False):
                yield entry.name
            elif depth < _DEPTH_MAX and entry.is_dir(follow_symlinks=False) and _may_hold_sources(entry.name):
                waiting.append((Path(entry.path), depth + 1))


def _may_hold_sources(name: str) -> bool:
    return not name.startswith(".") and name not in _NOT_SOURCES


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        # A folder that is closed to this user tells nothing.
        return []


def _own_markers(settings: Settings) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Patterns of files and the profiles of the person's own that they stand for, and what is wrong with other ones."""
    found, notes = [], []
    for path in _listed(settings.path("projects")):
        if path.suffix == ".yaml":
            try:
                found += [(pattern, path.stem) for pattern in read(path, "profile").markers]
            except ProjectError as error:
                notes.append(f"profile {path.stem} cannot be used: {error}")
    return found, tuple(notes)


def _listed(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder))


# Profiles -----------------------------------------------------------------------------------------------------------

# What other programs call the kinds that are built in.
_FOREIGN_PROFILES: Final = {
    **dict.fromkeys(("javascript", "js", "ts", "node", "nodejs"), "typescript"),
    **dict.fromkeys(("docs", "markdown", "writing"), "documentation"),
    **dict.fromkeys(("py",), "python"),
    **dict.fromkeys(("golang",), "go"),
    **dict.fromkeys(("null", "default", "general"), NO_PROFILE),
}


class _Choice(NamedTuple):
    """A profile and who said so. is_foreign: the file of another program, which may name what is unknown here."""

    name: str
    by: str
    is_foreign: bool = False


def _choice(now: str, kept: str, asked: Asked, *, is_foreign: bool, candidates: Sequence[Candidate]) -> _Choice:
    if now:
        return _Choice(now, "asked for")
    if kept:
        return _Choice(kept, "your choice for this project")
    if asked.profile:
        return _Choice(asked.profile, asked.origins["profile"], is_foreign)
    if candidates:
        return _Choice(candidates[0].profile, f"detected by {', '.join(candidates[0].evidence)}")
    return _Choice(NO_PROFILE, "")


def _existing(chosen: _Choice, settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The name of the profile, "" for none, and what there is to say where another program's is unknown here."""
    name, files = chosen.name, profile_files(settings)
    if chosen.is_foreign and name not in files:
        name = _FOREIGN_PROFILES.get(name.lower(), name)
    if name == NO_PROFILE or name in files:
        return ("" if name == NO_PROFILE else name), ()
    what = _no_profile(name, files)
    if chosen.is_foreign:
        return "", (f"{chosen.by}: {what}",)
    raise ProjectError(chosen.by, what)


def _no_profile(name: str, files: Iterable[str]) -> str:
    return f"there is no profile {name!r}; {near_names.hint(name, [*files, NO_PROFILE])}"
