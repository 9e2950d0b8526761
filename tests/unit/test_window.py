"""The window against a naive model, through deliveries, holes, commits and restarts."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from messaging.window import MAX_SPAN, Window

KAFKA_METADATA_LIMIT = 4096


class WindowMachine(RuleBasedStateMachine):
    """A log with holes, a consumer that reads it, and what Kafka holds of the group: the last commit.

    The model is three sets: what is done in a committed transaction, what is done since, what is being handled.
    """

    handling = Bundle("handling")

    @initialize(first=st.integers(0, 1000), gaps=st.lists(st.integers(1, 5), min_size=20, max_size=80))
    def begin(self, first: int, gaps: list[int]) -> None:
        offset, self.log = first, []
        for gap in gaps:
            self.log.append(offset)
            offset += gap  # a marker or an aborted record takes an offset and is never delivered
        self.end = offset
        self.at_kafka = (first, "")
        self.committed_done: set[int] = set()
        self.restart()

    def restart(self) -> None:
        self.window = Window(*self.at_kafka)
        self.next = next((n for n, offset in enumerate(self.log) if offset >= self.at_kafka[0]), len(self.log))
        self.position = self.at_kafka[0]
        self.done: set[int] = set()
        self.delivered: set[int] = set()

    @rule(target=handling, count=st.integers(1, 10))
    def deliver(self, count: int) -> object:
        new = []
        for offset in self.log[self.next : self.next + count]:
            is_new = self.window.deliver(offset)
            assert is_new == (offset not in self.committed_done), offset
            if is_new:
                self.delivered.add(offset)
                new.append(offset)
            self.position = offset + 1
        self.next = min(self.next + count, len(self.log))
        if self.next == len(self.log):
            self.position = self.end
        return multiple(*new)

    @rule(offset=consumes(handling))
    def finish(self, offset: int) -> None:
        if offset in self.delivered - self.done:  # else it belongs to an earlier life: the runner drops it
            self.window.finish(offset)
            self.done.add(offset)

    @rule(past_markers=st.booleans(), survives=st.booleans())
    def commit(self, past_markers: bool, survives: bool) -> None:
        committed = self.window.advance(self.position if past_markers and not self.window.unfinished else None)
        assert self.window.committed == committed[0]
        if survives:
            self.at_kafka = committed
            self.committed_done |= self.done
        else:  # the transaction was aborted: everything in flight is forgotten
            self.restart()

    @rule()
    def crash(self) -> None:
        self.restart()

    @invariant()
    def nothing_is_skipped(self) -> None:
        if hasattr(self, "at_kafka"):
            below = {offset for offset in self.log if offset < self.at_kafka[0]}
            assert below <= self.committed_done

    @invariant()
    def a_restart_repeats_exactly_what_is_not_committed_as_done(self) -> None:
        if hasattr(self, "at_kafka"):
            again = Window(*self.at_kafka)
            repeated = {offset for offset in self.log if offset >= self.at_kafka[0] and again.deliver(offset)}
            assert repeated == set(self.log) - self.committed_done

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "window"):
            assert self.window.unfinished == len(self.delivered - self.done)

    def teardown(self) -> None:
        """Reads on to the end: in the end everything is done, once each, and lag is 0."""
        if not hasattr(self, "log"):
            return
        self.restart()
        for offset in self.log[self.next :]:
            if self.window.deliver(offset):
                self.window.finish(offset)
        assert self.window.advance(self.end) == (self.end, "")
        assert self.window.unfinished == 0


TestWindow = WindowMachine.TestCase
TestWindow.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_metadata_of_the_longest_span_fits() -> None:
    window = Window(7)
    end = 7 + MAX_SPAN
    for offset in range(7, end):
        assert window.takes(offset)
        window.deliver(offset)
        if offset > 7:
            window.finish(offset)
    assert not window.takes(end)
    committed, metadata = window.advance()
    assert committed == 7
    assert len(metadata) <= KAFKA_METADATA_LIMIT
    again = Window(committed, metadata)
    assert [each for each in range(7, end) if again.deliver(each)] == [7]


def test_the_span_counts_the_holes() -> None:
    window = Window(0)
    assert window.takes(MAX_SPAN + 9_999), "with nothing open any record is the first"
    window.deliver(0)
    assert window.takes(MAX_SPAN - 1)
    assert not window.takes(MAX_SPAN), "ten thousand records of aborted transactions may lie in between"
    window.finish(0)
    window.advance()
    assert window.takes(MAX_SPAN + 9_999)


def test_a_slow_record_alone_is_what_is_unfinished() -> None:
    # What is done and waits for the commit point holds nobody back: the span is what bounds it.
    window = Window(0)
    for offset in range(1000):
        window.deliver(offset)
        if offset:
            window.finish(offset)
    window.advance()
    assert window.unfinished == 1


def test_metadata_that_is_not_ours_means_that_nothing_past_the_offset_is_done() -> None:
    for metadata in ("", "1:", "1:not base64!", "2:AQ==", "NO_METADATA", "1:AQ", "1:ü"):
        assert Window(5, metadata).deliver(5), metadata


def test_an_offset_past_markers_is_committed_only_when_nothing_is_open() -> None:
    window = Window(0)
    window.deliver(0)
    assert window.advance(3) == (0, "")
    window.finish(0)
    assert window.advance(3) == (3, "")
