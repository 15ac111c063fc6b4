"""The inference server: engine, per-request interventions, jobs, registry and HTTP surface."""
