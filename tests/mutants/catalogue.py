"""Ways to break the guarantees on purpose, and the test that must turn red for each.

A mutant is one replacement in one file. A test that stays green under its mutant proves nothing.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`point` is the rule that it breaks; `tests` are pytest's arguments."""

    name: str
    point: str
    file: str
    old: str
    new: str
    tests: str


_RUNTIME = "tests/integration/test_worker_runtime.py"
_WINDOWS = "tests/e2e/test_crash_windows.py"

MUTANTS = (
    # -- runtime 1 and 2: one producer per partition, started before the offset is read
    Mutant(
        "a transactional id for each process",
        "runtime 1: the id is tied to the input partition, so the next owner fences the last",
        "messaging/runtime.py",
        'transactional_id=f"{self._spec.group}.',
        'transactional_id=f"{id(self)}.{self._spec.group}.',
        f"{_RUNTIME} -k zombie",
    ),
    Mutant(
        "a coordinator that is loading looks like nothing committed",
        "runtime 2: an offset that could not be read is not an offset that is not there",
        "messaging/aiokafka_internals.py",
        "raise for_code(response.error_code)()",
        "return None",
        "tests/integration/test_aiokafka_internals.py -k cannot_tell",
    ),
    Mutant(
        "a lost offset is tolerated",
        "semantics 18: a known group whose offset is gone stops loudly",
        "messaging/partition.py",
        "if committed is None or not first <= committed[0] <= last:",
        "if False:",
        f'{_RUNTIME} -k "known_group or past_the_end"',
    ),
    # -- runtime 3: outputs and offset in one transaction
    Mutant(
        "the offset is not in the transaction",
        "runtime 3: outputs and input offset commit together",
        "messaging/partition.py",
        "        await producer.send_offsets_to_transaction(",
        "        await asyncio.sleep(0)\n        (lambda *_: None)(",
        f"{_RUNTIME} -k stop_finishes",
    ),
    Mutant(
        "a commit that is under way ends the draining",
        "runtime 7 and semantics 31: a rebalance alone leaves no ambiguous send",
        "messaging/partition.py",
        "if self._draining and not (self._done or self._tasks):",
        "if self._draining and not self._done:",
        f"{_RUNTIME} -k under_way_when_draining",
    ),
    Mutant(
        "a stop waits for the poll",
        "runtime 7: a stop is heard whatever Kafka does",
        "messaging/runtime.py",
        "while not (polling.done() or stopping.done()):",
        "while not polling.done():",
        f"{_RUNTIME} -k stop_is_heard",
    ),
    Mutant(
        "a connection lost under uvloop ends the client",
        "runtime 7: never alive and idle",
        "messaging/aiokafka_internals.py",
        "        except RuntimeError as error:",
        "        except ZeroDivisionError as error:",
        "tests/integration/test_aiokafka_internals.py -k lost_under_uvloop",
    ),
    Mutant(
        "a refused output is committed past",
        "runtime 3: the future of every send is awaited before the commit",
        "messaging/partition.py",
        "            if isinstance(error, _REFUSED):\n                self._refuse(each, error)\n"
        "                raise OutputRefusedError from error\n        if failed:\n            raise failed[0][1]\n",
        "            pass\n",
        f"{_RUNTIME} -k refuses",
    ),
    Mutant(
        "a refused output is forgotten",
        "runtime 3: an output that the broker refuses is that one record's failure",
        "messaging/partition.py",
        "        self._refused[coordinates] = ",
        "        _ = ",
        f"{_RUNTIME} -k refuses",
    ),
    Mutant(
        "results of an aborted incarnation are committed",
        "runtime 3: after anything but a clean commit the partition starts over",
        "messaging/partition.py",
        "        self._done.clear()\n        await self._close_producer(flush_seconds=0.0)\n",
        "        await self._close_producer(flush_seconds=0.0)\n",
        f"{_RUNTIME} -k transaction_that_fails",
    ),
    Mutant(
        "a request that was sent again is not noticed",
        "runtime 3: after a transactional request that was sent again the producer is opened anew",
        "messaging/aiokafka_internals.py",
        "            if isinstance(request, _TRANSACTIONAL):\n                on_resend()\n",
        "",
        "tests/integration/test_held_back_transaction.py -k tears",
    ),
    # -- runtime 4: parallel by key, committed out of order
    Mutant(
        "one key in parallel",
        "runtime 4: records of one key are handled in their order",
        "messaging/partition.py",
        "            queue = self._queues.get(record.key)\n",
        '            object.__setattr__(record, "key", (record.key or b"") + str(record.offset).encode())\n'
        "            queue = self._queues.get(record.key)\n",
        f"{_RUNTIME} -k one_key",
    ),
    Mutant(
        "what is done past the commit is not kept",
        "runtime 4: finished records past the committed offset are in its metadata",
        "messaging/window.py",
        "return self.committed, _encode(self.committed, self._done)",
        'return self.committed, ""',
        f"tests/unit/test_window.py {_RUNTIME} -k 'window or Window or committed_past'",
    ),
    Mutant(
        "the commit passes an unfinished record",
        "runtime 4: every offset below the committed one is done",
        "messaging/window.py",
        "self.committed = self._pending[0]",
        "self.committed = self._next",
        "tests/unit/test_window.py",
    ),
    # -- runtime 5, semantics 12 to 16: replay and copy
    Mutant(
        "a replay is skipped as a duplicate",
        "semantics 13: a replay emits its stored outcome again",
        "storage/outcomes.py",
        "return [OrderEvent.FromString(event) for event in stored.events]",
        "return []",
        "tests/integration/test_outcomes.py tests/integration/test_order_decisions.py",
    ),
    Mutant(
        "a copy emits too",
        "semantics 13: a copy has other coordinates and emits nothing",
        "storage/outcomes.py",
        "stored.coordinates != delivery.coordinates",
        "False",
        "tests/integration/test_outcomes.py",
    ),
    Mutant(
        "every copy of a replay counts",
        "semantics 16: the first copy of a replay claims it",
        "storage/replay_claims.py",
        'return row is not None and Coordinates(row["topic"], row["partition"], row["record_offset"]) == by',
        "return True",
        "tests/e2e/test_dead_letters.py -k two_callers",
    ),
    Mutant(
        "a parked record has coordinates of its own",
        "semantics 14: a parked record counts as the one that it stems from",
        "messaging/partition.py",
        "delivery = Delivery(event, self._spec.group, past.origin, past.attempts",
        "here = Coordinates(record.topic, record.partition, record.offset)\n"
        "        delivery = Delivery(event, self._spec.group, here, past.attempts",
        "tests/integration/test_retries.py -k coordinates",
    ),
    # -- runtime 6: kinds of failure
    Mutant(
        "an outage uses up attempts",
        "runtime 6: a dependency that is down is nobody's fault",
        "messaging/partition.py",
        "                outcome = down.error_class\n                self._gate.failed(down, probe=probe)\n",
        "                self._gate.failed(down, probe=probe)\n"
        '                raise Transient("DOWN", "away") from down\n',
        f"{_RUNTIME} -k away_pauses",
    ),
    Mutant(
        "everybody probes",
        "runtime 6: one probe at a time",
        "messaging/dependency_gate.py",
        "            await self._turn.acquire()\n",
        "            self._turn = asyncio.Lock()\n            await self._turn.acquire()\n",
        "tests/unit/test_dependency_gate.py",
    ),
    Mutant(
        "a retry is due at once",
        "runtime 6: a parked record waits for its delay",
        "messaging/retry.py",
        "return record.timestamp / 1000 + delay.total_seconds() if delay is not None else 0.0",
        "return 0.0",
        "tests/unit/test_retry.py",
    ),
    # -- runtime 7
    Mutant(
        "a stop drops what is in flight",
        "runtime 7: draining finishes and commits",
        "messaging/partition.py",
        "timeout=self._limits.drain)",
        "timeout=0)",
        f"{_RUNTIME} -k stop_finishes",
    ),
    Mutant(
        "a commit that is under way ends the draining",
        "runtime 7 and semantics 31: a rebalance alone leaves no ambiguous send",
        "messaging/partition.py",
        "if self._draining and not (self._done or self._tasks):",
        "if self._draining and not self._done:",
        f"{_RUNTIME} -k under_way_when_draining",
    ),
    Mutant(
        "a stop waits for the poll",
        "runtime 7: a stop is heard whatever Kafka does",
        "messaging/runtime.py",
        "while not (polling.done() or stopping.done()):",
        "while not polling.done():",
        f"{_RUNTIME} -k stop_is_heard",
    ),
    Mutant(
        "a connection lost under uvloop ends the client",
        "runtime 7: never alive and idle",
        "messaging/aiokafka_internals.py",
        "        except RuntimeError as error:",
        "        except ZeroDivisionError as error:",
        "tests/integration/test_aiokafka_internals.py -k lost_under_uvloop",
    ),
    # -- the row, money, stock
    Mutant(
        "a capture of a cancelled order sells its stock",
        "semantics 27: an approval that finds its order moved books the capture and emits nothing",
        "storage/payment_decisions.py",
        "                return []\n            details = OrderPaidDetails",
        "                order = delivery.event.order\n            details = OrderPaidDetails",
        "tests/integration/test_payment_decisions.py",
    ),
    Mutant(
        "unknown is taken for not charged",
        "semantics 20: a charge that may have been sent is repeated under its key, then looked up",
        "workers/payment_processor.py",
        "    except ChargeUnknown:\n        return await gateway.find(intent.idempotency_key)\n",
        "    except ChargeUnknown:\n        return None\n",
        "tests/unit/test_payment_processor.py",
    ),
    Mutant(
        "any payload gets the request_id",
        "semantics 9: one payload per (caller, request_id)",
        "storage/order_decisions.py",
        "if created.request_id and claims[created.caller, created.request_id] != order.order_id:",
        "if False:",
        "tests/integration/test_order_decisions.py tests/integration/test_gathered_decisions.py -k request_id",
    ),
    # -- gatherings: what is decided together is decided as if it had come alone
    Mutant(
        "a bad order takes its gathering with it",
        "gatherings: one bad order harms no other",
        "storage/gathering.py",
        "if len(gathered) == 1:",
        "if True:",
        "tests/unit/test_gathering.py tests/integration/test_gathered_decisions.py -k bad",
    ),
    Mutant(
        "a gathering's orders all see the same stock",
        "gatherings: stock goes by order of arrival, in one update",
        "storage/order_decisions.py",
        "available[item.sku] -= item.quantity",
        "pass",
        "tests/integration/test_gathered_decisions.py -k hot",
    ),
    Mutant(
        "every record of an event in a gathering counts",
        "semantics 13: a copy emits nothing, in one gathering with its original, too",
        "storage/outcomes.py",
        "decided[_key(each)] if fresh.get(_key(each)) is each else stored[_key(each)]",
        "decided[_key(each)] if _key(each) in decided else stored[_key(each)]",
        "tests/integration/test_gathered_decisions.py -k same_event",
    ),
    Mutant(
        "an outcome that was stored meanwhile is not looked for",
        "semantics 12: a conflict rolls the decision back, and the outcome is then obeyed",
        "storage/outcomes.py",
        "        raise _StoredMeanwhileError\n\n\nasync def decide(",
        "        pass\n\n\nasync def decide(",
        "tests/integration/test_gathered_decisions.py -k two_processes",
    ),
    # -- projector and ingress
    Mutant(
        "the position moves from anywhere",
        "semantics 32: the projector's position moves by compare-and-set",
        "storage/projection.py",
        "and position = $3 returning",
        "and $3::bigint is not null returning",
        "tests/integration/test_read_model.py",
    ),
    Mutant(
        "the last writer wins",
        "semantics 32: the highest revision wins",
        "storage/projection.py",
        " where order_views.revision < excluded.revision",
        "",
        "tests/integration/test_read_model.py",
    ),
    Mutant(
        "a watch passes a hole",
        "semantics 32: WatchOrder sends only the gapless run",
        "storage/order_history.py",
        'if row["revision"] == row["after"] + len(run) + 1:',
        "if True:",
        "tests/integration/test_order_watches.py -k hole",
    ),
    Mutant(
        "what changed during a look is not heard",
        "watches: subscribed before the look",
        "server/order_watches.py",
        "                    else:\n                        await watcher.woken.wait()",
        "                    else:\n                        watcher.woken.clear()\n"
        "                        await watcher.woken.wait()",
        "tests/integration/test_order_watches.py -k while_it_looks",
    ),
    Mutant(
        "a page token fits everywhere",
        "lists: a page token is bound to its request and its caller",
        "server/page_tokens.py",
        "or bound != _bound(request, caller) ",
        "",
        "tests/integration/test_order_queries.py -k page_token",
    ),
    Mutant(
        "another's order can be watched",
        "reads: another's order is as one that is not there",
        "server/order_watches.py",
        "if view is not None and calls.may_see(context, view.caller):",
        "if view is not None:",
        "tests/integration/test_order_watches.py -k anothers",
    ),
    Mutant(
        "the producer is kept after a refusal",
        "ingress: after a produce error the producer is replaced",
        "messaging/publisher.py",
        "            self._producer = None\n            closing",
        "            return\n            closing",
        "tests/integration/test_publisher.py -k too_large",
    ),
    Mutant(
        "a broker that is left alone is believed",
        "ingress: nothing is handed over where too few replicas answer",
        "messaging/reachability.py",
        "replicas.in_sync.intersection(answering)",
        "replicas.in_sync",
        "tests/unit/test_reachability.py",
    ),
    # -- notifications
    Mutant(
        "the intent is stored after the send",
        "notifications: a send that may have happened is known",
        "workers/notification_service.py",
        "        if intent is False:\n",
        "        if False:\n",
        "tests/unit/test_notification_service.py",
    ),
    # -- who may call
    Mutant(
        "a caller's scopes are not looked at",
        "security: a method is opened by its scope",
        "server/authentication.py",
        "if not scopes.allow(caller.scopes, required):",
        "if False:",
        "tests/security/test_methods.py",
    ),
    Mutant(
        "a stream outlives its token",
        "security: a stream ends when its token expires",
        "server/authentication.py",
        "asyncio.timeout_at(ends)",
        "asyncio.timeout_at(None)",
        "tests/security/test_tokens.py -k stream_ends",
    ),
    Mutant(
        "an extension that nobody understands is ignored",
        "security: a token with crit is refused",
        "server/bearer_tokens.py",
        'if "crit" in header:',
        "if False:",
        "tests/security/test_tokens.py -k one_and_the_same",
    ),
    Mutant(
        "a trust domain is a prefix",
        "security: the trust domain is exact",
        "server/identity.py",
        'f"spiffe://{trust_domain}/"',
        'f"spiffe://{trust_domain}"',
        "tests/security/test_mutual_tls.py -k exact",
    ),
)
