"""``interlock doctor``: what this machine, data directory and model are fit for, each finding with its remedy."""
