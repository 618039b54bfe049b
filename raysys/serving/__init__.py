"""A finished run behind HTTP, on Ray Serve."""
