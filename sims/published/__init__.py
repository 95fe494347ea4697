"""Results from papers, run again with this engine: ``python -m sims.published``."""
