"""The fault matrix: real runs, each with one fault drawn by seed, held against an undisturbed run bit by bit.

    python -m tests.faults --faults 100 --seed 1     # make faults; the same command goes on where it was stopped
    python -m tests.faults --seed 1 --only 17        # fault 17 again
    python -m tests.faults --seed 1 --table          # the table of the results so far, in Markdown

docs/faults.md says what the faults are and what is expected of a run.
"""
