"""The files of a run's folder on this machine."""

# Written last by the run's report: once it is there, the report was made.
REPORTED = "rounds.png"
# The parts of the report that failed, with their reasons.
FAILED_FILE = "report.json"
