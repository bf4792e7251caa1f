"""A user's work in a browser: start a federation from its form, watch it, read its artifacts, compare two runs.

``fedbench up`` starts everything that it needs. The tests drive Chromium by mouse and keyboard. Screenshots go to the
folder ``FEDBENCH_SCREENSHOTS``, or else to a temporary one; the tests print their paths.
"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.servers.login_page import MLFLOW_FRONT, login_path, write_openers
from infra.tracking.suite import CellFigures, SuiteFigures, track_suite
from tasks.spec.federation import FederationSpec
from tests.integration.browser import CHROMIUM, Browser, browser
from tests.integration.homes import assert_no_process_left
from tests.integration.stacks import RunningStack, running_stack
from tests.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

PATIENCE = 300.0  # seconds, for servers and runs on a loaded machine
FORM, API = "from-the-form", "through-the-api"
DATA = {"train_images": 40, "test_images": 10, "width": 96, "height": 80}
# The lines of each of MLflow's charts: name and number of points.
_DRAWN = "[...document.querySelectorAll('.js-plotly-plot')].map(p => p.data.map(line => [line.name, line.x.length]))"
# By how many pixels the tables are wider than the columns that they are in, and their texts wider than their cells.
_CUT_OFF = """Math.max(...[...document.querySelectorAll('table')].map(table => Math.max(
  table.getBoundingClientRect().right - (table.closest('.prose') || table.parentElement).getBoundingClientRect().right,
  ...[table.parentElement, ...table.querySelectorAll('span')].map(e => e.scrollWidth - e.clientWidth)
)))"""
# Scrolls everything to its end, as a person does to read the last lines of a log, and returns whether they have a text.
_SCROLLED_TO = """([...document.querySelectorAll('div')].forEach(e => e.scrollTop = e.scrollHeight),
  document.body.innerText.includes(TEXT))"""
PREFECT_GREEN = (34, 158, 77)  # the colour of Completed


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, screenshots: Path
) -> Iterator[RunningStack]:
    """Start servers, deployments and workers of a new home on free ports."""
    with running_stack(tmp_path_factory.mktemp("browser") / "home", plots=True) as found:
        try:
            yield found
        finally:
            capture = request.config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():
                for picture in sorted(screenshots.glob("*.png")):
                    print(f"\nscreenshot: {picture}", end="")
    assert_no_process_left(found.home)


def flow_run(stack: RunningStack, name: str) -> dict[str, Any]:
    (run,) = stack.call("/api/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
    found: dict[str, Any] = run
    return found


@pytest.fixture(scope="module")
def page(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as page:
        page.patience = 120
        yield page


@pytest.fixture(scope="module")
def shoot(screenshots: Path, page: Browser) -> Callable[[str], Image.Image]:
    """Return a function that saves the screen as ``name``.png once it no longer changes. Nothing may be cut off."""

    def keep(name: str) -> Image.Image:
        picture = page.settled()
        picture.save(screenshots / f"{name}.png")
        assert page.cut_off() <= 0, name
        return picture

    return keep


@pytest.fixture(scope="module")
def started(stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]) -> dict[str, Any]:
    """Start a flow run with the form. Return it."""
    _log_in(stack, page)
    page.click("a", "Deployments")
    deployment = stack.call("/api/deployments/name/federation/smoke")["id"]  # other deployments' names contain it
    page.click(f"a[href$='{deployment}']")
    page.click("button", "Run")
    page.click("[role=menuitem]", "Custom run")
    page.wait_for_text("Max rounds")
    page.open_tab("A name")
    page.type_into("[role=tabpanel] textarea", FORM)
    page.fill("Seed (Optional)", "4321")
    page.fill("Max rounds (Optional)", "3")
    page.choose("Best metric (Optional)", "map50_coco")
    for field, value in DATA.items():
        label = field.replace("_", " ").capitalize()
        page.fill(f"{label} (Optional)", str(value), section="Data (Optional)")
    page.run("window.scrollTo(0, 0)")
    shoot("prefect-form")
    page.click("button", "Submit")
    page.wait_for("!location.pathname.endsWith('/run')", "the form is taken")
    assert eventually(lambda: bool(_runs_of_deployment(stack)), PATIENCE), page.text()
    (run,) = _runs_of_deployment(stack)
    return run


def _runs_of_deployment(stack: RunningStack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.call("/api/flow_runs/filter", {"deployments": {"name": {"any_": ["smoke"]}}})
    return found


def _start_through_the_api(stack: RunningStack, like: dict[str, Any]) -> None:
    """Start a second federation that differs from the first in one field. It waits until the first has ended."""
    spec = like["parameters"]["spec"]
    changed = {**spec, "training": {**spec["training"], "local_epochs": 2}}
    body = {"name": API, "parameters": {"name": API, "spec": changed}, "state": {"type": "SCHEDULED"}}
    stack.call(f"/api/deployments/{like['deployment_id']}/create_flow_run", body)


def _log_in(stack: RunningStack, page: Browser) -> None:
    page.go(stack.prefect)
    page.type_into("input[type=password]", "fedbench:wrong")
    page.click("button", "Login")
    page.wait_for_text("Invalid credentials")
    page.type_into("input[type=password]", stack.keys.prefect_auth)
    page.click("button", "Login")
    page.wait_for_text("Logout")


def test_the_form_starts_a_federation_with_the_entered_values(started: dict[str, Any], stack: RunningStack) -> None:
    assert started["parameters"]["name"] == FORM
    spec = FederationSpec.model_validate(started["parameters"]["spec"])
    deployed = FederationSpec.model_validate(stack.call("/api/deployments/name/federation/smoke")["parameters"]["spec"])
    data = deployed.data.model_copy(update=DATA)
    changed = {"seed": 4321, "max_rounds": 3, "best_metric": "map50_coco", "data": data}
    assert spec == deployed.model_copy(update=changed)  # and no other field


def test_prefects_page_follows_the_run_until_it_is_completed(
    started: dict[str, Any], stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]
) -> None:
    address = f"{stack.prefect}/v2/runs/flow-run/{started['id']}"
    page.go(address)
    states = ["Scheduled", "Pending", "Running", "Completed"]
    badges = "[...document.querySelectorAll('span, div')].map(e => e.innerText)"
    first = page.wait_for(f"{badges}.find(text => {json.dumps(states)}.includes(text))", "a state")
    assert first != "Completed"
    page.wait_for(f"{badges}.some(text => ['Running', 'Completed'].includes(text))", "it runs", PATIENCE)
    _start_through_the_api(stack, started)
    page.wait_for(f"{badges}.includes('Completed')", "it ends", PATIENCE)
    page.go(address)  # a timeline that has been open from the start is not always redrawn at the end
    page.wait_for_text(FORM)
    page.wait_for("document.querySelector('canvas')", "the timeline")
    page.open_tab("Artifacts")
    page.wait_for_text("Round 3 of 3")
    page.run("window.scrollTo(0, 0)")
    shoot("prefect-run")
    assert eventually(lambda: _share(page.look("canvas"), PREFECT_GREEN) > 0.005, PATIENCE), "no green bars of rounds"
    run = flow_run(stack, FORM)
    assert (run["id"], run["state_type"]) == (started["id"], "COMPLETED")
    assert stack.home.flow_runs(FORM)[0] == (FORM, "COMPLETED")
    records = stack.home.records(FORM)
    assert [record.round for record in records] == [0, 1, 2, 3]
    stored = stack.home.stored_spec(FORM)
    assert (stored.seed, stored.max_rounds, stored.best_metric) == (4321, 3, "map50_coco")
    assert sum(update.train_size for update in records[-1].updates) == 40


def test_the_runs_page_has_the_lines_of_every_round(
    started: dict[str, Any], stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]
) -> None:
    page.open_tab("Logs")
    page.wait_for_text("up to 3 rounds")
    for number in (1, 2, 3):
        line = json.dumps(f"round {number} of 3 committed: train loss")
        page.wait_for(_SCROLLED_TO.replace("TEXT", line), f"the end of round {number}")
    page.wait_for(_SCROLLED_TO.replace("TEXT", json.dumps("Finished in state Completed()")), "the run's end")
    shoot("prefect-log")
    page.open_tab("Artifacts")


def _require_whole_tables(page: Browser) -> None:
    """Check that the open artifact's tables are whole in narrower and wider windows. Keep the usual width."""
    for width in (1280, 1600, 1400):
        page.resize(width, 1000)
        page.settled()
        assert page.run(_CUT_OFF) <= 1, width


