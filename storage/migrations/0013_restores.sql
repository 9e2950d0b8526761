-- Restores of this database that lost commits: the gateway may have charged and refunded what is not booked here.

create table restores (
    restore_id bigint generated always as identity primary key,
    restore_time timestamptz not null default now(),
    orders_before timestamptz not null -- of orders that were created before it the gateway is asked first
);

-- What the gateway has made under keys whose rows may have lost it (payments.gateway_intent).
create table found_intents (
    idempotency_key text primary key,
    gateway_intent text not null
);

alter table payments add column looked_up_after bigint; -- the restore after which the gateway knew of no charge
