"""The rule for regressions: noise between seeds is no regression, planted losses are, and a comparison's texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import SpecError
from tasks.spec.presets import preset
from tasks.spec.suite import Experiment, Floors, RegressionRule, SuiteSpec, parse_suite
from tasks.spec.suite_records import CellResult, FailedCell, SuiteResult
from tasks.suite.regression import Comparison, compare_results
from tasks.suite.spread import FamilySpread, Variance, critical_t, sample_variance
from tests.tasks.suite.simulated_suites import ENVIRONMENT, SimulatedGroup, cell_of, drawn, result_of

RULE = RegressionRule()
NO_FLOORS = RegressionRule(floors=Floors(map50_voc10=0, map_coco=0, recall=0, loss=0, class_ap=0))
GROUPS = [
    SimulatedGroup("street", map50=0.55, spread=0.015),
    SimulatedGroup("street", "centralised", map50=0.72, spread=0.008),
    SimulatedGroup("laptop", map50=0.8, spread=0.006, loss=1.2),
]
SEEDS = (1, 2, 3)


def metrics(comparison: Comparison) -> set[tuple[str, str, str]]:
    return {(item.experiment, item.role, item.metric) for item in comparison.regressions}


# --- noise and planted losses -------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [SEEDS, (4, 5, 6)], ids=["same seeds", "other seeds"])
def test_noise_between_seeds_is_no_regression_over_20_reruns(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    reference = drawn(GROUPS, SEEDS, rng, "accepted")
    for _ in range(20):
        comparison = compare_results(reference, drawn(GROUPS, seeds, rng), RULE)
        assert comparison.regressions == ()
        assert comparison.compared == 3 * (4 + 4)


def test_false_alarms_are_as_rare_as_the_rule_says_without_any_floor() -> None:
    rng = np.random.default_rng(1)
    rule = NO_FLOORS.model_copy(update={"false_alarms": 0.05})
    alarms = 0
    for _ in range(150):
        factors = 2 ** rng.uniform(-1, 1, len(GROUPS))
        groups = [replace(group, spread=group.spread * factor) for group, factor in zip(GROUPS, factors, strict=True)]
        alarms += bool(compare_results(drawn(groups, SEEDS, rng), drawn(groups, SEEDS, rng), rule).regressions)
    assert alarms <= 150 * 0.05 + 3 * np.sqrt(150 * 0.05 * 0.95)


@pytest.mark.parametrize("seeds", [SEEDS, (4, 5, 6)], ids=["same seeds", "other seeds"])
def test_slower_learning_is_a_regression_of_that_experiment_alone(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    slow = replace(GROUPS[0], map50=GROUPS[0].map50 - 0.15, loss=GROUPS[0].loss * 1.3)
    for _ in range(10):
        reference = drawn(GROUPS, SEEDS, rng)
        found = metrics(compare_results(reference, drawn([slow, *GROUPS[1:]], seeds, rng), RULE))
        assert ("street", "federated", "map50_voc10") in found
        assert ("street", "federated", "test loss") in found
        assert {group[:2] for group in found} == {("street", "federated")}


def test_a_class_that_is_no_longer_learned_is_named() -> None:
    rng = np.random.default_rng(3)
    dropped = replace(GROUPS[0], classes={**GROUPS[0].classes, "chair": (0.0, 0.0)})
    reference = drawn(GROUPS, SEEDS, rng)
    comparison = compare_results(reference, drawn([dropped, *GROUPS[1:]], SEEDS, rng, "night"), RULE)
    (found,) = comparison.regressions
    assert (found.experiment, found.role, found.metric) == ("street", "federated", "AP chair")
    assert (found.seeds_before, found.seeds_after, found.after) == (3, 3, 0.0)
    assert found.before is not None
    assert found.limit is not None
    assert 0 < found.limit < found.before
    assert found.message == (
        f"street federated: AP chair {found.before:.3f} → 0.000, limit {found.limit:.3f} (3 seeds before, 3 now)"
    )
    assert (comparison.reference_run, comparison.result_run) == ("run", "night")
    back = compare_results(drawn([dropped], SEEDS, rng), drawn(GROUPS[:1], SEEDS, rng), RULE)
    assert back.regressions == ()
    assert [item.metric for item in back.improvements] == ["AP chair"]


def one_figure(values: dict[int, float], *, name: str = "map50_voc10", experiment: str = "e") -> list[CellResult]:
    return [cell_of(experiment, "federated", seed, {name: value}) for seed, value in values.items()]


def compared(before: dict[int, float], after: dict[int, float], rule: RegressionRule = RULE) -> Comparison:
    return compare_results(result_of(one_figure(before)), result_of(one_figure(after)), rule)


def test_a_noisy_class_has_a_wider_limit_than_a_quiet_one() -> None:
    rng = np.random.default_rng(4)
    classes = {"few": (0.5, 0.12), "many": (0.5, 0.01)}
    group = SimulatedGroup("e", classes=classes)
    gone = replace(group, classes=dict.fromkeys(classes, (0.0, 0.0)))
    comparison = compare_results(drawn([group], range(5), rng), drawn([gone], range(5), rng), RULE)
    room = {item.metric: (item.before or 0) - (item.limit or 0) for item in comparison.regressions}
    assert room["AP few"] > 2 * room["AP many"]


def test_one_seed_that_has_collapsed_does_not_hide_in_its_own_spread() -> None:
    before = {1: 0.500, 2: 0.510, 3: 0.505, 4: 0.495}
    assert compared(before, {**before, 3: 0.0}).regressions


def test_a_small_loss_of_all_seeds_shows_in_the_pairs() -> None:
    before = {1: 0.30, 2: 0.50, 3: 0.70, 4: 0.45, 5: 0.62}
    after = {seed: value - 0.04 for seed, value in before.items()}
    assert compared(before, after).regressions
    others = {seed + 10: value for seed, value in after.items()}
    assert not compared(before, others).regressions  # between other seeds the loss is well within the spread


def test_a_difference_below_the_floor_is_no_regression_however_certain() -> None:
    before = {1: 0.50, 2: 0.50, 3: 0.50}
    assert not compared(before, dict.fromkeys(before, 0.485)).regressions
    assert compared(before, dict.fromkeys(before, 0.47)).regressions
    strict = RegressionRule(floors=Floors(map50_voc10=0.001))
    assert compared(before, dict.fromkeys(before, 0.485), strict).regressions


SEEDED = st.dictionaries(st.integers(0, 9), st.floats(0.2, 0.8), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(before=SEEDED, after=SEEDED, less=st.floats(0, 0.2))
def test_a_regression_stays_one_if_all_values_get_worse(
    before: dict[int, float], after: dict[int, float], less: float
) -> None:
    if compared(before, after).regressions:
        assert compared(before, {seed: value - less for seed, value in after.items()}).regressions


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(9)))
def test_the_order_of_cells_changes_nothing(order: list[int]) -> None:
    rng = np.random.default_rng(5)
    reference, result = drawn(GROUPS, SEEDS, rng), drawn(GROUPS, SEEDS, rng)
    shuffled = result_of([result.cells[number] for number in order])
    rule = RegressionRule(false_alarms=0.4, floors=NO_FLOORS.floors)
    first, second = compare_results(reference, result, rule), compare_results(reference, shuffled, rule)
    assert first == second


@settings(max_examples=20, deadline=None)
@given(before=SEEDED)
def test_equal_bits_are_neither_worse_nor_better(before: dict[int, float]) -> None:
    comparison = compared(before, before, NO_FLOORS)
    assert (comparison.regressions, comparison.improvements) == ((), ())
    assert "the same figures to the last bit: e federated" in comparison.notes


def test_a_higher_loss_is_compared_relative_to_the_accepted_one() -> None:
    before = one_figure({1: 200.0, 2: 202.0, 3: 201.0}, name="loss")
    worse = compare_results(result_of(before), result_of(one_figure({1: 260.0, 2: 262.0, 3: 261.0}, name="loss")), RULE)
    (found,) = worse.regressions
    assert found.message.startswith("e federated: test loss 201 → 261, limit 2")
    assert found.limit is not None
    assert 201 * 1.05 <= found.limit < 261
    better = compare_results(
        result_of(one_figure({1: 260.0, 2: 262.0, 3: 261.0}, name="loss")), result_of(before), RULE
    )
    assert better.regressions == ()
    assert [item.metric for item in better.improvements] == ["test loss"]


# --- one seed -----------------------------------------------------------------------------------------------


def test_with_one_seed_in_all_cells_the_floor_decides_and_a_note_says_so() -> None:
    comparison = compared({1: 0.5}, {1: 0.47})
    assert [item.limit for item in comparison.regressions] == [pytest.approx(0.48)]
    assert any("the floors alone decide, no statistics: e federated" in note for note in comparison.notes)
    assert not compared({1: 0.5}, {2: 0.485}).regressions


def test_a_cell_of_one_seed_gets_the_spread_of_the_suites_other_cells() -> None:
    many = one_figure({1: 0.48, 2: 0.50, 3: 0.52, 4: 0.49, 5: 0.51}, experiment="many")
    reference = result_of([*many, *one_figure({1: 0.5}, experiment="one")])
    comparison = compare_results(reference, result_of([*many, *one_figure({2: 0.46}, experiment="one")]), RULE)
    assert comparison.regressions == ()
    assert "one seed: the spread over seeds is taken from the suite's other cells: one federated" in comparison.notes
    far = compare_results(reference, result_of([*many, *one_figure({2: 0.01}, experiment="one")]), RULE)
    assert metrics(far) == {("one", "federated", "map50_voc10")}


# --- cells and notes ----------------------------------------------------------------------------------------


def test_a_cell_that_failed_or_was_not_run_is_a_regression() -> None:
    reference = result_of(
        [
            *one_figure({1: 0.5, 2: 0.5}),
            cell_of("e", "centralised", 1, {"map50_voc10": 0.7}),
            *one_figure({1: 0.25}, experiment="old"),
        ]
    )
    result = result_of(
        one_figure({1: 0.5}), failed=[FailedCell(cell="e.s2", reason="no slot")], missing=["e.s1-central"]
    )
    comparison = compare_results(reference, result, RULE)
    assert [item.message for item in comparison.regressions] == [
        "e.s2: map50_voc10 0.500 → none: the cell failed: no slot",
        "e.s1-central: map50_voc10 0.700 → none: the cell was not run",
        "old.s1: map50_voc10 0.250 → none: the cell was not run",
    ]
    assert all(item.after is None and item.seeds_after == 0 for item in comparison.regressions)


def test_other_seeds_and_new_cells_are_noted() -> None:
    reference = result_of(one_figure({1: 0.5, 2: 0.5}))
    result = result_of(
        [*one_figure({2: 0.5, 3: 0.5}), *one_figure({1: 0.1}, experiment="new")],
        failed=[FailedCell(cell="new.s2", reason="no data")],
        missing=["new.s3"],
    )
    comparison = compare_results(reference, result, RULE)
    assert comparison.regressions == ()
    assert comparison.notes[:5] == (
        "e federated, seed 1: in the accepted result alone",
        "e federated, seed 3: not in the accepted result",
        "new federated, seed 1: not in the accepted result",
        "new.s2: failed: no data; not in the accepted result",
        "new.s3: was not run; not in the accepted result",
    )


def test_only_common_seeds_are_compared_if_one_result_has_all_seeds_of_the_other() -> None:
    comparison = compared({1: 0.9, 2: 0.5, 3: 0.1}, {2: 0.5})
    assert "the same figures to the last bit: e federated" in comparison.notes
    worse = compared({1: 0.50, 2: 0.51, 3: 0.52}, {2: 0.1})
    assert [(item.seeds_before, item.before) for item in worse.regressions] == [(1, 0.51)]


def test_another_specification_environment_and_number_of_clients_are_noted() -> None:
    before = cell_of("e", "federated", 1, {"map50_voc10": 0.5})
    after = cell_of("e", "federated", 1, {"map50_voc10": 0.5}, digest="c" * 64, clients=4)
    elsewhere = ENVIRONMENT.model_copy(update={"torch": "3"})
    comparison = compare_results(result_of([before]), result_of([after], environment=elsewhere), RULE)
    assert "e federated, seed 1: another specification than the accepted one" in comparison.notes
    assert "e.s1: 5 → 4 clients" in comparison.notes
    assert "environment: torch 2 → 3" in comparison.notes


def test_local_only_runs_give_one_value_for_each_seed_and_a_missing_device_is_named() -> None:
    def local(device: str, value: float) -> CellResult:
        return cell_of("e", "local-only", 1, {"map50_voc10": value}, device=device)

    reference = result_of([local("a", 0.2), local("b", 0.4)])
    worse = compare_results(reference, result_of([local("a", 0.1), local("b", 0.3)]), RULE)
    assert [(item.role, item.before, item.after) for item in worse.regressions] == [
        ("local-only", pytest.approx(0.3), pytest.approx(0.2))
    ]
    gone = compare_results(reference, result_of([local("a", 0.2)]), RULE)
    assert [item.message for item in gone.regressions] == [
        "e.s1-local-b: map50_voc10 0.400 → none: the cell was not run"
    ]


def test_a_lost_figure_is_a_regression_and_one_that_was_never_there_is_not() -> None:
    before = [cell_of("e", "federated", 1, {"map50_voc10": 0.5, "loss": None}, {"chair": 0.5, "table": None})]
    after = [cell_of("e", "federated", 1, {"map50_voc10": None, "loss": 1.0}, {"chair": None, "table": 0.1})]
    comparison = compare_results(result_of(before), result_of(after), RULE)
    assert [item.message for item in comparison.regressions] == [
        "e federated: map50_voc10 0.500 → none in some runs (1 seed before, 0 now)",
        "e federated: AP chair 0.500 → none in some runs (1 seed before, 0 now)",
    ]
    whole = compare_results(result_of(before), result_of(after), RULE.model_copy(update={"classes": False}))
    assert [item.metric for item in whole.regressions] == ["map50_voc10"]


def test_results_of_two_suites_are_not_compared() -> None:
    other = result_of(one_figure({1: 0.5}), suite="other", run="night")
    with pytest.raises(SpecError, match="night: expected a result of the suite suite, found other"):
        compare_results(result_of(one_figure({1: 0.5})), other, RULE)


def test_a_comparison_can_be_stored_and_read() -> None:
    comparison = compared({1: 0.5, 2: 0.5}, {1: 0.1, 2: 0.1})
    assert comparison.regressions
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


# --- the rule in the specification ----------------------------------------------------------------------------


def test_the_rule_is_not_in_the_suites_digest() -> None:
    suite = SuiteSpec(experiments=(Experiment(name="e", spec=preset("smoke")),))
    other = suite.model_copy(update={"rule": RegressionRule(false_alarms=0.1, floors=Floors(loss=0.5), classes=False)})
    assert other.digest == suite.digest
    assert parse_suite(other.model_dump(mode="json"), source="x") == other


def test_a_wrong_rule_is_refused_by_its_field() -> None:
    document = SuiteSpec(experiments=(Experiment(name="e", spec=preset("smoke")),)).model_dump(mode="json")
    with pytest.raises(SpecError, match=r"x: rule\.false_alarms: "):
        parse_suite({**document, "rule": {"false_alarms": 0}}, source="x")
    with pytest.raises(SpecError, match=r"x: rule\.floors\.map_coco: "):
        parse_suite({**document, "rule": {"floors": {"map_coco": -1}}}, source="x")


# --- spreads --------------------------------------------------------------------------------------------------


def test_the_spread_of_a_family_is_estimated_correctly() -> None:
    """Each group has 3 values. The groups' true variances are scaled inverse chi-squared, as in Smyth's model."""
    rng = np.random.default_rng(6)
    value, freedom = 0.04, 6.0
    own = {
        (str(group), "figure"): sample_variance(
            list(rng.normal(0, np.sqrt(value * freedom / rng.chisquare(freedom)), 3))
        )
        for group in range(4000)
    }
    found = FamilySpread(own, least=1e-9).prior("new")
    assert found.value == pytest.approx(value, rel=0.2)
    assert 2 < found.freedom < freedom * 1.2  # the estimate also allows for luck that a group's figures share


def test_a_figure_that_is_noisy_in_all_groups_is_expected_to_be_noisy_in_another() -> None:
    own = {(group, figure): Variance(1.0, 2) for group in "0123" for figure in range(6)}
    even = FamilySpread(own, least=1e-9)
    noisy = FamilySpread(own | {(group, 5): Variance(25.0, 2) for group in "0123"}, least=1e-9)
    assert even.prior(5) == even.prior(0)
    assert noisy.prior(5).value > 4 * noisy.prior(0).value
    assert noisy.of("0", 5).value > noisy.of("new", 5).value > noisy.of("0", 0).value


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_variance_lies_between_its_own_and_the_familys(values: list[float]) -> None:
    own = {(str(number % 3), number): Variance(value, 2) for number, value in enumerate(values)}
    family = FamilySpread(own, least=1e-4)
    for key, unit in own.items():
        prior, found = family.prior(key[1]), family.of(*key)
        low, high = sorted((unit.value, prior.value))
        assert low <= found.value * (1 + 1e-9)
        assert found.value <= high * (1 + 1e-9)
        assert found.freedom == 2 + prior.freedom > 2
    assert family.of("new", -1) == family.prior(-1)


def test_critical_values_equal_those_of_tables() -> None:
    assert critical_t(0.05, 5) == pytest.approx(2.015, abs=1e-3)
    assert critical_t(0.001, 2) == pytest.approx(22.327, abs=1e-3)


def runs_of(result: SuiteResult) -> list[str]:
    return [cell.name for cell in result.cells]


def test_a_cells_name_is_that_of_the_specification() -> None:
    assert runs_of(result_of([cell_of("e", "local-only", 7, {}, device="3"), cell_of("e", "centralised", 7, {})])) == [
        "e.s7-local-3", "e.s7-central",
    ]  # fmt: skip
