-- Statement by statement, in no transaction: orders go on meanwhile. What breaks off is begun anew.
-- What orders are found by: storage/order_search.py.
-- Expands only: indexes.

drop index concurrently if exists order_events_of_event;
create index concurrently order_events_of_event on order_events (event_id);

drop index concurrently if exists order_events_of_trace;
create index concurrently order_events_of_trace on order_events (trace_id, order_id) where trace_id is not null;

drop index concurrently if exists order_events_of_decline;
create index concurrently order_events_of_decline on order_events (declined_reference)
    where declined_reference is not null;

drop index concurrently if exists order_requests_of_request;
create index concurrently order_requests_of_request on order_requests (request_id);
