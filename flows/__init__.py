"""The recipe as Prefect flows. DVC owns what is stale and what is recorded; Prefect owns order, retries and signals."""
