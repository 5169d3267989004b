"""`make sbom`: the bill of materials lists all that an image holds. The image is a made one; its packages are real."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from supply.sbom import LOCK, Inventory, SbomError, locked, make_bom, read_image

ROOT = Path(__file__).parents[2]
SITE = "opt/sluice/lib/python3.12/site-packages"
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\n'
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u14
Description: GNU C Library
 Package: not a field, but a line of the description

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: openssl
Status: install ok installed
Architecture: amd64
Source: openssl (3.0.19-1)
Version: 3.0.19-1~deb12u2
"""
PYTHON = '#define PY_MAJOR_VERSION 3\n/* Version as a string */\n#define PY_VERSION              "3.12.12"\n'
LIBRARY = {"name": "krb5-libs", "version": "1.15.1-55.el7_9", "purl": "pkg:rpm/centos/krb5-libs@1.15.1-55.el7_9"}
BUNDLED = json.dumps({"components": [{"name": "psycopg2_binary", "purl": "pkg:pypi/psycopg2_binary@2"}, LIBRARY]})


def files_of_an_image(*, without: str = "") -> Iterator[tuple[str, str]]:
    """Return the files that a bill is made from, with the metadata of the packages that are installed here."""
    for name in locked(LOCK.read_text()):
        installed = distribution(name)
        if name != without:
            folder = f"{SITE}/{name}-{installed.version}.dist-info"
            yield f"{folder}/METADATA", installed.read_text("METADATA") or ""
            if name == "psycopg2-binary":
                yield f"{folder}/sboms/auditwheel.cdx.json", BUNDLED
                yield f"{folder}/sboms/second.cdx.json", BUNDLED
    yield "usr/local/lib/python3.12/site-packages/pip-25.0.dist-info/METADATA", "Name: pip\nVersion: 25.0\n\nName: x\n"
    yield f"{SITE}/notes/METADATA", "Name: none\nVersion: 1\n"
    yield "usr/lib/os-release", OS_RELEASE
    yield "var/lib/dpkg/status", STATUS
    yield "usr/local/include/python3.12/patchlevel.h", PYTHON


def image(**options: str) -> io.BytesIO:
    """Return the file system of an image as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, text in files_of_an_image(**options):
            member = tarfile.TarInfo(name)
            data = text.encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("etc/os-release")
        link.type, link.linkname = tarfile.SYMTYPE, "../usr/lib/os-release"
        tar.addfile(link)
    archive.seek(0)
    return archive


def written(archive: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "supply.sbom"], cwd=ROOT, input=archive, capture_output=True)


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    done = written(image().getvalue())
    assert (done.returncode, done.stderr) == (0, b"")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_it_is_a_bill_of_this_version(bill: dict[str, Any]) -> None:
    from server import __version__

    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    described = bill["metadata"]["component"]
    assert (described["name"], described["version"], described["type"]) == ("sluice", __version__, "container")


def test_it_lists_every_pinned_package(bill: dict[str, Any]) -> None:
    pins = locked(LOCK.read_text())
    assert len(pins) > 15
    listed = {component.get("purl") for component in bill["components"]}
    assert {f"pkg:pypi/{name}@{version}" for name, version in pins.items()} <= listed


def test_it_lists_the_packages_of_the_system(bill: dict[str, Any]) -> None:
    debian = {component["purl"] for component in bill["components"] if component.get("purl", "").startswith("pkg:deb/")}
    assert debian == {
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:deb/debian/openssl@3.0.19-1~deb12u2?arch=amd64&distro=debian-12&upstream=openssl",
    }
    (system,) = [component for component in bill["components"] if component["type"] == "operating-system"]
    assert (system["name"], system["version"]) == ("debian", "12")


def test_it_lists_python_and_what_comes_with_it(bill: dict[str, Any]) -> None:
    found = {component.get("purl") for component in bill["components"]}
    assert {"pkg:generic/python@3.12.12", "pkg:pypi/pip@25.0"} <= found
    assert not any(component["name"] in ("none", "x") for component in bill["components"])


def test_it_lists_the_libraries_inside_a_wheel_once(bill: dict[str, Any]) -> None:
    (driver,) = [component for component in bill["components"] if component["name"] == "psycopg2-binary"]
    assert [(part["name"], part["version"], part["purl"]) for part in driver["components"]] == [tuple(LIBRARY.values())]


def test_it_states_licences(bill: dict[str, Any]) -> None:
    found = {component["name"]: component.get("licenses") for component in bill["components"]}
    assert found["gunicorn"] == [{"license": {"id": "MIT"}}]
    assert found["aiohttp"] == [{"expression": "Apache-2.0 AND MIT"}]
    assert found["psycopg2-binary"]


def test_all_references_resolve(bill: dict[str, Any]) -> None:
    references = [bill["metadata"]["component"]["bom-ref"], *(each["bom-ref"] for each in bill["components"])]
    assert len(set(references)) == len(references)
    assert {each["ref"] for each in bill["dependencies"]} <= {
        *references,
        *(part["bom-ref"] for each in bill["components"] for part in each.get("components", [])),
    }


def test_a_pinned_package_that_the_image_lacks_is_an_error() -> None:
    done = written(image(without="yarl").getvalue())
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"sbom: not in the image, or in another version: yarl==")


@pytest.mark.parametrize("given", [b"", b"no archive"])
def test_what_is_no_image_is_an_error(given: bytes) -> None:
    done = written(given)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"sbom: ")
    assert b"Traceback" not in done.stderr


def test_an_image_without_debian_and_python_has_neither() -> None:
    assert len(make_bom(read_image(image()), {}).components) > 20
    assert len(make_bom(Inventory(), {}).components) == 0
    with pytest.raises(SbomError, match="not in the image"):
        make_bom(Inventory(), {"aiohttp": "1"})
