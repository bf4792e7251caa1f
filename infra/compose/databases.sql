-- Run once, when PostgreSQL's volume is empty, in the database prefect.
CREATE EXTENSION IF NOT EXISTS pg_trgm; -- Prefect's migrations ask for it
CREATE DATABASE mlflow;
