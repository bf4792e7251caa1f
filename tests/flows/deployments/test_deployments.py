"""The table of deployments agrees with prefect.yaml and with its flows. Prefect's check accepts its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.deployments.cron import cron_schedule
from flows.deployments.schedules import by_full_names, read_schedules
from flows.deployments.table import (
    GPU_WORKER,
    PROCESS,
    SCHEDULE,
    CronTimes,
    Deployment,
    PoolNames,
    deployments,
    of_file,
    pools,
    prefect_yaml,
    with_files,
)
from infra.errors import PrefectUnavailable, SettingsError
from infra.settings import Settings
from infra.stack.prefect_api import prefect_api
from tasks.documents.by_type import members
from tasks.errors import SpecError
from tasks.spec.federation import FederationSpec, load_spec
from tasks.spec.presets import PRESETS
from tasks.spec.strategies import AnyStrategy
from tasks.spec.suite import SuiteSpec, load_suite

ROOT = Path(__file__).resolve().parents[3]
TABLE = {item.full_name: item for item in deployments()}
FEDERATIONS = [item for item in TABLE.values() if item.flow == "federation"]


def with_schedules(table: list[Deployment], asked: list[str], timezone: str) -> dict[str, CronTimes | None]:
    """Return the schedules of a command with ``asked`` by the full names of deployments."""
    return by_full_names(read_schedules(asked, timezone), [item.full_name for item in table])


def schema_of(item: Deployment) -> dict[str, Any]:
    flow: Flow[..., Any] = load_flow_from_entrypoint(item.entrypoint, use_placeholder_flow=False)
    return parameter_schema(flow).model_dump(exclude_unset=True)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return schema_of(FEDERATIONS[0])


def test_prefect_yaml_describes_the_same_deployments() -> None:
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert document["pull"] == []  # not left out: Prefect would then guess a folder, but the flows are installed
    entries = {}
    for entry in document["deployments"]:
        flow = entry["entrypoint"].rpartition(".")[2].replace("_", "-")
        entries[f"{flow}/{entry['name']}"] = entry
    assert list(entries) == list(TABLE)
    for name, entry in entries.items():
        item = TABLE[name]
        assert entry["entrypoint"] == item.entrypoint
        assert entry["work_pool"] == {"name": item.pool, "job_variables": item.job_variables}
        assert (entry["description"], tuple(entry["tags"])) == (item.description, item.tags)
        assert entry.get("parameters", {}) == item.parameters
        limit = entry.get("concurrency_limit")
        assert limit == (None if item.limit is None else {"limit": item.limit, "collision_strategy": "ENQUEUE"})
        when = item.schedule
        expected = when and {"cron": when.cron, "timezone": when.timezone, "active": when.active, "slug": SCHEDULE}
        assert entry["schedules"] == ([expected] if expected else None)
    assert text == prefect_yaml(), "write it again: python -m flows.deployments.table > prefect.yaml"


def test_each_deployment_has_a_flow_and_a_pool() -> None:
    known = {pool.name: pool.type for pool in pools()}
    assert known == {"fedbench": PROCESS, "gpu": GPU_WORKER}
    for item in TABLE.values():
        assert load_flow_from_entrypoint(item.entrypoint, use_placeholder_flow=False).name == item.flow
        assert item.pool in known
        assert item.description
        assert "fedbench" in item.tags
        assert item.schedule is None or not item.schedule.active  # no schedule is active by default


def test_a_silo_has_its_own_pool_and_resident() -> None:
    names = PoolNames(silos=("silo-3", "gpu"))
    assert [(pool.name, pool.type) for pool in pools(names)][1:] == [("gpu", GPU_WORKER), ("silo-3", GPU_WORKER)]
    assert [item.pool for item in deployments(names) if item.full_name == "resident/silo-3"] == ["silo-3"]


def test_deployments_have_the_whole_specification_of_their_preset(schema: dict[str, Any]) -> None:
    assert [item.name for item in FEDERATIONS] == [name.replace("_", "-") for name in PRESETS]
    for item, preset in zip(FEDERATIONS, PRESETS.values(), strict=True):
        spec = FederationSpec.model_validate(item.parameters["spec"])
        assert (spec, spec.digest) == (preset(), preset().digest)
        validate(item.parameters, schema, raise_on_error=True)
        assert "name" not in item.parameters  # so each scheduled run is a new federation


# A resident's parameters come from the run that starts it.
OTHERS = [item for item in TABLE.values() if item.flow not in ("federation", "resident")]


@pytest.mark.parametrize("item", OTHERS, ids=lambda item: str(item.full_name))
def test_prefect_accepts_the_parameters_of_every_deployment(item: Deployment) -> None:
    validate(item.parameters, schema_of(item), raise_on_error=True)


def test_prefect_accepts_whole_specifications_with_nulls(schema: dict[str, Any]) -> None:
    for preset in PRESETS.values():
        validate({"name": None, "spec": preset().model_dump(mode="json")}, schema, raise_on_error=True)
    validate({"name": "mine"}, schema, raise_on_error=True)


def test_prefect_accepts_every_method_and_refuses_fields_of_another(schema: dict[str, Any]) -> None:
    strategy = schema["definitions"]["FederationSpec"]["properties"]["strategy"]
    names = [choice["$ref"].rpartition("/")[2] for choice in strategy["anyOf"]]
    alone = {  # validating against the whole schema takes most of a second
        "type": "object",
        "properties": {"strategy": strategy},
        "definitions": {name: schema["definitions"][name] for name in names},
    }
    methods = members(AnyStrategy)
    assert len(methods) == len(names) >= 11
    for method in methods:
        fields = method().model_dump(mode="json")
        for right in (fields, {"kind": fields["kind"]}):
            validate({"strategy": right}, alone, raise_on_error=True)
        for wrong in ({**fields, "colour": 1}, {**fields, "kind": "fedopt"}):
            with pytest.raises(ValidationError, match="strategy"):
                validate({"strategy": wrong}, alone, raise_on_error=True)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"max_rounds": 0}, ("spec.max_rounds", "0 is less than the minimum of 1")),
        ({"rounds": 3}, ("'spec'", "'rounds' was unexpected")),
        ({"best_metric": "map"}, ("spec.best_metric", "'map' is not one of")),
        ({"training": {"local_epochs": "two"}}, ("spec.training.local_epochs", "'two' is not of type 'integer'")),
        ({"training": {"optimizer": {"kind": "sgd", "momentum": 2}}}, ("spec.training.optimizer",)),
        ({"detector": {"kind": "yolov9"}}, ("spec.detector",)),
    ],
    ids=["too small", "unknown", "choice", "type", "in a union", "kind"],
)
def test_prefect_refuses_a_wrong_field_and_names_it(
    schema: dict[str, Any], spec: dict[str, Any], says: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as refused:
        validate({"spec": spec}, schema, raise_on_error=True)
    assert all(part in str(refused.value) for part in says), refused.value


def test_a_specification_file_gives_a_deployment(tmp_path: Path, schema: dict[str, Any]) -> None:
    (tmp_path / "my_yards.yaml").write_text("max_rounds: 3\ndetector: {kind: fcos-lite0}\n")
    (tmp_path / "my yards.yaml").write_bytes((tmp_path / "my_yards.yaml").read_bytes())
    assert of_file(tmp_path / "my yards.yaml", "fedbench").full_name == "federation/my-yards"
    own = of_file(tmp_path / "my_yards.yaml", "fedbench")
    assert own.full_name == "federation/my-yards"
    assert FederationSpec.model_validate(own.parameters["spec"]) == load_spec(tmp_path / "my_yards.yaml")
    validate(own.parameters, schema, raise_on_error=True)
    (tmp_path / "suite.yaml").write_text(
        "name: yards\nexperiments: [{name: e2, spec: my_yards.yaml, set: {training.local_epochs: 2}, seeds: [1]}]\n"
    )
    suite = of_file(tmp_path / "suite.yaml", "fedbench")
    assert (suite.full_name, suite.pool) == ("suite/yards", "fedbench")
    validate(suite.parameters, schema_of(suite), raise_on_error=True)
    spec = SuiteSpec.model_validate(suite.parameters["spec"])
    assert spec.digest == load_suite(tmp_path / "suite.yaml").digest
    assert spec.experiments[0].spec.training.local_epochs == 2
    assert with_schedules([*TABLE.values(), suite], ["yards=0 1 * * 6"], "UTC") == {
        "suite/yards": CronTimes("0 1 * * 6")
    }


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("smoke.yaml", "max_rounds: 3", "smoke.yaml: federation/smoke comes with fedbench; expected another name"),
        ("s.yaml", "{name: cpu, experiments: [{name: a, spec: smoke}]}", "s.yaml: suite/cpu comes with fedbench"),
        ("s.yaml", "{name: mine, experiments: []}", "s.yaml: experiments: "),
        ("f.yaml", "max_round: 3", "f.yaml: max_round: "),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError) as refused:
        with_files(list(TABLE.values()), [tmp_path / name], "fedbench")
    assert says in str(refused.value)


def test_two_files_with_the_same_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "my_yards.yaml", tmp_path / "my-yards.yaml"]
    for file in files:
        file.write_text("max_rounds: 3")
    with pytest.raises(SpecError, match=r"my-yards.yaml: federation/my-yards is that of .*my_yards.yaml already"):
        with_files([], files, "fedbench")
    assert [item.full_name for item in with_files([], files[:1], "fedbench")] == ["federation/my-yards"]


def test_schedules_are_chosen_by_name() -> None:
    table = list(TABLE.values())
    asked = with_schedules(table, ["street5-laptop=0 3 * * *", "federation/smoke = off"], "Europe/Berlin")
    assert asked == {
        "federation/street5-laptop": CronTimes("0 3 * * *", "Europe/Berlin"),
        "federation/smoke": None,
    }
    for wrong, says in {
        "street5": "expected NAME=CRON",
        "street5=": "expected NAME=CRON",
        "smoke=0 3 * * *": "smoke: more than one deployment, federation/smoke and suite/smoke; expected one of",
        "street6=0 3 * * *": "street6: no such deployment; expected one of: federation/synthetic5",
    }.items():
        with pytest.raises(SpecError, match=says):
            with_schedules(table, [wrong], "UTC")
    for name in ("street5", "federation/street5"):
        with pytest.raises(SpecError, match="expected one schedule a deployment"):
            with_schedules(table, ["street5=0 3 * * *", f"{name}=0 4 * * *"], "UTC")


def test_an_unreadable_schedule_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--schedule: expected five cron fields, as in 0 3 \* \* \*, found '0 3'"):
        cron_schedule(CronTimes("0 3"))
    with pytest.raises(SpecError, match=r"--timezone: expected a time zone, as in Europe/Berlin, found 'Mars'"):
        cron_schedule(CronTimes("0 3 * * *", "Mars"))


@pytest.mark.parametrize(
    ("cron", "says"),
    {
        "0 25 * * *": r"hour: expected 0 to 23; found '25' in '0 25 \* \* \*'$",
        "60 * * * *": "minute: expected 0 to 59; found '60'",
        "0,61 3 * * *": "minute: expected 0 to 59; found '61'",
        "0 3 32 * *": "day of the month: expected 1 to 31, or l for the last; found '32'",
        "0 3 * 13 *": "month: expected 1 to 12, or jan to dec; found '13'",
        "0 3 * * mond": "day of the week: expected 0 .Sunday. to 7 .Sunday., or sun to sat; found 'mond'",
        "0 three * * *": "hour: expected 0 to 23; found 'three'",
        "0 3 h * *": "day of the month: .* found 'h'",
        "0 3-25 * * *": "hour: .* found '3-25'",
    }.items(),
)
def test_a_wrong_cron_field_is_named_with_what_is_allowed(cron: str, says: str) -> None:
    with pytest.raises(SpecError, match=f"^--schedule: {says}"):
        cron_schedule(CronTimes(cron))


@pytest.mark.parametrize(
    "cron", ["*/5 3 * * 1-5", "0 3 l * *", "0 3 * jan sun", "0 3 * * 7", "0 3 * * fri#2", "@daily"]
)
def test_what_prefect_takes_is_taken(cron: str) -> None:
    assert cron_schedule(CronTimes(cron)).cron == cron


def test_deploying_needs_a_prefect_server(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(SettingsError, match="prefect_api_url: expected the address of a Prefect server"),
        prefect_api(settings),
    ):
        pass
    with prefect_api(Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:9/api")) as address:
        assert address == PREFECT_API_URL.value() == "http://127.0.0.1:9/api"


def test_only_prefects_errors_are_translated(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, prefect_api_url="http://127.0.0.1:9/api")
    with pytest.raises(RuntimeError, match="mine"), prefect_api(settings):
        raise RuntimeError("mine")
    with (
        pytest.raises(PrefectUnavailable, match=r"Prefect at http://127.0.0.1:9/api: does not answer"),
        prefect_api(settings),
    ):
        raise RuntimeError("Failed to reach API at http://127.0.0.1:9/api")
