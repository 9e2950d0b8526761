"""What the pages are made of: readings of metrics, reasons, words."""

import datetime
import hashlib
import pathlib
import re

import pytest
from prometheus_client.metrics import MetricWrapperBase

import console
import settings
from console import explanation, metric_names, stuck, timeline, words
from console.flow import Flow
from console.scraping import Address, Process, Scraper, addresses, parsed
from console.sessions import Sessions
from console.workers import Worker, workers
from orderflow.events.v1.dead_letter_pb2 import DeadLetter
from orderflow.operations.v1.dead_letter_service_pb2 import DeadLetterEntry
from orderflow.orders.v1.order_pb2 import Money, Order, OrderStatus, PaymentStatus
from telemetry import metrics
from tests.builders import NOW, an_order
from tests.console import content

_LATER = NOW + datetime.timedelta(minutes=10)


def a_process(name: str, page: str, *, address: str = "a:1") -> Process:
    return Process(Address(name, address), is_up=True, since=0.0, samples=parsed(page))


def an_order_that_is(status: str, payment: str = "PENDING", **fields: object) -> Order:
    order = an_order()
    order.status = OrderStatus.Value(f"ORDER_STATUS_{status}")
    order.payment_status = PaymentStatus.Value(f"PAYMENT_STATUS_{payment}")
    order.failure_reason = str(fields.get("reason", ""))
    return order


def test_the_names_are_those_of_the_processes() -> None:
    # The console does without the first; prometheus_client brings the other.
    optional = {metric_names.OLDEST_AGE, metric_names.STARTED}
    emitted = set()
    for metric in vars(metrics).values():
        for family in metric.collect() if isinstance(metric, MetricWrapperBase) else ():
            suffix = {"counter": "_total", "histogram": "_count"}.get(family.type, "")
            emitted.add(family.name + suffix)
    assert metric_names.READ - optional <= emitted


def test_the_setting_names_each_process() -> None:
    assert addresses("server=a:1,worker=b:2,worker=[::1]:3") == [
        Address("server", "a:1"),
        Address("worker", "b:2"),
        Address("worker", "[::1]:3"),
    ]
    assert addresses("") == []


def test_only_what_is_read_is_parsed() -> None:
    page = '# HELP x\n# TYPE x counter\nx{a="b"} 1\norderflow_worker_lag_records{group="g"} 7\nnonsense here {{\n'
    assert parsed(page) == {("orderflow_worker_lag_records", (("group", "g"),)): 7.0}
    with pytest.raises(ValueError, match=r"."):
        parsed('orderflow_worker_lag_records{group="g" seven\n')


async def test_a_process_that_stops_to_answer_loses_its_numbers_and_keeps_the_time() -> None:
    now = [100.0]
    scraper = Scraper([Address("w", "a:1")], refresh_seconds=1, now=lambda: now[0])
    pages = {"a:1": content.worker("w", lag=5)}

    async def page(address: str) -> str:
        if address not in pages:
            raise OSError("refused")
        return pages[address]

    [process] = scraper.processes
    assert [each.lag for each in workers(scraper.processes, 0)] == [None], "not looked at yet"
    await scraper.read(page)
    assert (process.is_up, process.since) == (True, 100.0)
    pages.clear()
    for now[0] in (110.0, 120.0):
        await scraper.read(page)
    assert (process.is_up, process.since, process.samples) == (False, 110.0, {})
    [worker] = workers(scraper.processes, 120.0)
    assert (worker.up, worker.total, worker.down_since, worker.lag) == (0, 1, 110.0, None)
    pages["a:1"] = "orderflow_worker_lag_records{ this is broken\n"
    await scraper.read(page)
    assert not process.is_up, "a page that cannot be read is no answer"


