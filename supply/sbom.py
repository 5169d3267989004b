"""`make sbom`: the bill of materials of an image, from its file system.

    docker export CONTAINER | python -m supply.sbom > sbom.cdx.json

Lists the Python packages, the shared libraries inside their wheels (PEP 770), Python itself, and the packages of
Debian. Nothing of the image is run. Fails if a package of requirements.txt is missing or has another version.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from typing import IO, Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from server import __version__

LOCK = Path(__file__).parents[1] / "requirements.txt"

_METADATA = re.compile(r"(.*site-packages/[^/]+\.dist-info)/METADATA")
_BUNDLED = re.compile(r"(.*site-packages/[^/]+\.dist-info)/sboms/[^/]+\.json")
_DEBIAN = re.compile(r"var/lib/dpkg/(status|status\.d/[^/.]+)")
_OS_RELEASE = "usr/lib/os-release"  # /etc/os-release is a link to it
_PYTHON = re.compile(r"usr/local/include/python3\.\d+/patchlevel\.h")


@dataclass
class Inventory:
    """The files of an image that tell what it holds, as text. metadata, bundled: by folder of the distribution."""

    metadata: dict[str, str] = field(default_factory=dict)
    bundled: dict[str, list[str]] = field(default_factory=dict)
    debian: list[str] = field(default_factory=list)
    os_release: str = ""
    python: str = ""


class SbomError(Exception):
    """The image does not hold what it should; the message says what."""


def read_image(stream: IO[bytes]) -> Inventory:
    """Return what the file system of an image tells. stream: a tar archive, read once from its beginning to its end."""
    found = Inventory()
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            name = member.name.removeprefix("./").lstrip("/")
            if member.isfile():
                _sort_in(found, name, lambda file=member: _text(archive, file))
    return found


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None
    return file.read().decode(errors="replace")


def _sort_in(found: Inventory, name: str, read: Any) -> None:
    if distribution := _METADATA.fullmatch(name):
        found.metadata[distribution[1]] = read()
    elif distribution := _BUNDLED.fullmatch(name):
        found.bundled.setdefault(distribution[1], []).append(read())
    elif _DEBIAN.fullmatch(name):
        found.debian.append(read())
    elif name == _OS_RELEASE:
        found.os_release = read()
    elif _PYTHON.fullmatch(name):
        found.python = read()


def locked(text: str) -> dict[str, str]:
    """Return the versions of the packages of a lock file by their normal names."""
    return {
        _normal(name): version for name, version in re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^\s;]+)", text, re.MULTILINE)
    }


def make_bom(found: Inventory, lock: dict[str, str]) -> Bom:
    """Return the bill of materials. lock: the packages that have to be in it. Raise SbomError if one is not."""
    bom = Bom()
    bom.metadata.component = Component(name="sluice", version=__version__, type=ComponentType.CONTAINER)
    python = [_distribution(found, folder) for folder in sorted(found.metadata)]
    versions = {(component.name, component.version) for component in python}
    missing = [f"{name}=={version}" for name, version in lock.items() if (name, version) not in versions]
    if missing:
        raise SbomError(f"not in the image, or in another version: {', '.join(missing)}")
    for component in [*python, *_interpreter(found.python), *_debian(found)]:
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, bom.components)
    return bom


def _distribution(found: Inventory, folder: str) -> Component:
    """Return a Python package, with what its wheel brings along as its parts."""
    headers = Parser().parsestr(found.metadata[folder], headersonly=True)
    name, version = _normal(headers["Name"]), headers["Version"]
    stated = headers["License-Expression"] or headers["License"] or ""
    return Component(
        name=name,
        version=version,
        bom_ref=f"python:{folder}",
        description=headers["Summary"],
        licenses=list(_licence(stated)),
        purl=PackageURL("pypi", None, name, version),
        components=_parts(folder, found.bundled.get(folder, [])),
    )


def _licence(stated: str) -> Iterator[License]:
    first_line = stated.strip().partition("\n")[0]
    if first_line and first_line != "UNKNOWN":
        made = LicenseFactory().make_from_string(first_line)
        yield made if not isinstance(made, DisjunctiveLicense) or made.id else DisjunctiveLicense(name=first_line[:100])


def _parts(folder: str, documents: Iterable[str]) -> list[Component]:
    """Return the libraries inside a wheel, from the bills of materials in it."""
    parts = {}
    for document in documents:
        for entry in json.loads(document).get("components", []):
            if not entry.get("purl", "pkg:pypi/").startswith("pkg:pypi/"):  # those are the package itself
                parts[entry["purl"]] = Component(
                    name=entry["name"],
                    version=entry.get("version"),
                    bom_ref=f"part:{folder}:{entry['purl']}",
                    purl=PackageURL.from_string(entry["purl"]),
                )
    return list(parts.values())


def _interpreter(header: str) -> Iterator[Component]:
    """Return the Python that the image's maker has compiled, if there is one."""
    version = re.search(r'^#define PY_VERSION\s+"([^"]+)"', header, re.MULTILINE)
    if version:
        purl, cpe = (
            PackageURL("generic", None, "python", version[1]),
            f"cpe:2.3:a:python:python:{version[1]}:*:*:*:*:*:*:*",
        )
        yield Component(name="python", version=version[1], type=ComponentType.PLATFORM, purl=purl, cpe=cpe)


def _debian(found: Inventory) -> Iterator[Component]:
    """Return the system and its packages."""
    system = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', found.os_release, re.MULTILINE))
    name, version = system.get("ID", "linux"), system.get("VERSION_ID")
    if system:
        yield Component(name=name, version=version, type=ComponentType.OPERATING_SYSTEM, bom_ref="os")
    for paragraph in re.split(r"\n\n+", "\n\n".join(found.debian).strip()):
        package = Parser().parsestr(paragraph, headersonly=True)
        if package["Package"] and "installed" in (package["Status"] or "installed").split():
            qualifiers = {"arch": package["Architecture"], "distro": f"{name}-{version}"}
            if package["Source"]:  # vulnerabilities are listed by the name of the source
                qualifiers["upstream"] = package["Source"].partition(" ")[0]
            purl = PackageURL("deb", name, package["Package"], package["Version"], qualifiers)
            yield Component(name=package["Package"], version=package["Version"], bom_ref=f"{purl}", purl=purl)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Read an image's file system from standard input and write its bill of materials on standard output."""
    try:
        bom = make_bom(read_image(sys.stdin.buffer), locked(LOCK.read_text()))
    except (SbomError, tarfile.TarError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    print(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
