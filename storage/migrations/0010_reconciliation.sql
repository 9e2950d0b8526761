-- What the reconciler knows of its own. What it reads by is in the next file.

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
