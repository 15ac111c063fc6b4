"""The embedded row engine: one request is one row; exactly one thread runs torch."""
