"""Federated averaging, by literal arrays and against a double-precision sum, and the updates it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.errors import ClientError, FedbenchError, SpecError
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import FedAvgSpec
from tasks.strategies.mean import WeightedMean
from tasks.strategies.registry import build_strategy
from tasks.strategies.updates import check_update, reference_of

State = dict[str, torch.Tensor]


def _write(folder: Path, name: str, state: State) -> Path:
    file = folder / f"{name}.safetensors"
    save_file(state, file)
    return file


def _state(seed: int, batches: int = 3) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "bn.running_var": torch.rand(8, generator=generator),
        "scale": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 4),
        "bn.num_batches_tracked": torch.tensor(batches),
        "mask": torch.tensor([seed % 2 == 0, False]),
    }


def test_weighted_mean_by_literal_arrays(tmp_path: Path) -> None:
    average = WeightedMean()
    average.accumulate(_write(tmp_path, "1", {"w": torch.tensor([1.0, 2.0])}), 1, client="1")
    average.accumulate(_write(tmp_path, "2", {"w": torch.tensor([5.0, -2.0])}), 3, client="2")
    assert average.result()["w"].tolist() == [4.0, -1.0]


def test_integers_take_the_maximum_and_are_never_averaged(tmp_path: Path) -> None:
    average = WeightedMean()
    for client, batches in (("1", 10), ("2", 43), ("3", 7)):
        state = {
            "n": torch.tensor(batches),
            "steps": torch.tensor([batches, 50 - batches], dtype=torch.int32),
        }
        average.accumulate(_write(tmp_path, client, state), 100, client=client)
    result = average.result()
    assert result["n"].shape == ()
    assert result["n"].dtype == torch.int64
    assert result["n"].item() == 43
    assert result["steps"].tolist() == [43, 43]
    assert result["steps"].dtype == torch.int32


def test_many_clients_against_a_sum_in_double_precision(tmp_path: Path) -> None:
    states, sizes = [_state(seed) for seed in range(20)], [212, 344, 37, 122, 50] * 4
    average = WeightedMean(reference_of(states[0]))
    for number, (state, size) in enumerate(zip(states, sizes, strict=True)):
        average.accumulate(_write(tmp_path, str(number), state), size, client=str(number))
    result = average.result()
    for name in ("conv.weight", "bn.running_var", "scale"):
        total = sum(size * state[name].double() for state, size in zip(states, sizes, strict=True))
        torch.testing.assert_close(result[name].double(), total / sum(sizes), rtol=1e-6, atol=5e-7)
        assert result[name].dtype == torch.float32
    assert result["mask"].tolist() == [True, False]
    assert result["empty"].shape == (0, 4)


def test_the_mean_of_one_client_has_its_bits(tmp_path: Path) -> None:
    state = _state(1)
    average = WeightedMean(reference_of(state))
    average.accumulate(_write(tmp_path, "1", state), 37, client="1")
    result = average.result()
    assert list(result) == list(state)
    for name, tensor in state.items():
        assert result[name].dtype == tensor.dtype
        assert torch.equal(result[name], tensor), name


def test_the_mean_of_equal_clients_has_their_bits(tmp_path: Path) -> None:
    state = _state(2)
    file, average = _write(tmp_path, "same", state), WeightedMean()
    for number, size in enumerate((212, 344, 37, 122, 50)):
        average.accumulate(file, size, client=str(number))
    result = average.result()
    assert all(torch.equal(result[name], state[name]) for name in state)


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    files = [_write(tmp_path, str(number), {"w": torch.randn(300_001, generator=generator)}) for number in range(3)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            average = WeightedMean()
            for number, file in enumerate(files):
                average.accumulate(file, number + 1, client=str(number))
            results.append(average.result()["w"])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])


def test_half_precision_is_summed_in_float32(tmp_path: Path) -> None:
    average = WeightedMean()
    for number, value in enumerate((1.0, 1.0, 1.0078125)):  # the third differs by one step of bfloat16
        file = _write(tmp_path, str(number), {"w": torch.tensor([value], dtype=torch.bfloat16)})
        average.accumulate(file, 1, client=str(number))
    result = average.result()["w"]
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(1 + 0.0078125 / 3, rel=1e-6)


def test_a_result_is_returned_once_and_the_next_round_starts_empty(tmp_path: Path) -> None:
    average = WeightedMean()
    average.accumulate(_write(tmp_path, "a", {"w": torch.tensor([1.0])}), 5, client="1")
    first = average.result()
    average.accumulate(_write(tmp_path, "b", {"w": torch.tensor([9.0])}), 1, client="1")
    assert average.result()["w"].item() == 9.0
    assert first["w"].item() == 1.0
    with pytest.raises(FedbenchError, match="expected at least one update, found none"):
        average.result()


# --- bad updates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_values_that_are_not_finite_leave_the_mean_as_it_was(tmp_path: Path, bad: float) -> None:
    good, spoiled = _state(1), _state(2)
    spoiled["scale"] = torch.tensor(bad)  # after conv.weight, which must not have been added
    average = WeightedMean()
    average.accumulate(_write(tmp_path, "good", good), 10, client="1")
    with pytest.raises(ClientError, match=r"client 7: tensor scale: expected finite values .* found"):
        average.accumulate(_write(tmp_path, "spoiled", spoiled), 10, client="7")
    result = average.result()
    assert all(torch.equal(result[name], good[name]) for name in good)


def test_a_refused_first_update_leaves_no_trace(tmp_path: Path) -> None:
    average = WeightedMean()
    with pytest.raises(ClientError, match="client 1: tensor w"):
        average.accumulate(_write(tmp_path, "bad", {"w": torch.tensor([float("nan")])}), 10, client="1")
    average.accumulate(_write(tmp_path, "good", {"v": torch.tensor([2.0])}), 10, client="2")
    assert average.result()["v"].item() == 2.0


def _changed(change: str) -> State:
    state = _state(1)
    if change == "missing":
        del state["scale"]
    elif change == "extra":
        state["backdoor"] = torch.zeros(2, 2)
    elif change == "shape":
        state["conv.weight"] = torch.zeros(8, 3, 1, 1)
    elif change == "scalar":
        state["bn.num_batches_tracked"] = torch.tensor([3])
    elif change == "dtype":
        state["bn.running_var"] = state["bn.running_var"].double()
    elif change == "unknown":
        state["scale"] = torch.zeros((), dtype=torch.float8_e4m3fn)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"client 4: tensor scale: expected float32 \[\], found no such tensor"),
        ("extra", r"client 4: tensor backdoor: expected no such tensor, found float32 \[2, 2\]"),
        (
            "shape",
            r"client 4: tensor conv.weight: expected float32 \[8, 3, 3, 3\], found float32 \[8, 3, 1, 1\]",
        ),
        ("scalar", r"client 4: tensor bn.num_batches_tracked: expected int64 \[\], found int64 \[1\]"),
        ("dtype", r"client 4: tensor bn.running_var: expected float32 \[8\], found float64 \[8\]"),
        ("unknown", r"client 4: tensor scale: expected one of F64, .* found F8_E4M3"),
    ],
)
def test_an_update_of_another_model_is_refused(tmp_path: Path, change: str, message: str) -> None:
    reference, file = reference_of(_state(0)), _write(tmp_path, "update", _changed(change))
    with pytest.raises(ClientError, match=message):
        check_update(reference, file, client="4")
    with pytest.raises(ClientError, match=message):
        WeightedMean(reference).accumulate(file, 10, client="4")


@pytest.mark.parametrize("content", ["missing", "empty", "pickle", "truncated"])
def test_a_file_that_is_no_update_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "update.safetensors"
    if content == "empty":
        file.write_bytes(b"")
    elif content == "pickle":
        torch.save(_state(0), file)
    elif content == "truncated":
        file.write_bytes(_write(tmp_path, "whole", _state(0)).read_bytes()[:-8])
    with pytest.raises(ClientError, match="client 4: expected an update in safetensors format, found"):
        check_update(reference_of(_state(0)), file, client="4")


def test_the_check_reads_only_the_header(tmp_path: Path) -> None:
    state = _state(0)
    state["scale"] = torch.tensor(float("nan"))  # a check of the values would refuse it
    check_update(reference_of(_state(0)), _write(tmp_path, "update", state), client="4")


def test_a_second_update_of_a_client_never_counts(tmp_path: Path) -> None:
    average, file = WeightedMean(), _write(tmp_path, "1", {"w": torch.tensor([1.0])})
    average.accumulate(file, 1, client="1")
    with pytest.raises(ClientError, match="client 1: expected one update in a round, found a second"):
        average.accumulate(_write(tmp_path, "2", {"w": torch.tensor([3.0])}), 1, client="1")
    assert average.result()["w"].item() == 1.0


@pytest.mark.parametrize("weight", [0, -3])
def test_a_weight_without_images_is_refused(tmp_path: Path, weight: int) -> None:
    file = _write(tmp_path, "1", {"w": torch.tensor([1.0])})
    with pytest.raises(ClientError, match=f"client 1: expected a weight of more than 0, found {weight}"):
        WeightedMean().accumulate(file, weight, client="1")


def test_an_unknown_strategy_names_the_known_ones() -> None:
    class Novel(FedAvgSpec):
        kind: str = "novel"  # type: ignore[assignment]

    with pytest.raises(SpecError, match=r"strategy\.kind: expected one of fedavg, fedprox, .* found novel"):
        build_strategy(FederationSpec().model_copy(update={"strategy": Novel()}))
