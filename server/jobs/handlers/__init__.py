"""What each kind of job does, in terms of :mod:`mappers`; run in the worker only."""
