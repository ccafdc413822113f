"""What a pull is asked for: sources, names and the choice among a repository's files."""

from __future__ import annotations

import pytest

from schemas.errors import BadRequest, NotFound, Unprocessable
from workers.models.pull.hub import Sibling, choose
from workers.models.pull.sources import (
    HubSource,
    RegistrySource,
    UrlSource,
    checked_file_name,
    checked_name,
    model_name_of,
    parse_source,
)
from workers.models.pull.web import origin


def hub(text: str) -> HubSource:
    source = parse_source(text)
    assert isinstance(source, HubSource)
    return source


def siblings(*names: str) -> list[Sibling]:
    return [Sibling(name, size=number * 1_000_000) for number, name in enumerate(names, 1)]


@pytest.mark.parametrize(
    ("text", "repository", "tag", "name"),
    [
        ("ollama:llama3.2", "library/llama3.2", "latest", "llama3.2"),
        ("ollama:llama3.2:1b", "library/llama3.2", "1b", "llama3.2:1b"),
        ("ollama:someone/thing:q4_K_M", "someone/thing", "q4_K_M", "thing:q4_K_M"),
    ],
)
def test_a_registry_source_names_repository_and_tag(text: str, repository: str, tag: str, name: str) -> None:
    """Without a namespace it is the library, without a tag the latest."""
    assert parse_source(text) == RegistrySource(repository, tag, text, name)


def test_a_hub_source_names_repository_revision_and_file() -> None:
    """Revision and file may be left out; a file may lie in a folder."""
    assert hub("hf:o/n") == HubSource("o/n", "main", None, "hf:o/n", "n")
    assert hub("hf:o/n@v1.2") == HubSource("o/n", "v1.2", None, "hf:o/n@v1.2", "n")
    source = hub("hf:o/n@abc/Q4/n-Q4.gguf")
    assert (source.revision, source.file, source.name) == ("abc", "Q4/n-Q4.gguf", "n-Q4")
    assert hub("hf:o/n/n-Q8.gguf").file == "n-Q8.gguf"


def test_a_url_is_shown_without_its_query() -> None:
    """A query may hold a key; the name comes from the path alone."""
    source = parse_source("https://h/a/My%20Model.gguf?sig=KEY#x")
    assert source == UrlSource("https://h/a/My%20Model.gguf?sig=KEY", "https://h/a/My%20Model.gguf", "My-Model")


@pytest.mark.parametrize(
    "text",
    [
        "plain-name",
        "ftp://h/x.gguf",
        "file:///etc/passwd",
        "https://",
        "https://h",
        "https://h:99999/x.gguf",
        "https://[broken/x.gguf",
        "https://u:p@h/x.gguf",
        "https://h/x\n.gguf",
        "ollama:",
        "ollama:../x",
        "ollama:a/b/c",
        "ollama:a:b:c",
        "ollama:a/../b",
        "hf:onlyowner",
        "hf:../n",
        "hf:o/..",
        "hf:o/n/../../x.gguf",
        "hf:o/n@/x.gguf",
        "hf:o/n@../x.gguf",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    """The error names the field."""
    with pytest.raises(BadRequest) as caught:
        parse_source(text)
    assert caught.value.details["field"] == "source"


def test_a_password_in_a_url_is_not_repeated() -> None:
    """The refusal of credentials must not be what writes them to the log."""
    with pytest.raises(BadRequest) as caught:
        parse_source("https://u:hunter2@h/x.gguf")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "..", "", "x" * 129, "a b", "ä"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    """Names become file names."""
    with pytest.raises(BadRequest):
        checked_name(name)


@pytest.mark.parametrize("path", ["../x.gguf/..", "a/.hidden", "x\x00.gguf", "a/", "ä.gguf"])
def test_file_names_of_servers_are_not_trusted(path: str) -> None:
    """Only plain names become files here."""
    assert checked_file_name(path) is None


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.gguf", "a"), ("../../b.GGUF", "b"), ("...", "model"), ("x y z.safetensors", "x-y-z"), ("é.gguf", "model")],
)
def test_a_name_is_made_of_any_file_name(file: str, name: str) -> None:
    """What comes out is a name that `checked_name` takes."""
    assert model_name_of(file) == name
    assert checked_name(model_name_of(file)) == name


def test_a_safetensors_repository_is_its_configuration_tokenizer_and_weights() -> None:
    """Programs, pickles and other formats of the weights are left alone."""
    there = siblings(
        "config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin", "modeling_x.py", "consolidated.safetensors", "README.md",
        "onnx/model.onnx", "sub/model.safetensors",
    )  # fmt: skip
    chosen = [one.rfilename for one in choose(hub("hf:o/n"), there)]
    assert chosen == [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_several_quantisations_are_listed_with_their_sizes() -> None:
    """The caller chooses; parts of one model count as one, a projector as none."""
    there = siblings("n-Q4.gguf", "n-Q8-00001-of-00002.gguf", "n-Q8-00002-of-00002.gguf", "mmproj-n.gguf")
    with pytest.raises(Unprocessable) as caught:
        choose(hub("hf:o/n"), there)
    assert "n-Q4.gguf (1.0 MB)" in str(caught.value)
    assert "n-Q8-00001-of-00002.gguf (5.0 MB)" in str(caught.value)
    assert caught.value.details["files"] == ["n-Q4.gguf", "n-Q8-00001-of-00002.gguf"]


def test_a_part_of_a_split_model_brings_the_others() -> None:
    """Half a model is none."""
    there = siblings("q/n-00001-of-00002.gguf", "q/n-00002-of-00002.gguf", "other.gguf")
    chosen = choose(hub("hf:o/n/q/n-00002-of-00002.gguf"), there)
    assert [one.rfilename for one in chosen] == ["q/n-00001-of-00002.gguf", "q/n-00002-of-00002.gguf"]


def test_a_model_of_which_parts_are_missing_is_not_begun() -> None:
    """Its other parts may be a hundred gigabytes."""
    for source in ("hf:o/n", "hf:o/n/q/a-00001-of-00003.gguf"):
        with pytest.raises(Unprocessable, match=r"of the 3 parts of q/a-00001-of-00003\.gguf the hub has 2"):
            choose(hub(source), siblings("q/a-00001-of-00003.gguf", "q/a-00003-of-00003.gguf"))


def test_files_that_are_no_model_are_not_chosen() -> None:
    """A file that is not there, a lone safetensors file, a repository without a model."""
    with pytest.raises(NotFound, match=r"there are: a\.gguf"):
        choose(hub("hf:o/n/b.gguf"), siblings("a.gguf"))
    with pytest.raises(Unprocessable, match="leave the file out"):
        choose(hub("hf:o/n/model.safetensors"), siblings("model.safetensors"))
    with pytest.raises(Unprocessable, match="holds no GGUF"):
        choose(hub("hf:o/n"), siblings("README.md", "pytorch_model.bin"))


def test_a_token_is_for_scheme_host_and_port() -> None:
    """The default port is the same as none; another scheme or port is another origin."""
    assert origin("https://h/a") == origin("https://H:443/b?c")
    assert len({origin(url) for url in ("https://h", "http://h", "https://h:8443", "https://h.x")}) == 4
