"""All SQL: migrations and repositories."""
