"""The HTTP surface: OpenAI-shaped routes, administration, errors. No torch: the engine is reached by queues only."""
