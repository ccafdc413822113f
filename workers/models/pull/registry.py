"""Finds a model in a registry that speaks Ollama's protocol.

    GET /v2/NAMESPACE/NAME/manifests/TAG   -> layers: mediaType, digest "sha256:...", size
    GET /v2/NAMESPACE/NAME/blobs/DIGEST    -> the layer, by redirect from where it is stored

Source: the OCI distribution specification, sections "Pulling manifests" and "Pulling blobs", with Ollama's media types.
Of the layers only the model is fetched: its chat template, its licence and its parameters stand in the GGUF file itself.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from schemas.errors import Unprocessable
from workers.models.pull.plan import Plan, RemoteFile, Size
from workers.models.pull.sources import RegistrySource
from workers.models.pull.web import Web

_MODEL: Final = "application/vnd.ollama.image.model"
_ACCEPT: Final = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: Size


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


async def resolve_registry(web: Web, base_url: str, source: RegistrySource) -> Plan:
    """The one file of a registry's model. Raises NotFound, Unprocessable, and what `Web.json` raises."""
    root = f"{base_url.rstrip('/')}/v2/{source.repository}"
    manifest: _Manifest = await web.json(
        f"{root}/manifests/{source.tag}", source.shown, _Manifest, headers={"accept": _ACCEPT}
    )
    models = [layer for layer in manifest.layers if layer.media_type == _MODEL]
    if len(models) != 1:
        kinds = ", ".join(sorted({layer.media_type for layer in manifest.layers})) or "none"
        raise Unprocessable(
            f"{source.shown}: its manifest has {len(models)} model layers, not one; its layers: {kinds}"
        )
    layer = models[0]
    digest = _DIGEST.fullmatch(layer.digest)
    if digest is None:
        raise Unprocessable(f"{source.shown}: its manifest names {layer.digest[:80]!r}, which is no sha256 digest")
    file = RemoteFile(
        url=f"{root}/blobs/{layer.digest}",
        name=f"{source.name}.gguf",
        size_bytes=layer.size,
        sha256=digest.group(1),
        is_fixed=True,
    )
    return Plan(name=source.name, files=[file])
