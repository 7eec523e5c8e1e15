"""Labelled scenarios: what services do, and what a user expects of the engine. `docs/scenarios.md` is the guide."""
