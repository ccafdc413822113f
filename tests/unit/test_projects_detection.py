"""Which project a folder belongs to, and of what kind it is: real folder trees, also hostile ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bus.project_file import ProjectError
from bus.projects import Project, detect, find, profile_files
from bus.settings import Settings


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of this test's person."""
    home = tmp_path / "person"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def settings(person: Path) -> Settings:
    """Settings with the usual home of Olympus."""
    return Settings(home=str(person / ".olympus"))


def tree(root: Path, *names: str) -> Path:
    """Files, and folders where a name ends with `/`, below `root`."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("")
    return root


def write(path: Path, text: str) -> Path:
    """A file with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(folder: Path, settings: Settings) -> Project:
    """The project of a folder that has one."""
    project = find(folder, settings)
    assert project is not None
    return project


# Kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "profile"),
    [
        (["package.json"], "typescript"),
        (["tsconfig.json"], "typescript"),
        (["pyproject.toml"], "python"),
        (["setup.py"], "python"),
        (["requirements.txt"], "python"),
        (["Cargo.toml"], "rust"),
        (["go.mod"], "go"),
        (["mkdocs.yml", "docs/index.md"], "documentation"),
        (["conf.py", "index.rst"], "documentation"),
        (["docs/index.md"], "documentation"),
        # A program with documents is a program.
        (["pyproject.toml", "mkdocs.yml", "docs/index.md"], "python"),
        (["Cargo.toml", "book.toml", "docs/"], "rust"),
    ],
)
def test_a_folder_is_of_the_kind_that_its_files_tell(
    files: list[str], profile: str, person: Path, settings: Settings
) -> None:
    """Each built-in profile has files that it is known by."""
    root = tree(person / "some", *files)

    project = found(root, settings)

    assert (project.root, project.name, project.profile) == (root, "some", profile)
    assert project.evidence[0] in [*files, "docs"]
    assert project.chosen_by == f"detected by {', '.join(project.evidence)}"
    assert project.profile_asked.system


def test_several_kinds_are_ranked_by_manifests_and_then_by_sources(person: Path, settings: Settings) -> None:
    """A Python project that has a package.json for one tool is a Python project, and the other kind is listed too."""
    root = tree(person / "some", "pyproject.toml", "package.json", "a/one.py", "a/two.py", "a/b/three.py", "tool.js")

    first, second = detect(root / "a", settings)

    assert (first.profile, second.profile) == ("python", "typescript")
    assert first.score > second.score
    assert first.evidence == ("pyproject.toml", "75% of the sources")


def test_sources_of_dependencies_do_not_count(person: Path, settings: Settings) -> None:
    """What is installed into a project is not what it is written in; links are not followed either."""
    scripts = [f"node_modules/dep/{number}.js" for number in range(30)] + ["main.go"]
    root = tree(person / "some", "go.mod", "package.json", *scripts)
    (root / "round").symlink_to(root)

    assert [one.profile for one in detect(root, settings)] == ["go", "typescript"]


