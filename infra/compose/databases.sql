-- postgres.sh runs this once, when its volume is empty.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
\connect prefect
CREATE EXTENSION pg_trgm; -- Prefect's migrations need it
