"""The code inside a patched model: where a call is in its generation, which pairs serve it, and the hooks
that merge."""
