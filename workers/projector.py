"""Projects every topic into the read model that GetOrder reads."""

from messaging import topics

GROUP = "projector"
READS = topics.ALL