def test_processes_of_one_name_are_summed_up() -> None:
    two = [
        a_process("p", content.worker("p", lag=3, in_flight=2, age=9) + content.breaker("closed")),
        a_process("p", content.worker("p", lag=4, in_flight=1, age=5, paused=2) + content.breaker("half_open")),
        Process(Address("p", "c:1"), is_up=False, since=77.0),
    ]
    [worker] = workers(two, 0.0)
    assert (worker.up, worker.total, worker.down_since) == (2, 3, 77.0)
    assert (worker.lag, worker.in_flight, worker.oldest_age) == (7, 3, 9.0)
    assert worker.paused == {"dependency_down": 2, "busy": 0}
    assert worker.breakers == {"gateway": "half_open"}, "the worst"
    assert worker.held_up_by == "dependency_down"


def test_what_a_process_says_without_meaning_it_is_unknown() -> None:
    page = "orderflow_projection_lag_seconds 0.0\n"
    both = workers([a_process("order-processor", page), a_process("projector", page, address="b:1")], 0.0)
    assert [each.behind for each in both] == [None, 0.0]
    assert [each.age for each in both] == [None, 0.0]


def test_the_projector_is_as_far_behind_as_its_oldest_record_or_its_last_event() -> None:
    page = content.worker("projector", age=2) + "orderflow_projection_lag_seconds 7.5\n"
    assert [each.age for each in workers([a_process("projector", page)], 0.0)] == [7.5]


def test_being_busy_holds_nothing_up() -> None:
    assert Worker("w", 1, 1, paused={"busy": 3, "dependency_down": 0}).held_up_by == ""


def test_the_funnel_begins_with_what_is_gained() -> None:
    flow = Flow()
    assert flow.funnel() is None

    def read(at: float, total: int, name: str = "server", address: str = "a:1") -> None:
        flow.observe([a_process(name, content.orders_in(total), address=address)], at)

    read(0.0, 1_000)
    funnel = flow.funnel()
    assert funnel is not None
    assert funnel.count("ORDER_CREATED") == 0
    read(10.0, 1_100)
    read(20.0, 50)  # started again
    read(30.0, 70, address="b:1")  # another one, whose past is not known
    read(40.0, 90, address="b:1")
    funnel = flow.funnel()
    assert funnel is not None
    assert funnel.count("ORDER_CREATED") == 100 + 50 + 20
    assert funnel.rate("ORDER_CREATED") == pytest.approx(1.0), "20 in the last 20 seconds"
    assert funnel.line == [10.0, 5.0, 0.0, 2.0]
    flow.observe([Process(Address("server", "a:1"), since=0.0)], 41.0)
    funnel = flow.funnel()
    assert funnel is not None
    assert funnel.missing == ["server"]


def test_a_young_process_is_counted_from_its_start() -> None:
    def young(total: int, began: float, address: str) -> Process:
        page = content.orders_in(total) + f"process_start_time_seconds {began}\n"
        return a_process("server", page, address=address)

    flow = Flow()
    flow.observe([young(3, 990.0, "a:1")], 1_000.0)
    flow.observe([young(5, 990.0, "a:1"), young(7, 1_001.0, "b:1"), young(90, 100.0, "c:1")], 1_010.0)
    funnel = flow.funnel()
    assert funnel is not None
    assert (funnel.since, funnel.count("ORDER_CREATED")) == (990.0, 12), "what the old one had before is not known"
    old = Flow()
    old.observe([young(3, 990.0, "a:1"), young(90, 10.0, "c:1")], 1_000.0)
    funnel = old.funnel()
    assert funnel is not None
    assert (funnel.since, funnel.count("ORDER_CREATED")) == (1_000.0, 0)


def test_the_funnel_forgets_what_is_older_than_its_window() -> None:
    flow = Flow()
    for minute in range(20):
        flow.observe([a_process("server", content.orders_in(minute * 1_000))], minute * 60.0)
    funnel = flow.funnel()
    assert funnel is not None
    assert (funnel.since, funnel.count("ORDER_CREATED")) == (4 * 60.0, 15_000)


