"""The disk space of a home by its parts adds up to that of the whole."""

from __future__ import annotations

from pathlib import Path

from infra.leftovers.usage import disk_usage, size_of


def test_parts_add_up_to_the_whole_and_links_are_not_followed(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    sizes = {"s3/fedbench/a": 700, "cache/weights/ab/x": 50, "cache/data/synthetic/1.png": 40, "prefect/prefect.db": 30,
             "mlflow.db": 20, "runs/a/run.log": 5, "suites/b/report.html": 6, "services/keys.json": 3}  # fmt: skip
    for name, size in {**{f"home/{name}": size for name, size in sizes.items()}, "elsewhere/big": 10_000}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (home / "s3" / "link").symlink_to(elsewhere)
    link = (home / "s3" / "link").lstat().st_size
    found = {usage.part: usage.bytes for usage in disk_usage(home)}
    assert found["runs: plots, logs; reports of suites"] == 11
    assert found["databases of Prefect and MLflow"] == 50
    assert found["cache of weights"] == 50
    assert found["other files"] == 3
    assert found["runs: weights, records (store)"] < 700 + 2 * link + 1
    assert sum(found.values()) == size_of(home)
    assert disk_usage(tmp_path / "missing") == []
