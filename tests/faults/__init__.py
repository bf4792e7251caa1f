"""The fault matrix: real runs, each with one fault drawn by seed, compared with an undisturbed run bit by bit.

    python -m tests.faults --faults 100 --seed 1     # make faults; run it again to continue after a stop
    python -m tests.faults --seed 1 --only 17        # repeat fault 17
    python -m tests.faults --seed 1 --table          # the table of the results so far, in Markdown

docs/faults.md describes the faults and what a run must do.
"""
