"""The payment gateway: its seam, a simulated one, a client of one over HTTP, and the breaker that guards either."""
