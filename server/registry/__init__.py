"""What is kept on disk: the database and the artifacts. Imports no torch."""
