"""Measuring behaviour: many prompts under many interventions through the row engine, and the paper's experiments."""
