-- Decisions: the row that decides, what it rests on, and the outcome of every record.

create table consumer_groups (
    group_name text not null,
    topic text not null,
    registered_time timestamptz not null default now(),
    primary key (group_name, topic)
);

-- One row per order decides every transition, by compare-and-set on status and revision.
create table orders (
    order_id uuid primary key,
    caller text not null,
    content bytea not null, -- orderflow.orders.v1.Order as of revision 1; the columns below are what changes
    status smallint not null,
    payment_status smallint not null,
    revision bigint not null,
    failure_reason text not null default '',
    expire_time timestamptz not null,
    update_time timestamptz not null
);

-- Lets one payload through per (caller, request_id).
create table order_requests (
    caller text not null,
    request_id text not null,
    order_id uuid not null,
    fingerprint bytea not null,
    primary key (caller, request_id)
);

-- What was emitted for every record handled, so that a replay emits the same again.
create table outcomes (
    group_name text not null,
    event_id uuid not null,
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    events bytea[] not null,
    stored_time timestamptz not null default now(),
    primary key (group_name, event_id)
);

create table stock (
    sku text primary key,
    available bigint not null check (available >= 0),
    held bigint not null default 0 check (held >= 0),
    sold bigint not null default 0 check (sold >= 0)
);

create table prices (
    sku text not null,
    currency_code text not null,
    amount_minor bigint not null check (amount_minor >= 0),
    primary key (sku, currency_code)
);

-- What is intended and known per order.
create table payments (
    order_id uuid primary key references orders,
    idempotency_key text not null unique,
    state text not null check (state in ('intended', 'captured', 'declined', 'unknown')),
    amount_minor bigint not null,
    currency_code text not null,
    first_send_time timestamptz, -- null: nothing was ever sent under the key
    gateway_reference text not null default '',
    decline_reason text not null default '',
    update_time timestamptz not null
);

-- Captures and refunds, append-only.
create table payment_entries (
    entry_id bigint generated always as identity primary key,
    order_id uuid not null references orders,
    kind text not null check (kind in ('capture', 'refund')),
    amount_minor bigint not null check (amount_minor > 0),
    currency_code text not null,
    gateway_reference text not null,
    entry_time timestamptz not null,
    unique (kind, gateway_reference)
);

-- Stored before a message is sent.
create table notification_intents (
    event_id uuid not null,
    channel smallint not null,
    message_id text not null,
    intent_time timestamptz not null default now(),
    primary key (event_id, channel)
);
