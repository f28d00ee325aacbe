"""What the system costs, beside named alternatives: python -m jobs.bench."""
