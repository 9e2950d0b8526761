"""Where a test keeps which PaymentIntent stands for a key."""


class MemoryReferences:
    """What storage.payment_intents does, in memory."""

    def __init__(self) -> None:
        self.intents: dict[str, str] = {}
        self.closed: set[str] = set()

    async def find(self, key: str) -> str | None:
        return self.intents.get(key)

    async def store(self, key: str, intent_id: str) -> str | None:
        if key in self.closed:
            return None
        return self.intents.setdefault(key, intent_id)

    async def close(self, key: str) -> str | None:
        self.closed.add(key)
        return self.intents.get(key)
