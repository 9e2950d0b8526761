"""Shows each message that is handed to a channel as a span. Recipient and content are not in it."""

from telemetry import tracing
from workers.channels.channel import Channel, Message, Undeliverable


class ObservedChannel:
    """A Channel that shows what is sent through the one inside."""

    def __init__(self, channel: Channel, name: str) -> None:
        """`name` is what the channel is called in spans: `email`, `sms`. `aclose` closes the channel inside."""
        self._channel = channel
        self._name = name

    async def send(self, message: Message) -> str:
        """See Channel."""
        attributes = {"peer.service": self._name, "orderflow.template": message.template}
        with tracing.client(f"{self._name} send", attributes) as span:
            try:
                return await self._channel.send(message)
            except Undeliverable as refusal:
                span.set("orderflow.outcome", refusal.reason)
                raise

    async def aclose(self) -> None:
        """See Channel."""
        await self._channel.aclose()
