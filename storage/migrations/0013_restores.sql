-- Restores of this database that lost commits: the gateway may have charged and refunded what is not booked here.
-- Not for the version before: it would charge without asking first.

create table restores (
    restore_id bigint generated always as identity primary key,
    restore_time timestamptz not null default now(),
    orders_before timestamptz not null -- of orders that were created before it the gateway is asked first
);

-- The charges that the gateway had at a restore, whether they are booked here or not.
create table found_charges (
    idempotency_key text primary key,
    gateway_intent text, -- stands for payments.gateway_intent where that is lost
    has_money boolean not null -- taken, or it may still be
);
