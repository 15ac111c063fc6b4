"""Routes shaped like OpenAI's API."""
