"""Hand-made run folders for the tests of the checker: a clean one, to be spoilt before it is written."""

import base64
import json
import pathlib
import time
import uuid
from collections.abc import Callable
from typing import Any

from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.events.v1.order_event_pb2 import OrderEvent, OrderEventType
from orderflow.orders.v1.order_pb2 import LineItem, Money, NotificationChannel, Order, OrderStatus, PaymentStatus
from orderflow.orders.v1.order_service_pb2 import (
    CancelOrderRequest,
    CompleteOrderRequest,
    CreateOrderRequest,
    RefundOrderRequest,
    ShipOrderRequest,
)

NOW = 1_800_000_000.0
GROUPS = {
    "order-processor": ["orders"],
    "payment-processor": ["orders"],
    "notification-email": ["orders", "payments"],
    "notification-sms": ["orders", "payments"],
}
LIFECYCLE = {
    "ORDER_CREATED", "ORDER_PROCESSING", "ORDER_REJECTED", "ORDER_PAID", "PAYMENT_FAILED", "ORDER_SHIPPED",
    "ORDER_COMPLETED", "ORDER_CANCELLED", "ORDER_EXPIRED", "PAYMENT_REFUNDED",
}  # fmt: skip
HANDLES = {
    "order-processor": {
        "ORDER_CREATED", "ORDER_CANCEL_REQUESTED", "ORDER_SHIP_REQUESTED", "ORDER_COMPLETE_REQUESTED",
        "ORDER_EXPIRY_REQUESTED",
    },
    "payment-processor": {"ORDER_PROCESSING", "ORDER_CANCELLED", "ORDER_REFUND_REQUESTED", "PAYMENT_REPORTED"},
    "notification-email": LIFECYCLE,
    "notification-sms": LIFECYCLE,
}  # fmt: skip
COMMANDS = {
    "CancelOrder": ("CANCEL", CancelOrderRequest),
    "ShipOrder": ("SHIP", ShipOrderRequest),
    "CompleteOrder": ("COMPLETE", CompleteOrderRequest),
    "RefundOrder": ("REFUND", RefundOrderRequest),
}
MONEY = {"PROCESSING": "PENDING", "PAID": "CAPTURED", "PAYMENT_FAILED": "DECLINED", "EXPIRED": "NONE"}
CHANNELS = {
    "notification-email": NotificationChannel.NOTIFICATION_CHANNEL_EMAIL,
    "notification-sms": NotificationChannel.NOTIFICATION_CHANNEL_SMS,
}
SKU = "SKU-1"

Row = dict[str, Any]


def text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


