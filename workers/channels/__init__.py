"""Ways to tell a customer: the seam in `channel`, and one module per channel."""