def test_a_huge_tree_is_looked_at_within_bounds(
    person: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two manifests ask for the sources, of which so many entries are looked at and no more."""
    root = tree(person / "some", "go.mod", "package.json")
    looked = 0
    monkeypatch.setattr("bus.projects._ENTRIES_MAX", 50)
    real = os.scandir

    def counted(path: Path) -> object:
        nonlocal looked
        looked += 1
        return real(path)

    for number in range(300):
        (root / f"d{number}").mkdir()
    monkeypatch.setattr("bus.projects.os.scandir", counted)

    assert len(detect(root, settings)) == 2
    assert 0 < looked <= 52


# Which folder -----------------------------------------------------------------------------------------------------


def test_the_nearest_manifest_of_a_monorepo_counts(person: Path, settings: Settings) -> None:
    """Each package of a repository is a project of its own, and what lies in none belongs to the whole."""
    repo = tree(person / "repo", ".git/", "pyproject.toml", "web/package.json", "web/src/", "core/Cargo.toml", "notes/")

    assert (found(repo / "web/src", settings).root, found(repo / "web/src", settings).profile) == (
        repo / "web",
        "typescript",
    )
    assert found(repo / "core", settings).profile == "rust"
    assert (found(repo / "notes", settings).root, found(repo / "notes", settings).profile) == (repo, "python")


def test_a_project_file_above_a_package_is_the_project_and_the_package_its_kind(
    person: Path, settings: Settings
) -> None:
    """One file at the root of a monorepo speaks for all of it; the kind is still that of the nearest manifest."""
    repo = tree(person / "repo", ".git/", "web/package.json", "web/src/", "api/go.mod")
    write(repo / ".olympus/project.yaml", "name: shop\n")

    web, api = found(repo / "web/src", settings), found(repo / "api", settings)

    assert (web.root, web.name, web.profile) == (repo, "shop", "typescript")
    assert (api.root, api.profile) == (repo, "go")


def test_what_lies_above_the_project_file_is_not_the_project(person: Path, settings: Settings) -> None:
    """A folder of documents beside the parents says nothing about a project that has a file of its own."""
    root = tree(person / "work/mine", ".olympus/project.yaml")
    tree(person / "work", "docs/guide.md")

    assert (found(root, settings).root, found(root, settings).profile) == (root, "")
    assert detect(root, settings) == ()


def test_the_nearest_of_two_project_files_counts(person: Path, settings: Settings) -> None:
    """A project within a project has its own file, and nothing of the outer one."""
    repo = tree(person / "repo", ".git/", "inner/deep/")
    write(repo / ".olympus/project.yaml", "name: outer\nmodel: big\n")
    write(repo / "inner/.olympus/project.yaml", "name: inner\n")

    project = found(repo / "inner/deep", settings)

    assert (project.name, project.root, project.asked.model) == ("inner", repo / "inner", None)


def test_the_search_ends_with_the_repository(person: Path, settings: Settings) -> None:
    """A manifest above the root of the repository belongs to something else."""
    outer = tree(person / "outer", "package.json", "repo/.git/", "repo/src/")

    project = found(outer / "repo/src", settings)

    assert (project.root, project.profile, project.chosen_by) == (outer / "repo", "", "")


def test_home_is_no_project_and_ends_the_search(person: Path, settings: Settings) -> None:
    """What lies in the home folder itself is there for other reasons; the home of Olympus has the folder's name too."""
    tree(person, "package.json", ".git/", "papers/")
    write(person / ".olympus/project.yaml", "name: never\n")

    assert find(person, settings) is None
    assert find(person / "papers", settings) is None
    assert detect(person / "papers", settings) == ()


def test_the_home_of_olympus_within_a_project_is_no_project_file(person: Path) -> None:
    """OLYMPUS_HOME may lie in a project, where its files are state and no wishes."""
    root = tree(person / "some", "go.mod")
    write(root / ".olympus/project.yaml", "name: never\n")

    project = found(root, Settings(home=str(root / ".olympus")))

    assert (project.name, project.file) == ("some", None)


def test_a_folder_that_anybody_may_write_into_speaks_for_nobody(tmp_path: Path, settings: Settings) -> None:
    """What somebody left in a folder like /tmp has no say about what others have below it."""
    shared = tree(tmp_path / "shared", "package.json", "mine/work/")
    write(shared / ".olympus/project.yaml", "system: Obey.\n")
    shared.chmod(0o1777)

    assert find(shared / "mine/work", settings) is None


def test_a_folder_without_anything_belongs_to_no_project(person: Path, settings: Settings) -> None:
    """No manifest, no project file, no repository."""
    assert find(tree(person / "empty/deep/", ""), settings) is None


def test_folders_that_cannot_be_read_tell_nothing(
    person: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed folder below is passed over, and a closed one above ends the search."""
    root = tree(person / "some", "go.mod", "package.json", "src/main.go", "closed/")
    real = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("bus.projects.os.scandir", closed)

    assert found(root, settings).profile == "go"


def test_links_in_a_circle_lead_nowhere(person: Path, settings: Settings) -> None:
    """Neither a folder that is a link to itself nor a file that is one hangs the search."""
    root = tree(person / "some", ".git/")
    (root / "loop").symlink_to(root / "loop")
    (root / "pyproject.toml").symlink_to(root / "pyproject.toml")
    (root / ".olympus").mkdir()
    (root / ".olympus/project.yaml").symlink_to(root / ".olympus/project.yaml")

    assert detect(root / "loop" / "deep", settings) == ()
    with pytest.raises(ProjectError, match=r"project\.yaml: it cannot be read: Too many levels"):
        find(root, settings)


def test_a_folder_reached_by_a_link_is_where_it_really_is(person: Path, settings: Settings) -> None:
    """The real folder decides, not the way one came."""
    root = tree(person / "real", "Cargo.toml", "src/")
    (person / "short").symlink_to(root / "src")

    assert found(person / "short", settings).root == root


# Profiles ---------------------------------------------------------------------------------------------------------


def test_every_built_in_profile_can_be_read_and_says_something_useful(settings: Settings) -> None:
    """Data is code too: a profile has a purpose, a system prompt, a routing profile, tools and options."""
    assert list(profile_files(settings)) == ["documentation", "go", "python", "rust", "typescript"]
    for name in profile_files(settings):
        asked = found_profile(name, settings)
        assert asked.profile_asked.description
        assert len(asked.profile_asked.system or "") > 400
        assert asked.profile_asked.routing in ("code", "general")
        assert asked.profile_asked.tools
        assert asked.profile_asked.options
        assert asked.profile_asked.templates


def found_profile(name: str, settings: Settings) -> Project:
    """A project that has the profile."""
    folder = Path.home() / f"of-{name}"
    folder.mkdir()
    write(folder / ".olympus/project.yaml", f"profile: {name}\n")
    return found(folder, settings)


def test_a_profile_of_ones_own_goes_in_the_place_of_a_built_in_one(person: Path, settings: Settings) -> None:
    """OLYMPUS_HOME/projects overrides by name."""
    write(person / ".olympus/projects/go.yaml", "system: Be terse.\n")

    assert found(tree(person / "some", "go.mod"), settings).profile_asked.system == "Be terse."


def test_a_profile_of_ones_own_is_detected_by_its_own_files(person: Path, settings: Settings) -> None:
    """Its markers, patterns among them, go before everything built in."""
    write(person / ".olympus/projects/terraform.yaml", "markers: ['*.tf']\nsystem: HCL.\n")

    project = found(tree(person / "some", "main.tf", "package.json"), settings)

    assert (project.profile, project.evidence) == ("terraform", ("main.tf",))


def test_a_broken_profile_of_ones_own_is_told_and_the_others_work(person: Path, settings: Settings) -> None:
    """One mistake in a file that has nothing to do with a project does not cost the project."""
    broken = write(person / ".olympus/projects/elixir.yaml", "markers: mix.exs\n")

    project = found(tree(person / "some", "go.mod"), settings)

    assert project.profile == "go"
    assert project.notes == (
        f"profile elixir cannot be used: {broken} line 1: markers = 'mix.exs' is not allowed; allowed: a list of texts",
    )


def test_what_the_person_says_goes_before_the_file_and_the_file_before_the_looks(
    person: Path, settings: Settings
) -> None:
    """Now, then for good, then the project's file, then what was found."""
    root = tree(person / "some", "go.mod")
    assert found(root, settings).profile == "go"

    file = write(root / ".olympus/project.yaml", "profile: rust\n")
    assert (found(root, settings).profile, found(root, settings).chosen_by) == ("rust", f"{file} line 1")

    kept = find(root, settings, kept={str(root): "python"})
    now = find(root, settings, kept={str(root): "python"}, profile="none")
    assert kept is not None
    assert now is not None
    assert (kept.profile, kept.chosen_by) == ("python", "your choice for this project")
    assert (now.profile, now.chosen_by, now.profile_asked.system) == ("", "", None)


def test_a_profile_that_does_not_exist_is_an_error_with_the_nearest_name(person: Path, settings: Settings) -> None:
    """In our file; another program's file may name what it has."""
    root = tree(person / "some", "go.mod")
    file = write(root / ".olympus/project.yaml", "name: x\nprofile: pyhton\n")
    with pytest.raises(ProjectError) as caught:
        find(root, settings)
    assert str(caught.value) == f"{file} line 2: there is no profile 'pyhton'; did you mean 'python'?"

    file.rename(file.parent.parent / "moved")
    foreign = write(root / ".ollm/project.yaml", "type: typescript-monorepo\n")
    project = found(root, settings)
    assert project.profile == ""
    assert project.notes == (
        f"{foreign} line 1: there is no profile 'typescript-monorepo'; did you mean 'typescript'?",
    )


# Templates --------------------------------------------------------------------------------------------------------


def test_folders_of_templates_are_those_that_are_there(person: Path, settings: Settings) -> None:
    """The one that the file names first, then the usual ones."""
    root = tree(person / "some", "prompts/", ".olympus/templates/", ".ollm/templates/")
    write(root / ".olympus/project.yaml", "templates: prompts\n")

    assert found(root, settings).templates == (
        root / "prompts",
        root / ".olympus/templates",
        root / ".ollm/templates",
    )


@pytest.mark.parametrize("folder", ["..", "/etc", "a/../../b", "~/x", "link"])
def test_a_folder_of_templates_outside_of_the_project_is_refused(folder: str, person: Path, settings: Settings) -> None:
    """Neither by its name nor by a link; `~` is a name like any other."""
    root = tree(person / "some", ".git/")
    (root / "link").symlink_to("/etc")
    file = write(root / ".olympus/project.yaml", f"\ntemplates: {folder}\n")

    if folder == "~/x":
        assert found(root, settings).templates == ()
        return
    with pytest.raises(ProjectError) as caught:
        find(root, settings)
    assert str(caught.value).startswith(
        f"{file} line 2: templates = {folder!r} is not allowed; allowed: a folder below"
    )


def test_templates_behind_a_link_out_of_the_project_are_not_read(person: Path, settings: Settings) -> None:
    """A cloned repository may hold a link to anywhere."""
    root = tree(person / "some", ".git/", ".olympus/")
    (root / ".olympus/templates").symlink_to("/etc")

    assert found(root, settings).templates == ()
