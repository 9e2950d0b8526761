"""All Kafka: topic catalogue, event envelope, publisher, the worker runtime, dead letters."""
