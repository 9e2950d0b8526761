"""A web page for operators: what flows, what is stuck, what failed, and replaying it."""