LETTER = DeadLetterEntry(
    dead_letter_id="0-7", dead_letter=DeadLetter(group="payment-processor", error_class="GATEWAY_REFUSED")
)
UP = Worker("payment-processor", 1, 1, lag=0, paused={})


@pytest.mark.parametrize(
    ("order", "letter", "worker", "because"),
    [
        (an_order_that_is("PROCESSING"), LETTER, UP, "payment-processor gave up on it: GATEWAY_REFUSED"),
        (
            an_order_that_is("PROCESSING", "UNKNOWN"),
            LETTER,
            UP,
            "The gateway cannot tell whether it charged",
        ),
        (
            an_order_that_is("PROCESSING"),
            None,
            None,
            "Unknown: the console has no metrics of payment-processor",
        ),
        (an_order_that_is("CREATED"), None, UP, "Unknown: the console has no metrics of order-processor"),
        (
            an_order_that_is("PROCESSING"),
            None,
            Worker("payment-processor", 0, 1, down_since=1.0),
            "No payment-processor answers",
        ),
        (
            an_order_that_is("PROCESSING"),
            None,
            Worker("payment-processor", 1, 1, breakers={"gateway": "half_open"}),
            "The circuit breaker “gateway” is half_open",
        ),
        (
            an_order_that_is("PROCESSING"),
            None,
            Worker("payment-processor", 1, 1, paused={"dependency_down": 1}),
            "Partitions of payment-processor are paused: dependency down",
        ),
        (
            an_order_that_is("CANCELLED", "CAPTURED"),
            None,
            Worker("payment-processor", 1, 1, lag=1204),
            "payment-processor is 1,204 records behind",
        ),
        (an_order_that_is("CANCELLED", "CAPTURED"), None, UP, "Its money is not given back yet"),
        (
            an_order_that_is("PROCESSING"),
            None,
            UP,
            "No cause shows: payment-processor runs, takes records and wrote no dead letter",
        ),
    ],
)
def test_the_reason_is_what_holds_it_up_first(
    order: Order, letter: DeadLetterEntry | None, worker: Worker | None, because: str
) -> None:
    why = stuck.why(order, letter, [worker] if worker else [], _LATER)
    assert why.because == because
    assert why.then
    assert why.needs_operator is (letter is not None)


def test_a_message_that_failed_holds_no_order_up() -> None:
    order = an_order_that_is("PROCESSING", "UNKNOWN")
    mail = DeadLetterEntry(
        dead_letter_id="0-8", dead_letter=DeadLetter(group="notification-email", error_class="SMTP_550")
    )
    both = {(order.order_id, each.dead_letter.group): each for each in (LETTER, mail)}
    [found] = stuck.Found([order], both, True).explained([UP], _LATER).orders
    assert found.why.dead_letter_id == "0-7"
    assert explanation.explained(order, [mail, LETTER], [UP], _LATER).startswith("The gateway cannot tell")
    [found] = stuck.Found([order], {(order.order_id, "notification-email"): mail}, True).explained([UP], _LATER).orders
    assert not found.why.needs_operator


def test_an_expired_order_whose_money_is_kept_is_explained() -> None:
    expired = an_order_that_is("EXPIRED", "CAPTURED")
    [found] = stuck.Found([expired], {}, True).explained([UP], _LATER).orders
    assert found.why.because == "Its money is not given back yet"


def test_an_order_past_its_time_to_pay_waits_for_the_sweep() -> None:
    why = stuck.why(an_order_that_is("PROCESSING"), None, [UP], NOW + datetime.timedelta(hours=2))
    assert why.because == "Its time to pay is over"


@pytest.mark.parametrize("status", [each.name for each in OrderStatus.DESCRIPTOR.values[1:]])
def test_every_state_is_explained_in_whole_sentences(status: str) -> None:
    order = an_order_that_is(status.removeprefix("ORDER_STATUS_"), "NONE", reason="OUT_OF_STOCK")
    for letters in ([], [LETTER], [LETTER, LETTER]):
        text = explanation.explained(order, letters, [UP], _LATER)
        assert text.endswith((".", "(GATEWAY_REFUSED)."))
        assert "{" not in text
        assert not text.startswith("It is CREATED")


