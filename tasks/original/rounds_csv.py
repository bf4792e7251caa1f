"""A run's rounds as the table that the original benchmark makes of its server's log (``log_formatter.py``).

Its columns are ``round,train_loss,test_map,test_recall``, with four decimals. The original's round 0 is the first that
trains, and the initial model is never scored. So its round r is round r + 1 here, and round 0 is left out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from tasks.spec.records import RoundRecord

COLUMNS = ("round", "train_loss", "test_map", "test_recall")


def rounds_csv(records: Iterable[RoundRecord]) -> str:
    """Return the table of ``records``: mean loss, ``map50_voc10`` and recall of each round that trained.

    A missing value is left empty; the original wrote 0. If the rounds scored no test set, the figures are those on
    held-out images.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        if record.round > 0:
            figures = (record.metrics.train_loss, record.shown.map50_voc10, record.shown.recall)
            writer.writerow([record.round - 1, *("" if value is None else round(value, 4) for value in figures)])
    return text.getvalue()
