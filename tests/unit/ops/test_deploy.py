"""The deployment files agree with each other and with the code. Compose itself judges them where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client import REGISTRY

from consumers import telemetry  # its import registers the metrics
from ops.cli import cli
from ops.commands.run import ROLES as ALL_ROLES
from ops.deploy import dashboards
from ops.stack import servers
from schemas.errors import ConfigError

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "ops" / "deploy"
SERVERS = {"kafka", "registry", "postgres"}
ROLES = set(ALL_ROLES)
WATCHERS = {"prometheus", "grafana"}
ALL = SERVERS | ROLES | WATCHERS | {"setup"}
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")
_HISTOGRAM = ("_bucket", "_sum", "_count")


@cache
def compose() -> dict[str, Any]:
    """The file with merge keys resolved."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return document


def compose_client_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=30, check=False)
    return done.returncode == 0


def test_compose_file_has_every_server_role_and_watcher() -> None:
    if compose_client_answers():
        command = ["docker", "compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert set(compose()["services"]) == ALL


@pytest.mark.parametrize("name", sorted(ALL))
def test_service_is_pinned_watched_and_well_formed(name: str) -> None:
    service = compose()["services"][name]
    tag = service["image"].rpartition(":")[2] if "${" not in service["image"] else service["image"].split(":-")[1]
    assert re.match(r"v?\d", tag), f"{service['image']} is not pinned"
    assert ("test" in service["healthcheck"]) != (name == "setup")
    assert set(service.get("depends_on", {})) <= ALL
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{name} listens beyond loopback"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in compose()["volumes"]


def test_no_secret_is_in_clear_but_development_defaults() -> None:
    values = {
        (name, key): str(value)
        for name, service in compose()["services"].items()
        for key, value in service.get("environment", {}).items()
        if _SECRET.search(key)
    }
    assert len(values) >= 4
    assert all(value.startswith("${") and ":-" in value for value in values.values()), values


def test_kafka_is_set_up_as_in_the_process_backend() -> None:
    environment = compose()["services"]["kafka"]["environment"]
    file = Path(servers.__file__).with_name("kafka.properties").read_text(encoding="utf-8")
    settings = dict(line.split("=", 1) for line in file.splitlines())
    shared = {key: value for key, value in settings.items() if key.startswith(("group.", "auto.", "message."))}
    assert len(shared) >= 7
    for key, value in shared.items():
        assert str(environment["KAFKA_" + key.upper().replace(".", "_")]) == value, key


@pytest.mark.parametrize("name", sorted(ROLES | {"setup"}))
def test_commands_of_the_roles_exist(name: str) -> None:
    command = compose()["services"][name]["command"]
    lines = [["run", *command[1:]]] if name in ROLES else [part.split()[1:] for part in command[0].split("; ")]
    for arguments in lines:
        at: click.Command = cli
        context = click.Context(cli)
        while isinstance(at, click.Group):
            found = at.get_command(context, arguments.pop(0))
            assert found is not None, f"{command}: no such command"
            at = found
        at.make_context(name, list(arguments))


def test_prometheus_asks_every_role_where_it_answers() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert {job["job_name"] for job in jobs} == ROLES
    for job in jobs:
        (found,) = job["dns_sd_configs"]
        command = compose()["services"][job["job_name"]]["command"]
        assert found["names"] == [job["job_name"]]
        assert command[command.index("--metrics-port") + 1] == str(found["port"])


def test_dashboard_asks_only_for_metrics_that_exist() -> None:
    known = set()
    for metric in REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": _HISTOGRAM, "info": ("_info",)}.get(metric.type, ("",))
        known |= {metric.name + suffix for suffix in suffixes}
    asked = {name for expression in dashboards.expressions() for name in re.findall(r"kintsugi_\w+", expression)}
    assert len(asked) >= 10
    assert not asked - known


def test_committed_dashboard_is_the_generated_one_and_is_provisioned() -> None:
    assert dashboards.TARGET.read_text(encoding="utf-8") == dashboards.text()
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    uid = source["datasources"][0]["uid"]
    panels = json.loads(dashboards.text())["panels"]
    assert all(panel["datasource"]["uid"] == uid for panel in panels)
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/kintsugi.yml").read_text(encoding="utf-8"))
    mounts = compose()["services"]["grafana"]["volumes"]
    assert any(provider["providers"][0]["options"]["path"] in mount for mount in mounts)


def test_image_is_built_from_files_that_exist() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.M)
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for source in (name for line in copied for name in line.split()):
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}\n" in allowed


def test_metrics_port_that_is_taken_is_a_wrong_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="in use"):
        telemetry.serve_metrics(taken.getsockname()[1])