def test_a_young_order_is_not_suspect() -> None:
    order = an_order_that_is("PROCESSING")
    assert explanation.explained(order, [], [], NOW + datetime.timedelta(seconds=2)) == (
        "It waits for payment-processor, and has not for long."
    )


def test_no_history_is_no_timeline() -> None:
    assert timeline.rows([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (4.06, "4.1 s"),
        (59.2, "59 s"),
        (60, "1 m"),
        (252, "4 m 12 s"),
        (3600, "1 h"),
        (90_000, "1 d 1 h"),
    ],
)
def test_spans_have_two_units_at_the_most(seconds: float | None, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("currency", "minor", "text"),
    [("EUR", 399800, "EUR 3,998.00"), ("JPY", 500, "JPY 500"), ("KWD", 1234, "KWD 1.234"), ("EUR", -5, "EUR -0.05")],
)
def test_amounts_have_their_currencys_decimals(currency: str, minor: int, text: str) -> None:
    assert words.money(Money(currency_code=currency, amount_minor=minor)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("carla.customer@mail.example.com", "c•••@m•••.com"),
        ("+491701234567", "+49•••67"),
        ("short", "•••"),
        ("", ""),
    ],
)
def test_what_identifies_a_customer_keeps_its_ends_only(text: str, shown: str) -> None:
    assert words.masked(text) == shown
    if len(text) > 6:
        assert words.redacted(f"to {text}: 550") == f"to {shown}: 550"


def test_a_whole_message_is_masked() -> None:
    order = an_order(phone="+491701234567", labels={"name": "Carla"})
    shown = str(words.as_dict(order))
    for personal in ("carla", "Carla", "1701234567", "pm_card_visa"):
        assert personal not in shown
    assert "SKU-1" in shown
    assert "name" in shown


def test_a_sign_in_ends() -> None:
    now = [0.0]
    sessions = Sessions(secure=True, now=lambda: now[0])
    session = sessions.sign_in("token")
    assert _seen(sessions, session.session_id) == "token"
    now[0] = 12 * 3600 + 1
    assert _seen(sessions, session.session_id) is None
    again = sessions.sign_in("token")
    sessions.sign_out(again)
    assert _seen(sessions, again.session_id) is None


def test_sessions_are_bounded() -> None:
    sessions = Sessions(secure=False)
    first = sessions.sign_in("token")
    for _ in range(1_000):
        sessions.sign_in("other")
    assert _seen(sessions, first.session_id, "orderflow-console") is None


def test_what_is_vendored_is_unchanged() -> None:
    static = pathlib.Path(console.__file__).parent / "static"
    told = dict(re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (static / "README.md").read_text(), re.M))
    assert told == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in static.glob("*.min.js")}
    assert len(told) == 2


def _seen(sessions: Sessions, session_id: str, cookie: str = "__Host-orderflow-console") -> str | None:
    from starlette.requests import Request

    headers = [(b"cookie", f"{cookie}={session_id}".encode())]
    return sessions.of(Request({"type": "http", "headers": headers})).token


def test_the_pages_about_it_name_what_is_there() -> None:
    root = pathlib.Path(__file__).parents[2]
    section = (root / "docs/security.md").read_text().partition("## The console")[2].partition("## Checklist")[0]
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", section)
    assert len(named) > 8
    for file, function in named:
        assert f"def {function}(" in (root / "tests/console" / file).read_text(), function
    page = (root / "docs/console.md").read_text()
    shown = set(re.findall(r"\]\(images/([^)]+)\)", page))
    assert shown == {path.name for path in (root / "docs/images").glob("console-*.png")}
    names = set(re.findall(r"ORDERFLOW_[A-Z_]+[A-Z]", page)) - {"ORDERFLOW_CONSOLE"}
    assert names <= set(settings.variables())
