-- What the reconciler goes by: what was booked when, and of which order.

create index payment_entries_of_order on payment_entries (order_id);
create index payment_entries_by_time on payment_entries (entry_time, entry_id);

-- Orders that say that they were paid, by their last change. storage/ledger.py has the same condition.
create index orders_said_paid on orders (update_time, order_id)
    where status in (4, 6, 7, 10) or payment_status in (4, 6, 7);

-- How far everything has been compared.
create table reconciliation_progress (
    only_one boolean primary key default true check (only_one),
    reconciled_until timestamptz not null
);

-- Orders of which the gateway, the payments and the order do not say the same, or did not.
create table reconciliation_cases (
    order_id text primary key, -- as the gateway names it, which may be no order
    movements jsonb not null, -- what the gateway is known to have moved for it
    differences jsonb not null,
    found_time timestamptz not null,
    resolved_time timestamptz -- null while there are differences
);
create index reconciliation_cases_open on reconciliation_cases (order_id) where resolved_time is null;
