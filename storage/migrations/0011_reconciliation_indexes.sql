-- Statement by statement, in no transaction: orders go on meanwhile. What breaks off is begun anew.
-- What the reconciler reads by: what was booked when, and of which order.

drop index concurrently if exists payment_entries_of_order;
create index concurrently payment_entries_of_order on payment_entries (order_id);

drop index concurrently if exists payment_entries_by_time;
create index concurrently payment_entries_by_time on payment_entries (entry_time, entry_id);

-- Orders that say that they were paid, by their last change. storage/ledger.py has the same condition.
drop index concurrently if exists orders_said_paid;
create index concurrently orders_said_paid on orders (update_time, order_id)
    where status in (4, 6, 7, 10) or payment_status in (4, 6, 7);
