"""What a request may hold (pydantic, everything bounded) and what an answer looks like (typed dicts)."""