def _share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    """Return the share of pixels that have about this colour."""
    pixels = list(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.NEAREST).getdata())
    near = sum(all(abs(a - b) < 24 for a, b in zip(pixel, colour, strict=True)) for pixel in pixels)
    return near / len(pixels)


def _open_artifact(page: Browser, stack: RunningStack, key: str, flow_run: str, interface: str = "/v2") -> None:
    body = {"artifacts": {"key": {"any_": [key]}}, "flow_runs": {"id": {"any_": [flow_run]}}}
    (artifact,) = stack.call("/api/artifacts/filter", body)
    page.go(f"{stack.prefect}{interface}/artifacts/artifact/{artifact['id']}")
    page.wait_for_text(key)


def test_the_runs_summary_has_the_rounds_and_plots(
    started: dict[str, Any], stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]
) -> None:
    page.click("a", f"federation-{FORM}")
    page.wait_for_text("Stopped by: max_rounds.")
    rows = page.run("[...document.querySelector('tbody').children].map(row => row.innerText.split(/\\s+/).slice(0, 2))")
    assert rows == [["0", "0"], ["1", "5"], ["2", "5"], ["3", "5"]]
    pictures = "[...document.querySelectorAll('img')].filter(i => i.src.startsWith('data:'))"
    both = f"({pictures}.length === 2 && {pictures}.every(i => i.complete && i.naturalWidth > 500))"
    # The page redraws its pictures while the run goes on, so wait for them and read the text in the same expression.
    assert page.wait_for(f"{both} && {pictures}[0].alt", "plots").startswith("Loss, recall")
    shoot("prefect-summary")
    _require_whole_tables(page)
    for number, name in enumerate(("plots", "sheet")):
        scroll = f"{pictures}[{number}].scrollIntoView({{block: 'start', behavior: 'instant'}})"
        page.wait_for(f"{both} && ({scroll}, true)", name)
        picture = shoot(f"prefect-summary-{name}")
        edges = f"(r => [r.left, r.top, r.right, r.bottom])({pictures}[{number}].getBoundingClientRect())"
        box = page.wait_for(f"{both} && {edges}", name)
        shown = picture.crop((int(box[0]), int(box[1]), int(box[2]), min(int(box[3]), picture.height)))
        assert shown.width > 600
        assert len(shown.getcolors(shown.width * shown.height) or []) > 50, f"{name} is blank"
    link = page.run("[...document.querySelectorAll('a')].find(a => a.innerText === 'MLflow run').href")
    assert link.startswith(f"{stack.mlflow}/#/experiments/")
    assert link.endswith(f"{stack.tracked()[FORM]['run_id']}?workflowType=machine_learning")


