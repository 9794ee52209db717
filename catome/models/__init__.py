"""The models that catome knows: one declaration for each family, and what is private in diffusers and
torch."""
