"""What was changed on Prefect's page stays, field by field, and `fedbench deploy` lists it or replaces it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule

from flows.deployments.cron import cron_schedule
from flows.deployments.page import Page, Plan, fields_of, plan
from flows.deployments.table import SCHEDULE, CronTimes, Deployment, deployments, form_values
from tasks.spec.federation import FederationSpec, with_fields
from tasks.spec.presets import preset

ITEM = next(item for item in deployments() if item.full_name == "federation/street5-laptop")
SUITE = next(item for item in deployments() if item.full_name == "suite/cpu")
SPEC = preset("street5_laptop")


def changed_spec(**fields: Any) -> FederationSpec:
    return with_fields(SPEC, {name.replace("__", "."): value for name, value in fields.items()}, source="x")


def page_of(item: Deployment, spec: FederationSpec | None = None, **fields: Any) -> Page:
    """Return the page of a deployment that fedbench has made from ``item`` and where ``fields`` were changed."""
    made = plan(item, None, {})
    page = after(made)
    if spec is not None:
        fields = {"parameters": {**made.fields["parameters"], "spec": form_values(spec)}, **fields}
    return replace(page, fields={**page.fields, **fields})


def after(made: Plan) -> Page:
    """Return the page after fedbench has written the plan."""
    return Page(made.fields, made.schedules, made.written)


def with_spec(spec: FederationSpec) -> Deployment:
    return replace(ITEM, parameters={"spec": form_values(spec)}, schedule=None)


def changes(item: Plan, page: Page) -> bool:
    return item.reschedules or item.fields != page.fields


def test_nothing_is_written_again_for_a_page_that_means_the_same() -> None:
    as_a_form = {"name": None, "spec": SPEC.model_dump(mode="json")}
    page = page_of(ITEM, parameters=as_a_form)
    again = plan(ITEM, page, {})
    assert not changes(again, page)
    assert (again.kept, again.replaced) == ((), ())
    assert again.written == plan(ITEM, None, {}).written


def test_a_changed_parameter_stays_and_is_listed_until_it_is_reset() -> None:
    page = page_of(ITEM, changed_spec(max_rounds=3, training__batch_size=2))
    kept = plan(ITEM, page, {})
    assert not changes(kept, page)
    assert sorted(kept.kept) == [
        f"spec.max_rounds: 3, not {SPEC.max_rounds}",
        f"spec.training.batch_size: 2, not {SPEC.training.batch_size}",
    ]
    reset = plan(ITEM, page, {}, reset=True)
    assert reset.fields == fields_of(ITEM)
    assert f"spec.max_rounds: {SPEC.max_rounds}, was 3" in reset.replaced
    assert reset.kept == ()
    assert plan(ITEM, after(reset), {}).kept == ()


def test_all_fields_of_the_page_stay() -> None:
    page = page_of(
        ITEM,
        description="mine",
        tags=["mine"],
        work_pool_name="big",
        enforce_parameter_schema=False,
        concurrency_limit=3,
        concurrency_options={"collision_strategy": "CANCEL_NEW"},
    )
    kept = plan(replace(ITEM, description="New words."), page, {})
    assert not changes(kept, page)
    assert kept.kept == (
        "description: mine, not New words.",
        f'tags: ["mine"], not {tags_of(ITEM)}',
        "work_pool_name: big, not fedbench",
        "enforce_parameter_schema: false, not true",
        "concurrency_limit: 3, not 1",
        "concurrency_options.collision_strategy: CANCEL_NEW, not ENQUEUE",
    )
    del page.fields["concurrency_limit"]
    assert "concurrency_limit: none, not 1" in plan(ITEM, page, {}).kept
    assert "concurrency_limit" not in plan(ITEM, page, {}).fields
    assert plan(ITEM, page, {}, reset=True).fields == fields_of(ITEM)


def test_a_changed_file_reaches_the_fields_that_the_page_has_not_changed() -> None:
    page = page_of(with_spec(SPEC), changed_spec(max_rounds=3))
    new = with_spec(changed_spec(seed=7, max_rounds=9))
    both = plan(new, page, {})
    assert FederationSpec.model_validate(both.fields["parameters"]["spec"]) == changed_spec(seed=7, max_rounds=3)
    assert both.kept == ("spec.max_rounds: 3, not 9",)
    assert plan(new, after(both), {}).kept == both.kept  # listed as long as it differs
    assert plan(new, after(both), {}, reset=True).fields == fields_of(new)
    reset = plan(new, page_of(with_spec(SPEC)), {}, reset=True)
    assert reset.replaced == ()  # nothing was changed on the page
    assert reset.fields == fields_of(new)


def test_changes_that_do_not_go_together_leave_the_pages_as_they_are() -> None:
    first = with_spec(changed_spec(participation__clients_per_round=3))
    page = page_of(first, changed_spec(participation__clients_per_round=3, participation__min_updates=3))
    new = with_spec(changed_spec(participation__clients_per_round=2))
    kept = plan(new, page, {})
    assert kept.fields["parameters"] == page.fields["parameters"]
    assert "spec.participation.min_updates: 3, not none" in kept.kept
    assert "spec.participation.clients_per_round: 3, not 2" in kept.kept


def test_parameters_of_the_page_that_are_no_longer_accepted_are_replaced_and_listed() -> None:
    page = page_of(ITEM, tags=["mine"])
    page.fields["parameters"] = {**page.fields["parameters"], "old": 1}
    refused = plan(ITEM, page, {}, accepts=lambda parameters: "old" not in parameters)
    assert refused.fields["parameters"] == ITEM.parameters
    assert refused.replaced == ("old: none, was 1",)
    assert [line.partition(":")[0] for line in refused.kept] == ["tags"]
    accepted = plan(ITEM, page, {})
    assert (accepted.fields, accepted.replaced) == (page.fields, ())


def test_job_variables_stay_and_new_ones_of_fedbench_are_added() -> None:
    page = page_of(ITEM, job_variables={"env": {"A": "1"}})
    newer = replace(ITEM, job_variables={"env": {**ITEM.job_variables["env"], "NEW": "2"}})
    kept = plan(newer, page, {})
    assert kept.fields["job_variables"] == {"env": {"A": "1", "NEW": "2"}}
    assert [line.partition(":")[0] for line in kept.kept][-1] == "job_variables.env.A"
    assert plan(newer, page, {}, reset=True).fields["job_variables"] == newer.job_variables


def test_without_a_record_job_variables_and_schedules_stay_and_all_else_is_replaced_and_listed() -> None:
    edited = page_of(ITEM, changed_spec(max_rounds=3), job_variables={"env": {"A": "1"}}, tags=["mine"])
    schedules = [schedule("0 4 * * *", SCHEDULE), schedule("0 5 * * *")]
    page = replace(edited, written=None, schedules=schedules)
    unknown = plan(ITEM, page, {})
    assert unknown.fields == {**fields_of(ITEM), "job_variables": {"env": {"A": "1"}}}
    assert not unknown.reschedules
    assert f"spec.max_rounds: {SPEC.max_rounds}, was 3" in unknown.replaced
    assert [line.partition(":")[0] for line in unknown.replaced] == ["spec.max_rounds", "tags"]
    assert "job_variables.env.A: 1, not none" in unknown.kept
    assert "schedule: 0 5 * * * (UTC), not none" in unknown.kept
    known = plan(ITEM, after(unknown), {})
    assert (known.kept, known.replaced) == (unknown.kept, ())
    reset = plan(ITEM, page, {}, reset=True)
    assert reset.fields == fields_of(ITEM)
    assert [item.active for item in reset.schedules] == [True, False]  # fedbench may have set the first
    assert {"job_variables.env.A: none, was 1", f'tags: {tags_of(ITEM)}, was ["mine"]'} <= {*reset.replaced}
    untouched = replace(page_of(ITEM), written=None)
    assert not changes(plan(ITEM, untouched, {}), untouched)


def tags_of(item: Deployment) -> str:
    return json.dumps(list(item.tags))


def schedule(cron: str, slug: str | None = None, *, active: bool = True) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=cron_schedule(CronTimes(cron)), active=active, slug=slug)


def test_schedules_of_the_page_stay_and_those_that_run_are_listed() -> None:
    own = schedule("0 4 * * *", SCHEDULE)
    daily = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(days=1)), active=True)
    other = schedule("0 5 * * 1").model_copy(update={"parameters": {"apply": True}})
    schedules = [own, other, schedule("0 6 * * *", active=False), daily]
    page = replace(page_of(ITEM), schedules=schedules)
    kept = plan(ITEM, page, {})
    assert not kept.reschedules
    assert kept.kept[:2] == (
        "schedule: 0 4 * * * (UTC), not off",
        'schedule: 0 5 * * 1 (UTC) with {"apply": true}, not none',
    )
    assert kept.kept[2].startswith("schedule: interval ")
    assert kept.times().startswith("runs at 0 4 * * * (UTC), 0 5 * * 1 (UTC) with")
    reset = plan(ITEM, page, {}, reset=True)
    assert [(item.slug, item.active) for item in reset.schedules] == [(SCHEDULE, False), *[(None, False)] * 3]
    assert reset.schedules[0] == schedule("0 3 * * *", SCHEDULE, active=False)
    assert "schedule: off, was 0 4 * * * (UTC)" in reset.replaced
    assert plan(ITEM, replace(page_of(ITEM), schedules=[]), {}).kept == ()  # the example does not run


def test_a_schedule_that_deploy_has_set_is_no_edit_and_is_set_again_by_reset() -> None:
    asked = {ITEM.full_name: CronTimes("0 4 * * *")}
    done = plan(ITEM, page_of(ITEM), asked)
    assert done.reschedules
    assert done.times() == "runs at 0 4 * * * (UTC)"
    page = after(done)
    assert plan(ITEM, page, {}).kept == ()
    assert not plan(ITEM, page, asked).reschedules
    gone = replace(page, schedules=[])
    assert plan(ITEM, gone, {}).kept == ("schedule: none, not 0 4 * * * (UTC)",)
    assert plan(ITEM, gone, {}, reset=True).schedules == done.schedules
    with_parameters = replace(page, schedules=[page.schedules[0].model_copy(update={"parameters": {"seed": 2}})])
    assert plan(ITEM, with_parameters, {}).kept == ('schedule: 0 4 * * * (UTC) with {"seed": 2}, not 0 4 * * * (UTC)',)
    assert plan(ITEM, with_parameters, {}, reset=True).schedules == done.schedules
    off = plan(ITEM, page, {ITEM.full_name: None})
    assert [item.active for item in off.schedules] == [False]
    assert plan(ITEM, after(off), {}).kept == ()


def test_a_new_deployment_has_its_schedule_or_the_one_that_is_asked_for() -> None:
    assert [item.active for item in plan(ITEM, None, {}).schedules] == [False]
    assert [item.active for item in plan(ITEM, None, {ITEM.full_name: None}).schedules] == [False]
    (asked,) = plan(ITEM, None, {ITEM.full_name: CronTimes("0 4 * * *")}).schedules
    assert asked == schedule("0 4 * * *", SCHEDULE)
    assert plan(with_spec(SPEC), None, {ITEM.full_name: None}).schedules == []


def test_a_deployment_whose_file_is_not_given_is_rescheduled() -> None:
    item = with_spec(SPEC)
    page = replace(page_of(item, changed_spec(max_rounds=3)), schedules=[schedule("0 4 * * *", SCHEDULE)])
    off = page.rescheduled(None)
    assert (off.reschedules, off.fields, off.times()) == (True, page.fields, "")
    assert not after(off).rescheduled(None).reschedules
    assert plan(item, after(off), {}).kept == (f"spec.max_rounds: 3, not {SPEC.max_rounds}",)  # still an edit
    assert page.rescheduled(CronTimes("0 5 * * *")).times() == "runs at 0 5 * * * (UTC)"
    assert replace(page, written=None).rescheduled(None).written is None


def test_suites_are_merged_too() -> None:
    page = page_of(SUITE, parameters={"preset": "cpu", "compare": False, "name": None})
    assert plan(SUITE, page, {}).kept == ("compare: false, not true",)
    assert plan(SUITE, page, {}).fields == page.fields