def test_progress_and_each_rounds_clients_are_artifacts_too(
    started: dict[str, Any], stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]
) -> None:
    _open_artifact(page, stack, f"progress-{FORM}", started["id"])
    page.wait_for_text("Progress: 100%")
    page.wait_for_text("Round 3 of 3, map50_voc10")
    _open_artifact(page, stack, f"round-{FORM}", flow_run(stack, f"{FORM} · round 3")["id"])
    page.wait_for_text("Round 3: 5 of 5 clients.")
    page.wait_for("document.querySelectorAll('tbody tr').length === 5", "a row for each client")
    updates = stack.home.records(FORM)[3].updates
    shown = page.run("[...document.querySelectorAll('tbody tr')].map(row => row.innerText.split(/\\s+/).slice(0, 2))")
    assert shown == [[update.client, str(update.train_size)] for update in updates]
    shoot("prefect-clients")
    _require_whole_tables(page)


def test_the_pages_of_prefects_older_interface_show_the_summary_too(
    started: dict[str, Any], stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]
) -> None:
    _open_artifact(page, stack, f"federation-{FORM}", started["id"], interface="")
    page.wait_for_text("Switch to V2 UI")
    page.wait_for_text("Stopped by: max_rounds.")
    drawn = "[...document.images].filter(i => i.src.startsWith('data:') && i.complete && i.naturalWidth > 500).length"
    page.wait_for(f"{drawn} === 2", "plots")
    shoot("prefect-summary-v1")


def test_mlflow_compares_the_two_runs(stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]) -> None:
    assert eventually(lambda: flow_run(stack, API)["state_type"] == "COMPLETED", PATIENCE), flow_run(stack, API)[
        "state"
    ]
    first, second = (stack.tracked()[name] for name in (FORM, API))
    experiment = first["experiment_id"]
    page.credentials(*stack.keys.mlflow_auth.split(":", 1))
    page.resize(1500, 1000)
    page.go(f"{stack.mlflow}/#/experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning")
    page.wait_for_text("2 matching runs")
    page.click("[aria-label='Close']")  # the assistant's panel
    page.type_into("input[placeholder='Search metric charts']", "global")
    page.wait_for_text("global/map_coco")
    names = json.dumps([FORM, API])
    both_in_each = f"{_DRAWN}.every(lines => {names}.every(name => lines.some(line => line[0] === name)))"
    page.wait_for(f"{_DRAWN}.length === 6 && {both_in_each}", "both runs in each chart")
    assert {tuple(line) for lines in page.run(_DRAWN) for line in lines} == {(FORM, 4), (API, 4)}  # rounds 0 to 3
    page.move_away()
    shoot("mlflow-charts")
    both = {"runs": [first["run_id"], second["run_id"]], "experiments": [experiment]}
    query = "&".join(f"{name}={urllib.parse.quote(json.dumps(value))}" for name, value in both.items())
    page.go(f"{stack.mlflow}/#/compare-runs?{query}&workflowType=machine_learning")
    page.wait_for_text("Comparing 2 Runs from 1 Experiment")
    page.wait_for_text("Run details")
    for text in (FORM, API, "training.local_epochs"):  # the field in which the runs differ
        page.wait_for_text(text)
    shoot("mlflow-compare-runs")


