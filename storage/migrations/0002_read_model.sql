-- The projector's read model.

create table order_views (
    order_id uuid primary key,
    caller text not null,
    user_id text not null,
    status smallint not null,
    revision bigint not null,
    create_time timestamptz not null,
    snapshot bytea not null -- orderflow.orders.v1.Order as of revision
);

create table order_events (
    order_id uuid not null,
    event_id uuid not null,
    type smallint not null,
    revision bigint not null,
    occur_time timestamptz not null,
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    event bytea not null, -- orderflow.events.v1.OrderEvent
    primary key (order_id, event_id)
);

create table dead_letters (
    partition integer not null,
    record_offset bigint not null,
    group_name text not null,
    error_class text not null,
    order_id uuid,
    dead_letter bytea not null, -- orderflow.events.v1.DeadLetter
    recorded_time timestamptz not null default now(),
    primary key (partition, record_offset)
);

create index dead_letters_by_reason on dead_letters (group_name, error_class);
create index dead_letters_by_order on dead_letters (order_id) where order_id is not null;

-- The projector's offsets, moved in the same transaction as its rows.
create table projection_positions (
    topic text not null,
    partition integer not null,
    position bigint not null,
    primary key (topic, partition)
);

-- Records that the projector could not read: its dead letters.
create table projection_failures (
    topic text not null,
    partition integer not null,
    record_offset bigint not null,
    dead_letter bytea not null, -- orderflow.events.v1.DeadLetter
    error_class text not null,
    recorded_time timestamptz not null default now(),
    primary key (topic, partition, record_offset)
);
