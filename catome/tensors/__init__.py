"""Tensors alone: finding similar tokens, planning their merging, attention over merged keys. Knows torch and
no model."""
