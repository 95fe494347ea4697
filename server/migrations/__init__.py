"""Alembic migrations, from the first schema on."""