class SavedRun:
    """A run's folder as data. It begins clean: two orders paid, one declined, one rejected, one of unknown payment.

    Then one each that was completed, refunded in parts, cancelled unpaid, while it was charged, and paid, one whose
    refund the gateway does not answer for, and one that has expired.

    `gap` leaves out a revision of the rejected order, everywhere alike.
    """

    def __init__(self, *, gap: bool = False) -> None:
        self._step = 1
        self.clients: list[Row] = []
        self.topics: list[Row] = []
        self.aborted: list[Row] = []
        self.gateway: list[Row] = []
        self.mail: dict[str, str] = {}
        self.tables: dict[str, list[Row]] = {
            name: []
            for name in (
                "orders", "payments", "payment_entries", "refunds", "outcomes", "command_answers", "order_views",
                "order_events", "dead_letters", "projection_positions", "projection_failures", "stock",
            )
        }  # fmt: skip
        self.faults: list[Row] = [
            {"kind": "gateway", "target": "gateway", "start": NOW, "end": NOW + 5},
            {"kind": "kill", "target": "notification-email", "start": NOW + 20, "end": NOW + 21, "counts": True},
        ]
        self.logs = {"order-processor.log": '{"event": "process.started"}\n{"event": "worker.partition.fenced"}\n'}
        self.info: Row = {
            "initial_stock": {SKU: 100},
            "canaries": ["canary@customers.example", "+4915100000000"],
            "delays": [1, 3],
            "attempts": 3,
            "settled": True,
            "settle_limit": 60.0,
            "waits_for": "",
            "unhealthy": [],
            "required_dangers": ["fenced producer"],
        }
        self.paid = self._order("paid", "pm_card_visa")
        self.declined = self._order("declined", "pm_card_chargeDeclined")
        self._step = 2 if gap else 1
        self.rejected = self._order("rejected", "pm_card_visa")
        self._step = 1
        self.unknown = self._order("unknown", "pm_card_visa")
        self.paid_too = self._order("paid too", "pm_card_visa")
        self.completed = self._order("completed", "pm_card_visa", self._complete)
        self.refunded = self._order("refunded", "pm_card_visa", self._refund_in_parts)
        self.cancelled = self._order("cancelled", "pm_card_visa", self._cancel)
        self.charged_late = self._order("charged late", "pm_card_visa", self._charge_late)
        self.paid_back = self._order("paid back", "pm_card_visa", self._cancel_paid)
        self.not_paid_back = self._order("not paid back", "pm_card_visa", self._cancel_in_vain)
        self.expired = self._order("expired", "pm_card_visa", self._expire)
        self.tables["stock"].append({"sku": SKU, "available": 90, "held": 2, "sold": 8})
        self.garbage = self._invalid(b"\xff garbage", retried=False)
        self.newer = self._invalid(
            OrderEvent(
                event_id=a_uuid("newer"), type=99, order=Order(order_id=a_uuid("newer order"))
            ).SerializeToString(),
            key=a_uuid("newer order").encode(),
            retried=True,
        )
        self.aborted.append({**self.topics[0], "offset": 1000})
        self.end()

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(self.info))
        write_lines(folder / "clients.jsonl", self.clients)
        write_lines(folder / "topics.jsonl", self.topics)
        write_lines(folder / "topics-uncommitted.jsonl", self.topics + self.aborted)
        write_lines(folder / "gateway.jsonl", self.gateway)
        write_lines(folder / "faults.jsonl", self.faults)
        for part, files in (("mail", self.mail), ("logs", self.logs)):
            (folder / part).mkdir(exist_ok=True)
            for name, content in files.items():
                (folder / part / name).write_text(content)
        (folder / "database").mkdir(exist_ok=True)
        for table, rows in self.tables.items():
            write_lines(folder / "database" / f"{table}.jsonl", rows)
        return folder

    def end(self) -> None:
        """Lets everybody stand at the end of the topics as they are now."""
        names = ["orders", "payments", "notifications", "dlq"]
        names += [f"{group}.retry.{delay}s" for group in GROUPS for delay in (1, 3)]
        ends = {
            name: 1 + max([row["offset"] for row in self.topics if row["topic"] == name], default=-1) for name in names
        }
        self.info["ends"] = {name: {"0": {"first": 0, "stable": end, "high": end}} for name, end in ends.items()}
        self.info["committed"] = {
            group: {
                name: {"0": end} for name, end in ends.items() if name in reads or name.startswith(f"{group}.retry.")
            }
            for group, reads in GROUPS.items()
        }
        self.tables["projection_positions"] = [
            {"topic": name, "partition": 0, "position": ends[name]} for name in names[:4]
        ]

    # -- making ------------------------------------------------------------------------------------------------------

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Row | None = None, at: float = 0.0
    ) -> Row:
        row = {
            "topic": topic,
            "partition": 0,
            "offset": sum(each["topic"] == topic for each in self.topics),
            "timestamp": int((NOW + at) * 1000),
            "key": text(key),
            "value": text(value),
            "headers": [[name, text(str(content).encode())] for name, content in (headers or {}).items()],
        }
        self.topics.append(row)
        return row

    def emit(self, event: OrderEvent, topic: str) -> Row:
        """Appends an event, projects it and lets every group that handles it decide on nothing."""
        row = self.append(topic, event.order.order_id.encode(), event.SerializeToString())
        self.tables["order_events"].append(
            {
                "order_id": event.order.order_id,
                "event_id": event.event_id,
                "topic": topic,
                "partition": 0,
                "record_offset": row["offset"],
                "event": row["value"],
            }
        )
        name = OrderEventType.Name(event.type).removeprefix("ORDER_EVENT_TYPE_")
        for group, reads in GROUPS.items():
            if topic in reads and name in HANDLES[group]:
                self.tables["outcomes"].append(
                    {
                        "group_name": group,
                        "event_id": event.event_id,
                        "topic": topic,
                        "partition": 0,
                        "record_offset": row["offset"],
                        "events": [],
                        "stored_time": NOW + 50,
                    }
                )
        return row

    def outcome(self, group: str, event_id: str) -> Row:
        return next(row for row in self.tables["outcomes"] if (row["group_name"], row["event_id"]) == (group, event_id))

    def rows(self, table: str, order_id: str) -> list[Row]:
        return [row for row in self.tables[table] if row["order_id"] == order_id]

    def call(self, order: Order, *, request_id: str, outcome: str = "ok") -> None:
        number = len(self.clients)
        request = CreateOrderRequest(
            user_id=order.user_id,
            email=order.email,
            phone=order.phone,
            items=order.items,
            payment_method=order.payment_method,
            request_id=request_id,
        )
        self.clients.append(
            {"kind": "call", "call": number, "caller": "local", "request": text(request.SerializeToString())}
        )
        answer = {"kind": outcome, "call": number, "reason": ""}
        self.clients.append(answer | ({"order": text(order.SerializeToString())} if outcome == "ok" else {}))

    def event(self, cause: OrderEvent | None, name: str, order: Order, **details: Any) -> OrderEvent:
        source = "server"
        if cause is not None:
            by_payments = name in ("ORDER_PAID", "PAYMENT_FAILED", "PAYMENT_REFUNDED")
            source = "payment-processor" if by_payments else "order-processor"
        event = OrderEvent(
            event_id=a_uuid(f"{order.order_id}{name}{order.revision}{cause.event_id if cause is not None else ''}"),
            type=OrderEventType.Value(f"ORDER_EVENT_TYPE_{name}"),
            order=order,
            revision=order.revision,
            **details,
        )
        event.metadata.source = source
        event.metadata.caller = "local"
        if cause is not None:
            event.metadata.causation_id = cause.event_id
        return event

    def command(
        self, life: list[OrderEvent], method: str, *, refusal: str = "", caller: str = "local", **details: Any
    ) -> OrderEvent:
        """Has a client ask something of an order, and the order refuse it, or say that it was done before."""
        order_id, number = life[0].order.order_id, len(self.clients)
        name, request_type = COMMANDS[method]
        request = request_type(order_id=order_id, request_id=f"command {number}", **details)
        command = self.event(None, f"ORDER_{name}_REQUESTED", Order(order_id=order_id))
        command.event_id = a_uuid(f"command {number}")
        command.metadata.caller, command.command.request_id = caller, request.request_id
        asked = getattr(command, f"order_{name.lower()}_requested")
        asked.MergeFromString(type(asked)(**details).SerializeToString())
        asked.SetInParent()
        self.emit(command, "orders")
        self.answer(command, refusal=refusal, status=life[-1].order.status)
        if not caller:
            return command
        self.clients.append(
            {
                "kind": "command", "call": number, "caller": "local", "method": method,
                "request": text(request.SerializeToString()),
            }
        )  # fmt: skip
        answer = {"call": number, "reason": refusal, "order": text(life[-1].order.SerializeToString())}
        self.clients.append({"kind": "refused" if refusal else "ok", **answer})
        return command

    def sweep(self, life: list[OrderEvent], name: str, slot: int, *, refusal: str = "") -> OrderEvent:
        """Has the sweep of a slot ask something of an order."""
        command = self.event(None, f"ORDER_{name}_REQUESTED", Order(order_id=life[0].order.order_id))
        command.event_id = a_uuid(f"sweep {slot}")
        command.metadata.source, command.metadata.caller = "order-processor", ""
        getattr(command, f"order_{name.lower()}_requested").SetInParent()
        self.emit(command, "orders")
        self.answer(command, refusal=refusal, status=life[-1].order.status)
        return command

    def capture(self, life: list[OrderEvent]) -> None:
        """Has the gateway charge an order, and PostgreSQL book it."""
        self._send(life, approved=True)
        self._book(life[0].order.order_id, "capture", 1000)

    def answer(self, command: OrderEvent, *, refusal: str = "", status: int = 0) -> None:
        self.tables["command_answers"].append(
            {"event_id": command.event_id, "refusal": refusal, "refused_status": status if refusal else 0}
        )

    def obey(
        self,
        life: list[OrderEvent],
        method: str,
        event: str,
        status: str,
        *,
        before: Order | None = None,
        **details: Any,
    ) -> OrderEvent:
        """Has a client ask something of an order, and the order do it. `before`: as it stood, if not as it stands."""
        command = self.command(life, method, **details)
        life.append(self.follow(command, event, status, "orders", "order-processor", before or life[-1].order))
        self.clients[-1]["order"] = text(life[-1].order.SerializeToString())
        return command

    def cancel(self, life: list[OrderEvent]) -> None:
        """Has a client cancel an order, and the payment processor close its key."""
        self.obey(life, "CancelOrder", "ORDER_CANCELLED", "CANCELLED", reason="CHAOS")
        self.gateway.append({"kind": "close", "time": NOW, "key": f"charge-{life[0].order.order_id}"})

    def give_back(self, life: list[OrderEvent], cause: OrderEvent, amount_minor: int) -> None:
        """Gives a part of an order's charge back; clients that asked for it are to be told."""
        amount = Money(currency_code="EUR", amount_minor=amount_minor)
        order = Order()
        order.CopyFrom(life[-1].order)
        order.refunded.CopyFrom(amount)
        order.refunded.amount_minor += life[-1].order.refunded.amount_minor
        whole = order.refunded.amount_minor == order.total.amount_minor
        order.payment_status = PaymentStatus.Value(f"PAYMENT_STATUS_{'' if whole else 'PARTIALLY_'}REFUNDED")
        status = OrderStatus.Name(order.status).removeprefix("ORDER_STATUS_")
        status = "REFUNDED" if whole and status not in ("CANCELLED", "EXPIRED") else status
        charge = next(line for line in self.gateway if line.get("order_id") == order.order_id)
        self.gateway.append(
            {
                "kind": "refund", "time": NOW, "key": f"refund-{cause.event_id}", "reference": f"re_{cause.event_id}",
                "charge_reference": charge["reference"], "amount_minor": amount_minor, "currency_code": "EUR",
            }
        )  # fmt: skip
        self.tables["refunds"].append(
            {"order_id": order.order_id, "event_id": cause.event_id, "state": "done", "amount_minor": amount_minor}
        )
        self._book(order.order_id, "refund", amount_minor)
        refunded = {"amount": amount, "whole": whole}
        life.append(
            self.follow(
                cause, "PAYMENT_REFUNDED", status, "payments", "payment-processor", order, payment_refunded=refunded
            )
        )  # fmt: skip

    def _complete(self, life: list[OrderEvent]) -> None:
        """With a copy of a call and another that finds it done."""
        self._pay(life)
        command = self.obey(life, "ShipOrder", "ORDER_SHIPPED", "SHIPPED", carrier="Parcel Service")
        self.append("orders", command.order.order_id.encode(), command.SerializeToString())
        self.clients += [{**line, "call": len(self.clients)} for line in self.clients[-2:]]
        self.obey(life, "CompleteOrder", "ORDER_COMPLETED", "COMPLETED")
        self.command(life, "CompleteOrder")

    def _refund_in_parts(self, life: list[OrderEvent]) -> None:
        self._pay(life)
        part = Money(currency_code="EUR", amount_minor=600)
        for amount_minor in (600, 400):
            asked = {"amount": part} if amount_minor == 600 else {}
            command = self.command(life, "RefundOrder", **asked)
            self.give_back(life, command, amount_minor)
            self.clients[-1]["order"] = text(life[-1].order.SerializeToString())
            if amount_minor == 600:
                self.command(life, "RefundOrder", refusal="REFUND_TOO_LARGE", amount=part)

    def _cancel(self, life: list[OrderEvent]) -> None:
        """Before anything was sent to the gateway."""
        self.cancel(life)
        self.owe(life[0].order.order_id, "closed")

    def _charge_late(self, life: list[OrderEvent]) -> None:
        """Cancelled while the charge was on its way."""
        self.cancel(life)
        self.capture(life)
        self.give_back(life, life[-1], 1000)

    def _cancel_paid(self, life: list[OrderEvent]) -> None:
        self._pay(life)
        self.cancel(life)
        self.give_back(life, life[-1], 1000)
        self.command(life, "RefundOrder", refusal="ILLEGAL_TRANSITION")

    def _cancel_in_vain(self, life: list[OrderEvent]) -> None:
        """The gateway never says whether it gave the money back."""
        self._pay(life)
        self.cancel(life)
        self.tables["refunds"].append(
            {
                "order_id": life[0].order.order_id, "event_id": life[-1].event_id, "state": "intended",
                "amount_minor": 1000,
            }
        )  # fmt: skip
        self.give_up(life[-1], "GATEWAY_CHARGE_UNKNOWN")

    def _expire(self, life: list[OrderEvent]) -> None:
        """At the second sweep: when the first asked a charge was open."""
        for slot, refusal in ((1, "CHARGE_OPEN"), (2, "")):
            command = self.sweep(life, "EXPIRY", slot, refusal=refusal)
            if not refusal:
                life.append(
                    self.follow(command, "ORDER_EXPIRED", "EXPIRED", "orders", "order-processor", life[-1].order)
                )

    def _order(
        self, what: str, payment_method: str, live: Callable[[list[OrderEvent]], None] | None = None
    ) -> list[OrderEvent]:
        order = Order(
            order_id=a_uuid(what),
            user_id="u-1",
            email="canary@customers.example",
            phone="+4915100000000",
            items=[LineItem(sku=SKU, quantity=2, unit_price=Money(currency_code="EUR", amount_minor=500))],
            total=Money(currency_code="EUR", amount_minor=1000),
            payment_method=payment_method,
            status=OrderStatus.ORDER_STATUS_CREATED,
            payment_status=PaymentStatus.PAYMENT_STATUS_NONE,
            revision=1,
        )
        self.call(order, request_id=what)
        created = self.event(
            None, "ORDER_CREATED", order, order_created={"caller": "local", "request_id": what}
        )  # fmt: skip
        self.emit(created, "orders")
        life = [created]
        if what == "rejected":
            life.append(self.follow(created, "ORDER_REJECTED", "REJECTED", "orders", "order-processor"))
        else:
            life.append(self.follow(created, "ORDER_PROCESSING", "PROCESSING", "orders", "order-processor"))
        if what in ("paid", "paid too"):
            self._pay(life)
        if what == "declined":
            self._decline(life)
        if what == "unknown":
            self._unknown(life)
        self.tables["orders"].append({"order_id": order.order_id})
        self.tables["order_views"].append({"order_id": order.order_id, "caller": "local", "user_id": "u-1"})
        if live is not None:
            live(life)
        self._finish(life, life)
        return life

    def live_on(self, life: list[OrderEvent], live: Callable[[list[OrderEvent]], object]) -> None:
        """Has more happen to an order of the clean run."""
        known = len(life)
        live(life)
        self._finish(life, life[known:])
        self.end()

    def _finish(self, life: list[OrderEvent], new: list[OrderEvent]) -> None:
        """Brings the tables to where the order ends, tells of what is new, and lets clients look."""
        last = life[-1].order
        stands = {"status": last.status, "revision": last.revision}
        self.rows("orders", last.order_id)[0].update(stands)
        self.rows("order_views", last.order_id)[0].update(stands, snapshot=text(last.SerializeToString()))
        for event in new:
            self.tell(event)
        look = {"order_id": last.order_id, "client": "1"}
        self.clients.append({"kind": "seen", **look, "revision": last.revision, "least": 1})
        self.clients.append({"kind": "watched", **look, "after": 1, "revisions": [2, 3][: len(life) - 1]})

    def follow(
        self,
        cause: OrderEvent,
        name: str,
        status: str,
        topic: str,
        group: str,
        before: Order | None = None,
        **details: Any,
    ) -> OrderEvent:
        """Has a group make the next event of an order; `before` is the order as it stood, the cause's if not given."""
        order = Order()
        order.CopyFrom(before or cause.order)
        order.status = OrderStatus.Value(f"ORDER_STATUS_{status}")
        order.revision += self._step
        if name != "PAYMENT_REFUNDED" and status in MONEY:
            order.payment_status = PaymentStatus.Value(f"PAYMENT_STATUS_{MONEY[status]}")
        if name == "ORDER_CANCELLED" and order.payment_status == PaymentStatus.PAYMENT_STATUS_PENDING:
            order.payment_status = PaymentStatus.PAYMENT_STATUS_NONE
        event = self.event(cause, name, order, **details)
        self.outcome(group, cause.event_id)["events"].append(text(event.SerializeToString()))
        self.emit(event, topic)
        return event

    def _pay(self, life: list[OrderEvent]) -> None:
        self.capture(life)
        paid = {"gateway_reference": f"ch_{life[0].order.order_id}", "amount": life[0].order.total}
        life.append(self.follow(life[-1], "ORDER_PAID", "PAID", "payments", "payment-processor", order_paid=paid))

    def _decline(self, life: list[OrderEvent]) -> None:
        self._send(life, approved=False)
        life.append(self.follow(life[-1], "PAYMENT_FAILED", "PAYMENT_FAILED", "payments", "payment-processor"))

    def _book(self, order_id: str, kind: str, amount_minor: int) -> None:
        self.tables["payment_entries"].append(
            {"order_id": order_id, "kind": kind, "amount_minor": amount_minor, "currency_code": "EUR"}
        )

    def owe(self, order_id: str, state: str) -> None:
        self.tables["payments"].append(
            {
                "order_id": order_id, "idempotency_key": f"charge-{order_id}", "state": state, "refund_due": False,
                "gateway_intent": None, "gateway_closed": False,
            }
        )  # fmt: skip

    def _send(self, life: list[OrderEvent], *, approved: bool) -> None:
        order = life[0].order
        self.gateway.append(
            {
                "kind": "charge", "time": NOW, "key": f"charge-{order.order_id}", "reference": f"ch_{order.order_id}",
                "order_id": order.order_id, "amount_minor": 1000, "currency_code": "EUR",
                "payment_method": order.payment_method, "approved": approved, "decline_reason": "",
            }
        )  # fmt: skip
        self.owe(order.order_id, "captured" if approved else "declined")

    def _unknown(self, life: list[OrderEvent]) -> None:
        self.owe(life[0].order.order_id, "unknown")
        self.give_up(life[-1], "PAYMENT_UNKNOWN")

    def give_up(self, event: OrderEvent, error_class: str) -> None:
        """Lets the payment processor write a dead letter instead of a decision."""
        self.tables["outcomes"].remove(self.outcome("payment-processor", event.event_id))
        record = next(row for row in self.topics if row["value"] == text(event.SerializeToString()))
        self.letter(record, "payment-processor", error_class, attempts=1)

    def tell(self, event: OrderEvent) -> None:
        for group, channel in CHANNELS.items():
            name = group.removeprefix("notification-")
            message_id = f"<{event.event_id}.{name}@shop.example>"
            recipient = event.order.email if name == "email" else event.order.phone
            self.mail[f"{len(self.mail)}.{'eml' if name == 'email' else 'txt'}"] = mail(message_id, recipient, name)
            sent = OrderEvent(
                event_id=a_uuid(event.event_id + name),
                type=OrderEventType.ORDER_EVENT_TYPE_NOTIFICATION_SENT,
                order=event.order,
                notification_sent={"channel": channel, "provider_message_id": message_id},
            )
            sent.metadata.causation_id = event.event_id
            sent.metadata.source = group
            self.outcome(group, event.event_id)["events"].append(text(sent.SerializeToString()))
            self.emit(sent, "notifications")

    def _invalid(self, value: bytes, *, key: bytes | None = None, retried: bool) -> Row:
        record = self.append("orders", key, value)
        self.tables["projection_failures"].append(
            {"topic": "orders", "partition": 0, "record_offset": record["offset"]}
        )
        for group in GROUPS:
            if retried:
                self.park(record, group, tier=1, attempts=3, at=10)
                self.park(record, group, tier=2, attempts=6, at=12)
            self.letter(
                record, group, "UNKNOWN_EVENT_TYPE" if retried else "UNDECODABLE", attempts=9 if retried else 1, at=16
            )
        return record

    def park(self, record: Row, group: str, *, tier: int, attempts: int, at: float) -> Row:
        headers = {
            "retry_origin_topic": record["topic"],
            "retry_origin_partition": record["partition"],
            "retry_origin_offset": record["offset"],
            "retry_attempts": attempts,
            "retry_tier": tier,
            "retry_replay": 0,
        }
        topic = f"{group}.retry.{(1, 3)[tier - 1]}s"
        return self.append(topic, octets(record["key"]), octets(record["value"]), headers, at)

    def letter(self, record: Row, group: str, error_class: str, *, attempts: int, at: float = 0.0) -> Row:
        headers = {
            "dlq_origin_topic": record["topic"],
            "dlq_origin_partition": record["partition"],
            "dlq_origin_offset": record["offset"],
            "dlq_group": group,
            "dlq_error_class": error_class,
            "dlq_attempts": attempts,
            "dlq_replay": 0,
        }
        row = self.append("dlq", octets(record["key"]), octets(record["value"]), headers, at)
        listed = DeadLetter(key=octets(record["key"]), value=octets(record["value"]))
        self.tables["dead_letters"].append(
            {"partition": 0, "record_offset": row["offset"], "dead_letter": text(listed.SerializeToString())}
        )
        return row


def mail(message_id: str, recipient: str, channel: str, *, at: float = 1.0) -> str:
    if channel == "sms":
        return f"To: {recipient}\nMessage-ID: {message_id}\n\nhello\n"
    received = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(NOW + at))
    envelope = f"X-Envelope-From: shop@shop.example\nX-Envelope-To: {recipient}\nX-Envelope-Received: {received}\n"
    return f"{envelope}Message-ID: {message_id}\n\nhello\n"


def octets(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)


def a_uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def write_lines(path: pathlib.Path, rows: list[Row]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
