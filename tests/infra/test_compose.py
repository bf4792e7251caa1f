"""The form of the compose files, the Dockerfile and the Kubernetes template.

``tests/integration/test_containers.py`` runs compose.yaml. Nothing here runs compose.gpu.yaml and the template.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

from infra.orchestrator.automations import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE
from infra.servers.s3 import S3Service
from infra.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "compose"
TEMPLATE = json.loads((ROOT / "infra" / "kubernetes" / "gpu-work-pool.json").read_text())
SERVICES = ("postgres", "s3", "prefect", "mlflow", "coordinator", "worker")
# ${NAME} or ${NAME:?message}; $$ is a dollar.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z0-9_]+)(:\?[^}]*)?\}")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|AUTH_KEY|_URI$|_URL$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


def example() -> dict[str, str]:
    lines = (FOLDER / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def texts(document: Any) -> list[str]:
    if isinstance(document, dict):
        return [text for value in document.values() for text in texts(value)]
    if isinstance(document, list):
        return [text for value in document for text in texts(value)]
    return [document] if isinstance(document, str) else []


def test_the_compose_file_has_the_whole_stack(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == set(SERVICES)
    commands = {name: " ".join(services[name]["command"]) for name in SERVICES}
    assert commands["postgres"] == "sh /etc/fedbench/postgres.sh"
    assert "--pool gpu --type fedbench-gpu" in commands["worker"]
    assert commands["coordinator"].startswith("sh -c until fedbench deploy; do sleep 5; done; exec ")
    assert "--pool fedbench --type process" in commands["coordinator"]
    assert "--app-name basic-auth" in commands["mlflow"]
    assert commands["prefect"].startswith("python -P -m infra.servers.prefect_closed server start")
    assert not any("deploy" in service for service in services.values())


def test_only_the_worker_gets_gpus_and_only_by_the_second_file() -> None:
    text = (FOLDER / "compose.gpu.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert set(document["services"]) == {"worker"}
    (devices,) = document["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["driver"], devices["capabilities"]) == ("nvidia", ["gpu"])
    assert "It was not run." in text


def test_every_service_is_of_one_image_without_rights(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["image"] == "fedbench:${FEDBENCH_VERSION}", name
        assert service["build"]["dockerfile"] == "infra/compose/Dockerfile", name
        assert service["build"]["args"] == {
            argument: f"${{{argument}}}" for argument in ("BASE_IMAGE", "PIP_OPTIONS", "UV_OPTIONS")
        }
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"user", "privileged", "cap_add"} & set(service), name


def test_every_service_has_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        check = service["healthcheck"]
        assert {"test", "interval", "timeout", "retries", "start_period"} <= set(check), name
        # Debian's podman-compose (1.0.3) loses the quotes of CMD.
        kind, command = check["test"]
        assert kind == "CMD-SHELL", name
        assert service["restart"] == "unless-stopped", name
        if name != "postgres":
            program, option, code = shlex.split(command)
            assert (program, option) == ("python", "-c")
            compile(code, name, "exec")


def test_services_wait_only_for_services_of_the_file(services: dict[str, dict[str, Any]]) -> None:
    def needed(name: str, above: tuple[str, ...] = ()) -> set[str]:
        assert name not in above, f"{name} waits for itself"
        direct = services[name].get("depends_on", {})
        assert all(rule == {"condition": "service_healthy"} for rule in direct.values())
        assert set(direct) <= set(services)
        return set(direct).union(*(needed(other, (*above, name)) for other in direct))

    assert needed("postgres") == needed("s3") == set()
    assert needed("mlflow") == {"postgres", "s3"}
    assert needed("coordinator") == needed("worker") == {"postgres", "s3", "prefect", "mlflow"}


def test_every_variable_is_in_the_example_and_every_secret_is_required(compose: dict[str, Any]) -> None:
    text = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    used = {match[1]: match[2] for match in VARIABLE.finditer(text)}
    given = example()
    assert set(used) == set(given)
    for name, value in given.items():
        # Compose refuses to start without a required variable and names it. No secret has a value in the example.
        required = [match[2] for match in VARIABLE.finditer(text) if match[1] == name]
        assert set(required) == ({None} if value else {f":?set {name} in .env"}), name
    assert all(not given[name] for name in given if re.search(r"PASSWORD|KEY", name))
    assert text.count("${") == len(VARIABLE.findall(text))  # no variable has another form


def test_no_password_is_written_down(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for variable, value in service["environment"].items():
            assert isinstance(value, str), f"{name}: {variable}: expected a string, because YAML changes other values"
            if not SECRET.search(variable):
                continue
            without = VARIABLE.sub("", value)
            credentials = re.search(r"//[^/@]*:([^/@]+)@", without)
            assert credentials is None, f"{name}: {variable}"
            if re.search(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|AUTH_KEY", variable):
                assert without.removeprefix("fedbench:") in ("", '","'), f"{name}: {variable}"
        assert not VARIABLE.search(" ".join(texts(service["command"]))), (
            f"{name}: expected no variable in the command, which ps prints"
        )


def test_ports_are_distinct_and_local_and_volumes_are_declared(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert all(re.fullmatch(r"\$\{BIND_ADDRESS\}:\$\{[A-Z0-9]+_PORT\}:[0-9]+", port) for port in ports)
    outside = [example()[VARIABLE.findall(port)[1][0]] for port in ports]
    inside = [port.rpartition(":")[2] for port in ports]
    assert len(set(outside)) == len(set(inside)) == len(ports) == 3
    assert example()["BIND_ADDRESS"] == "127.0.0.1"
    mounted = set()
    for service in services.values():
        for volume in service.get("volumes", []):
            source, target, *mode = re.sub(VARIABLE, "./variable", volume).split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert mode == ["ro"], volume
                assert "$" in volume or (FOLDER / source).is_file(), volume
            else:
                mounted.add(source)
    assert mounted == set(compose["volumes"])


def test_services_use_each_others_addresses(services: dict[str, dict[str, Any]]) -> None:
    listening = {"postgres": "5432", "s3": "9000", "prefect": "4200", "mlflow": "5000"}
    addresses = [
        found
        for service in services.values()
        for text in service["environment"].values()
        for found in re.findall(r"(?:@|http://)([a-z0-9-]+):([0-9]+)", VARIABLE.sub("", text))
    ]
    assert {host for host, _ in addresses} == set(listening)
    assert all(listening[host] == port for host, port in addresses)
    for name in ("s3", "prefect", "mlflow"):
        assert listening[name] in " ".join([*services[name]["command"], *services[name]["healthcheck"]["test"]])
    public = services["prefect"]["environment"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    assert services["prefect"]["environment"]["PREFECT_SERVER_UI_API_URL"] == f"{public}/api"
    assert "mlflow:5000" in services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]


def test_workers_get_their_settings_from_the_environment(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("coordinator", "worker"):
        environment = services[name]["environment"]
        # The worker takes turns itself and sends none to another pool.
        assert (environment.get("FEDBENCH_POOLS__TURNS") == "gpu") == (name == "coordinator")
        for variable, value in environment.items():
            if variable.startswith("FEDBENCH_"):
                monkeypatch.setenv(variable, VARIABLE.sub("x", value))
        settings = Settings()
        assert settings.s3.endpoint == "http://s3:9000"
        assert settings.s3.access_key is not None
        assert settings.prefect_api_url == environment["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert settings.mlflow_tracking_uri == "http://mlflow:5000"
        assert f"{settings.s3.bucket}/mlflow" in services["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"]
        assert f"/srv/s3/{settings.s3.bucket} " in services["s3"]["command"][2]
        assert any(volume.endswith(f":{settings.home}") for volume in services[name]["volumes"])
        assert settings.street_dir is not None
        assert settings.street_dir.parent == Path("/srv/data")
        assert environment[HEARTBEAT_VARIABLE] == str(HEARTBEAT_SECONDS)


def test_the_store_is_started_with_the_embedded_stores_options(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    embedded = S3Service(tmp_path).command(9000)[1:]
    address = embedded.index("--addr")
    options = embedded[address + 2 :]
    assert services["s3"]["command"][2].split("--addr 0.0.0.0:9000 ")[1].split() == options


def test_mlflows_users_are_in_its_volume_and_no_password_is_in_the_file(services: dict[str, dict[str, Any]]) -> None:
    file = configparser.ConfigParser()
    file.read(FOLDER / "mlflow-auth.ini")
    assert set(file["mlflow"]) == {
        "database_uri", "default_permission", "authorization_function", "auth_cache_ttl_seconds",
    }  # fmt: skip
    assert file["mlflow"]["database_uri"] == "sqlite:////srv/mlflow/auth.db"
    assert "mlflow:/srv/mlflow" in services["mlflow"]["volumes"]
    databases = (FOLDER / "databases.sql").read_text()
    assert databases.index("\\connect prefect") < databases.index("CREATE EXTENSION pg_trgm")
    for name in ("prefect", "mlflow"):
        assert f"CREATE DATABASE {name};" in databases
        assert services[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_the_image_runs_without_root_and_copies_existing_files() -> None:
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {word for word, _ in steps} <= {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert [rest for word, rest in steps if word == "FROM"] == ["${BASE_IMAGE}"]
    # The defaults are those of the example.
    arguments = dict(rest.split("=", 1) for word, rest in steps if word == "ARG")
    assert arguments == {name: example()[name] for name in ("BASE_IMAGE", "PIP_OPTIONS", "UV_OPTIONS")}
    copied = [name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert sorted(copied) == sorted(line[1:] for line in ignored if line.startswith("!"))
    users = [index for index, (word, _) in enumerate(steps) if word == "USER"]
    assert [steps[index][1] for index in users] == ["fedbench"]
    assert not any(word in ("RUN", "COPY") for word, _ in steps[users[0] :])
    json.loads(steps[-1][1])
    made = re.search(r"chown fedbench:fedbench ([^&\n]*)", text)
    assert made is not None
    assert set(made[1].split()) == {"/srv/home", "/srv/s3", "/srv/mlflow", "/srv/postgres"}


def test_the_readme_says_that_the_template_was_not_run() -> None:
    text = " ".join((ROOT / "infra" / "kubernetes" / "README.md").read_text(encoding="utf-8").split())
    assert "checked for form" in text
    assert "not run" in text


def test_the_template_has_exactly_the_variables_that_its_job_uses() -> None:
    used = {placeholder.name for placeholder in find_placeholders(TEMPLATE["job_configuration"])}
    assert used == set(TEMPLATE["variables"]["properties"])
    for name, variable in TEMPLATE["variables"]["properties"].items():
        assert variable["title"], name
        assert variable["description"].endswith("."), name
    assert set(TEMPLATE) == {"variables", "job_configuration"}


def test_the_template_makes_a_job_with_a_gpu() -> None:
    properties = TEMPLATE["variables"]["properties"]
    values = {name: variable["default"] for name, variable in properties.items() if "default" in variable}
    job = apply_values(TEMPLATE["job_configuration"], values | {"name": "turn", "command": ["prefect"]})["job_manifest"]
    assert (job["apiVersion"], job["kind"], job["metadata"]["generateName"]) == ("batch/v1", "Job", "turn-")
    pod = job["spec"]["template"]["spec"]
    # Prefect's Kubernetes worker requires these.
    assert (pod["parallelism"], pod["completions"], pod["restartPolicy"]) == (1, 1, "Never")
    assert "serviceAccountName" not in pod  # left out, not null, without a value
    (container,) = pod["containers"]
    assert container["name"] == "prefect-job"
    resources = container["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1
    assert container["env"][HEARTBEAT_VARIABLE] == str(HEARTBEAT_SECONDS)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod['securityContext']['runAsUser']} " in (FOLDER / "Dockerfile").read_text()
    assert not [text for text in texts(job) if "{{" in text]
