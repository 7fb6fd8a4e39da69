"""The container files: linted, and pointing at what there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"


def tool(name: str) -> str:
    """A program that was installed with the development environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def lint(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_container_files_pass_hadolint(name: str, tmp_path: Path) -> None:
    hadolint = tool("hadolint")
    done = lint(hadolint, str(DOCKER / name))
    assert done.returncode == 0, done.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text((DOCKER / name).read_text() + "\nRUN sudo cd /tmp\nFROM python:latest\n")
    assert lint(hadolint, str(worse)).returncode != 0, "it must be able to fail"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_containers_ask_for_extras_that_there_are(name: str) -> None:
    import tomllib

    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (DOCKER / name).read_text()
    asked = text.partition("/source[")[2].partition("]")[0].split(",")
    assert set(asked) <= set(extras) and "serve" in asked
    assert "USER 10001" in text and "HEALTHCHECK" in text


def test_the_compose_file_passes_its_linter(tmp_path: Path) -> None:
    compose_lint = tool("compose-lint")
    done = lint(compose_lint, str(DOCKER / "compose.yaml"))
    assert done.returncode == 0, done.stdout
    worse = tmp_path / "compose.yaml"
    worse.write_text((DOCKER / "compose.yaml").read_text().replace("read_only: true", "privileged: true"))
    assert lint(compose_lint, str(worse)).returncode != 0, "it must be able to fail"


def test_prometheus_asks_the_service_that_there_is() -> None:
    compose: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    service = compose["services"][host]
    command = service["command"]
    assert port == "8470" and f'"--port", "{port}"' in (DOCKER / "Dockerfile").read_text()
    assert command[command.index("--allow-host") + 1] == host, "the service must know the name that it is asked by"
    secret = job["authorization"]["credentials_file"]
    assert command[command.index("--metrics-token-file") + 1] == secret
    for one in (service, compose["services"]["prometheus"]):
        assert Path(secret).name in one["secrets"] and set(one["secrets"]) <= set(compose["secrets"])
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_options_that_containers_give_are_known(fake_bundle: Path) -> None:
    """The verb takes the compose file's command: it ends at a token file that is not there, and not before."""
    command = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["onedva"]["command"]
    verb = [sys.executable, "-c", "from onedva.cli import main; main()", "serve", "-m", str(fake_bundle)]
    done = lint(*verb, *command)
    assert done.returncode == 2 and "/run/secrets/tokens" in done.stderr
