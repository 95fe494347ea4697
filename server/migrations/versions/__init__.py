"""One file a release of the schema."""
