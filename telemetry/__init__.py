"""How the system is seen: logs, metrics, trace context."""
