-- PostgreSQL runs this once in the database prefect, when its volume is empty.
CREATE EXTENSION IF NOT EXISTS pg_trgm; -- Prefect's migrations need it
CREATE DATABASE mlflow;
