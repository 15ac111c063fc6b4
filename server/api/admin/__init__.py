"""Routes of this project's own: artifacts, jobs, running generations, capabilities, health."""