def test_the_comparisons_link_draws_the_map_of_both_runs_by_round(
    stack: RunningStack, page: Browser, shoot: Callable[[str], Image.Image]
) -> None:
    compared = stack.home.run("compare", FORM, API)
    assert compared.returncode == 0, compared.stdout
    links = [line.removeprefix("MLflow: ") for line in compared.stdout.splitlines() if line.startswith("MLflow: ")]
    assert len(links) == 1, compared.stdout
    link = links[0]
    page.go(link)
    both = json.dumps([FORM, API])
    page.wait_for(
        f"{_DRAWN}.some(lines => {both}.every(name => lines.some(line => line[0].includes(name) && line[1] === 4)))",
        "both runs with their rounds",
    )
    shoot("mlflow-compare-by-round")


def test_the_link_of_a_suite_opens_the_charts_of_its_cells(
    stack: RunningStack,
    page: Browser,
    shoot: Callable[[str], Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in stack.variables.items():  # as in a shell that sourced the stack's file
        if name.startswith(("MLFLOW_", "AWS_")):
            monkeypatch.setenv(name, value)
    names = {FORM: "smoke.s1", API: "smoke.s2"}
    cells = [
        CellFigures(federation, name, tags={}, figures={"final/map50_voc10": 0.1 * seed, "final/rounds": 3.0})
        for seed, (federation, name) in enumerate(names.items(), start=1)
    ]
    suite = SuiteFigures("night", {}, {}, cells, sorted_by="final/map50_voc10", complete=True)
    pages = track_suite(stack.mlflow, "fedbench", suite, {})
    assert pages is not None
    page.go(pages.children)
    page.wait_for_text("2 matching runs")  # the parent run does not match
    shown = f"{_DRAWN}.some(lines => {json.dumps(list(names.values()))}.every(n => lines.some(line => line[0] === n)))"
    page.wait_for(shown, "both cells in a chart")
    shoot("mlflow-suite")
    page.go(pages.parent)
    for name in names.values():
        page.wait_for_text(name)


def test_one_click_opens_both_pages_logged_in(stack: RunningStack, tmp_path: Path) -> None:
    """A new browser starts from the page that only the owner of the home can read."""
    login = login_path(stack.home.path, "up").as_uri()
    assert login in stack.output
    assert "Prefect's one field takes the whole string fedbench:…" in stack.output
    with browser(tmp_path / "profile") as page:
        page.patience = 120
        page.go(login)
        page.click("button", "Open both")
        page.wait_for_text("Event Feed")  # Prefect's login page has no menu
        assert page.address().startswith(f"{stack.prefect}/v2/")

        def others() -> list[str]:
            found = [info["url"] for info in page.call("Target.getTargets")["targetInfos"] if info["type"] == "page"]
            return [url for url in found if not url.startswith(stack.prefect)]

        assert eventually(lambda: others() == [stack.mlflow + MLFLOW_FRONT], page.patience), others()
        page.go(stack.mlflow + MLFLOW_FRONT)
        page.wait_for_text("fedbench")  # the experiment
        assert "Failed to" not in page.text()


def test_a_link_to_a_run_asks_once_for_the_login_and_files_that_ui_opens_never(
    started: dict[str, Any], stack: RunningStack, tmp_path: Path
) -> None:
    link = f"{stack.prefect}/v2/runs/flow-run/{started['id']}"
    with browser(tmp_path / "profile") as page:
        page.patience = 120
        page.go(link)
        page.type_into("input[type=password]", stack.keys.prefect_auth)
        page.click("button", "Login")
        page.wait_for_text("Logout")
        page.wait_for_text(FORM)
        assert page.address().startswith(link)
        page.run("localStorage.clear()")
        prefect, mlflow = write_openers(stack.home.path, stack.keys, link, stack.mlflow + MLFLOW_FRONT)
        page.go(prefect.as_uri())
        page.wait_for_text("Logout")
        page.wait_for_text(FORM)
        page.go(mlflow.as_uri())
        page.wait_for_text("Model training")
        page.wait_for_text("fedbench")
        assert page.address() == stack.mlflow + MLFLOW_FRONT
